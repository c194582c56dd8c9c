//! One writer, many readers, no lock per read: readers compare a generation number and reuse
//! their cached `Arc`.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use parking_lot::RwLock;
use tokio::sync::watch;

/// A value that is replaced as a whole.
#[derive(Debug)]
pub struct Published<T> {
    current: RwLock<Arc<T>>,
    generation: AtomicU64,
    /// Wakes those that wait for a change; readers on the request path never touch it.
    changed: watch::Sender<u64>,
}

/// A reader with its own copy of the `Arc`.
#[derive(Debug)]
pub struct Reader<T> {
    source: Arc<Published<T>>,
    cached: Arc<T>,
    generation: u64,
}

impl<T> Published<T> {
    /// Starts with `value`.
    pub fn new(value: T) -> Arc<Self> {
        Arc::new(Self {
            current: RwLock::new(Arc::new(value)),
            generation: AtomicU64::new(0),
            changed: watch::Sender::new(0),
        })
    }

    /// Replaces the value. Build it before calling: the lock covers one pointer store.
    pub fn publish(&self, value: Arc<T>) {
        let generation = {
            let mut current = self.current.write();
            *current = value;
            // Under the lock, so that two writers cannot leave a reader with the older value
            // under the newer number.
            self.generation.fetch_add(1, Ordering::Release) + 1
        };
        self.changed.send_replace(generation);
    }

    /// The current value, for callers that come rarely.
    pub fn load(&self) -> Arc<T> {
        Arc::clone(&self.current.read())
    }

    /// A reader for a caller that comes often.
    pub fn reader(self: &Arc<Self>) -> Reader<T> {
        // The generation first: a value that arrives in between is then read again, never missed.
        let generation = self.generation.load(Ordering::Acquire);
        Reader {
            source: Arc::clone(self),
            cached: self.load(),
            generation,
        }
    }

    /// Told of every later change; several changes may be told as one.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

impl<T> Reader<T> {
    /// The current value. Touches shared memory only to compare generations.
    pub fn get(&mut self) -> &Arc<T> {
        let generation = self.source.generation.load(Ordering::Acquire);
        if generation != self.generation {
            self.cached = self.source.load();
            self.generation = generation;
        }
        &self.cached
    }
}

impl<T> Clone for Reader<T> {
    fn clone(&self) -> Self {
        Self {
            source: Arc::clone(&self.source),
            cached: Arc::clone(&self.cached),
            generation: self.generation,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_sees_the_newest_value_and_keeps_it() {
        let published = Published::new(1);
        let mut reader = published.reader();
        assert_eq!(**reader.get(), 1);
        published.publish(Arc::new(2));
        published.publish(Arc::new(3));
        assert_eq!(**reader.get(), 3);
        assert!(Arc::ptr_eq(&reader.get().clone(), &published.load()));
    }

    #[tokio::test]
    async fn a_subscriber_is_told_of_a_change() {
        let published = Published::new(1);
        let mut changed = published.subscribe();
        published.publish(Arc::new(2));
        changed.changed().await.unwrap();
        assert_eq!(*published.load(), 2);
    }

    #[test]
    fn readers_on_other_threads_never_go_back() {
        let published = Published::new(0u64);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let mut reader = published.reader();
                scope.spawn(move || {
                    let mut last = 0;
                    while last < 10_000 {
                        let value = **reader.get();
                        assert!(value >= last);
                        last = value;
                    }
                });
            }
            for value in 1..=10_000 {
                published.publish(Arc::new(value));
            }
        });
    }
}
