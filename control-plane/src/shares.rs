//! A bounded number of something for each of its holders, given back when dropped.

use std::{collections::HashMap, hash::Hash, sync::Arc};

use parking_lot::Mutex;

/// How many each holder has. A holder without any needs no entry.
#[derive(Clone, Debug)]
pub struct Shares<K> {
    held: Arc<Mutex<HashMap<K, usize>>>,
    each_max: usize,
}

/// One of them.
#[derive(Debug)]
pub struct Share<K: Eq + Hash> {
    held: Arc<Mutex<HashMap<K, usize>>>,
    holder: K,
}

impl<K: Clone + Eq + Hash> Shares<K> {
    /// At most so many for each.
    pub fn new(each_max: usize) -> Self {
        Self {
            held: Arc::default(),
            each_max,
        }
    }

    /// One more for `holder`; none when it has as many as it may.
    pub fn take(&self, holder: &K) -> Option<Share<K>> {
        let mut held = self.held.lock();
        let has = held.get(holder).copied().unwrap_or(0);
        if has >= self.each_max {
            return None;
        }
        held.insert(holder.clone(), has + 1);
        Some(Share {
            held: Arc::clone(&self.held),
            holder: holder.clone(),
        })
    }
}

impl<K: Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut held = self.held.lock();
        if let Some(has) = held.get_mut(&self.holder) {
            *has -= 1;
            if *has == 0 {
                held.remove(&self.holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_holder_has_its_own_and_gives_them_back() {
        let shares = Shares::new(2);
        let (first, second) = (shares.take(&"a"), shares.take(&"a"));
        assert!(first.is_some() && second.is_some());
        assert!(shares.take(&"a").is_none());
        assert!(shares.take(&"b").is_some(), "another holder");
        drop(first);
        let again = shares.take(&"a");
        assert!(again.is_some());
        drop((second, again));
        assert!(shares.held.lock().is_empty(), "nothing is left behind");
    }
}
