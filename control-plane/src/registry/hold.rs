//! Which stream holds which name, in this process.

use std::collections::HashMap;

use heddle_policy::spiffe::SpiffeId;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tonic::Status;

use super::taken;
use crate::world::WorkloadName;

/// Every held name.
#[derive(Debug, Default)]
pub struct Holds(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    next: u64,
    by_name: HashMap<WorkloadName, Holder>,
}

#[derive(Debug)]
struct Holder {
    number: u64,
    identity: SpiffeId,
    /// Tells its stream why it ends.
    end: oneshot::Sender<Status>,
}

/// A stream's hold of a name; let go of when dropped.
#[derive(Debug)]
pub(crate) struct Hold<'a> {
    holds: &'a Holds,
    name: WorkloadName,
    number: u64,
    /// Whether no other stream held the name at that moment.
    pub(super) is_first: bool,
}

impl Holds {
    /// Takes a name, from an older stream of the same identity too, which is then told to end.
    ///
    /// # Errors
    /// PERMISSION_DENIED when it is another identity's.
    pub(crate) fn take(
        &self,
        name: &WorkloadName,
        identity: &SpiffeId,
    ) -> Result<(Hold<'_>, oneshot::Receiver<Status>), Status> {
        let mut state = self.0.lock();
        if let Some(holder) = state.by_name.get(name)
            && holder.identity != *identity
        {
            return Err(taken(name, holder.identity.as_str()));
        }
        state.next += 1;
        let number = state.next;
        let (end, ended) = oneshot::channel();
        let holder = Holder {
            number,
            identity: identity.clone(),
            end,
        };
        let before = state.by_name.insert(name.clone(), holder);
        let is_first = before.is_none();
        if let Some(before) = before {
            // It may be at its end already.
            let _ended = before
                .end
                .send(Status::aborted("a newer stream holds the registration"));
        }
        let hold = Hold {
            holds: self,
            name: name.clone(),
            number,
            is_first,
        };
        Ok((hold, ended))
    }

    /// Ends the stream that holds a name, if there is one.
    pub(super) fn end(&self, name: &WorkloadName, why: Status) {
        if let Some(holder) = self.0.lock().by_name.remove(name) {
            // It may be at its end already.
            let _ended = holder.end.send(why);
        }
    }

    /// Whether a stream holds a name.
    pub fn contains(&self, name: &WorkloadName) -> bool {
        self.0.lock().by_name.contains_key(name)
    }
}

impl Hold<'_> {
    /// Whether no newer stream has taken the name.
    pub(super) fn is_held(&self) -> bool {
        let state = self.holds.0.lock();
        let holder = state.by_name.get(&self.name);
        holder.is_some_and(|holder| holder.number == self.number)
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let mut state = self.holds.0.lock();
        let holder = state.by_name.get(&self.name);
        if holder.is_some_and(|holder| holder.number == self.number) {
            state.by_name.remove(&self.name);
        }
    }
}
