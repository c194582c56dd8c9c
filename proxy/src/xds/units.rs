//! Accepted resources, joined and published as units (gRFC A74). Pure: `now` is an argument.
//!
//! A destination changes from one complete version to the next. While something that its new
//! version gives weight to has not come, the old version serves on; after [`HOLD`] the new one is
//! published with only the missing clusters unroutable.
//!
//! ```text
//!  demanded ──► pending ──listener──► held ──complete, or 5 s──► published ──idle──► forgotten
//!                  └──no such listener──► absent (60 s)
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use heddle_policy::snapshot::{
    Destination, DestinationKey, Inbound, Outbound, Snapshot,
    xds::{
        DestinationListener, Listener, MESH_INBOUND, MESH_OUTBOUND, Piece, Pieces, ResourceName,
        ResourceType,
    },
};

/// How long a new version waits for what it needs.
pub const HOLD: Duration = Duration::from_secs(5);

/// How long a resource that nothing uses is kept: what a listener depends on may come before it.
/// A listener is not kept: it never comes unasked, and while it is subscribed without being held
/// nobody would ask for it again.
const STRAY: Duration = Duration::from_secs(5);

/// How long "there is no such destination" is remembered after it was said.
const ABSENT: Duration = Duration::from_secs(60);

/// Destinations known to be absent; beyond it the oldest is forgotten.
const ABSENT_MAX: usize = 1024;

/// Destinations at once, those asked for and not answered included.
pub const DESTINATIONS_MAX: usize = 4096;

/// Everything accepted and what is made of it.
#[derive(Debug, Default)]
pub struct Units {
    pieces: Pieces,
    /// Accepted version of each piece.
    versions: HashMap<ResourceName, Arc<str>>,
    /// Version of each resource that is in the published snapshot.
    active: BTreeMap<ResourceName, Arc<str>>,
    /// What each destination's newest listener needs.
    uses: HashMap<DestinationKey, BTreeSet<ResourceName>>,
    /// Asked for, not answered.
    pending: BTreeSet<DestinationKey>,
    /// Incomplete, and since when.
    held: BTreeMap<DestinationKey, Held>,
    /// Said to be absent, and when.
    absent: BTreeMap<DestinationKey, Instant>,
    /// Removed by the control plane but still used: they live until no route names them.
    doomed: BTreeSet<ResourceName>,
    /// Said by the control plane not to exist.
    unknown: BTreeSet<ResourceName>,
    /// Used by nothing, and since when.
    strays: BTreeMap<ResourceName, Instant>,
    /// Changed since the last settlement.
    dirty: BTreeSet<ResourceName>,
    destinations: HashMap<DestinationKey, Arc<Destination>>,
    outbound: Option<Arc<Outbound>>,
    inbound: Option<Arc<Inbound>>,
    /// Whether the maps above differ from the last snapshot.
    is_changed: bool,
    generation: u64,
}

#[derive(Debug, Default)]
struct Held {
    /// By name, a cluster and its endpoints being one; and since when. Each waits for itself, so
    /// that a version that names something new is held however long others were.
    missing: BTreeMap<Arc<str>, Instant>,
    /// The hold has ended: published without what is missing.
    is_published: bool,
}

impl Held {
    fn note(&mut self, missing: &BTreeSet<ResourceName>, now: Instant) {
        let is_missing = |name: &Arc<str>| missing.iter().any(|missing| missing.name == *name);
        self.missing.retain(|name, _| is_missing(name));
        for resource in missing {
            if !self.missing.contains_key(&resource.name) {
                self.missing.insert(Arc::clone(&resource.name), now);
                self.is_published = false;
            }
        }
    }

    /// When everything that is missing has been waited for.
    fn ends(&self) -> Option<Instant> {
        self.missing.values().max().map(|since| *since + HOLD)
    }
}

/// What a settlement asks of the shell.
#[derive(Debug, Default)]
pub struct Settled {
    /// To publish, when something changed.
    pub snapshot: Option<Snapshot>,
    /// To subscribe to.
    pub want: Vec<ResourceName>,
    /// To unsubscribe from; already forgotten here.
    pub unwant: Vec<ResourceName>,
    /// Destinations whose hold ended, with what is missing.
    pub incomplete: Vec<(DestinationKey, BTreeSet<ResourceName>)>,
}

impl Units {
    /// Takes an accepted resource.
    pub fn accept(&mut self, name: ResourceName, version: Arc<str>, piece: Piece) {
        self.doomed.remove(&name);
        self.unknown.remove(&name);
        self.versions.insert(name.clone(), version);
        if let Piece::Listener(listener) = &piece {
            match listener {
                Listener::Outbound(outbound) => self.outbound = Some(Arc::clone(outbound)),
                Listener::Inbound(inbound) => self.inbound = Some(Arc::clone(inbound)),
                Listener::Destination(destination) => {
                    self.pending.remove(&destination.key);
                    self.absent.remove(&destination.key);
                }
            }
            self.is_changed = true;
        }
        self.pieces.insert(piece);
        self.dirty.insert(name);
    }

    /// Takes the control plane's word that a resource does not exist (any more).
    pub fn remove(&mut self, name: ResourceName, now: Instant) {
        self.unknown.insert(name.clone());
        self.dirty.insert(name.clone());
        match name.kind {
            // The workload's own protection does not end because somebody lost it.
            ResourceType::Listener if is_eager(&name) => {}
            ResourceType::Listener => {
                if let Some(key) = DestinationKey::from_listener_name(&name.name) {
                    self.drop_destination(&key);
                    self.absent.insert(key, now);
                    self.is_changed = true;
                }
            }
            ResourceType::Route | ResourceType::Cluster | ResourceType::Endpoints => {
                if self.pieces.contains(&name) {
                    self.doomed.insert(name);
                }
            }
        }
    }

    /// Notes that the workload dials `key`; `false` when there is no room for another one.
    pub fn demand(&mut self, key: &DestinationKey) -> bool {
        if self.is_known(key) || self.pending.contains(key) {
            return true;
        }
        if self.len() >= DESTINATIONS_MAX {
            return false;
        }
        self.pending.insert(key.clone());
        true
    }

    /// Forgets a destination: it is idle, or has to make room. Says which resources it had.
    pub fn forget(&mut self, key: &DestinationKey) -> BTreeSet<ResourceName> {
        let used = self.uses.get(key).cloned().unwrap_or_default();
        self.drop_destination(key);
        self.is_changed = true;
        // Those that are shared stay; the sweep finds the rest unused.
        used
    }

    /// Joins, publishes and sweeps. `subscribed` is what the stream has.
    pub fn settle(&mut self, subscribed: &BTreeSet<ResourceName>, now: Instant) -> Settled {
        let mut settled = Settled::default();
        self.expire_absent(now);
        for listener in self.affected(now) {
            self.join(&listener, now, &mut settled);
        }
        self.dirty.clear();
        self.sweep(subscribed, now, &mut settled);
        if std::mem::take(&mut self.is_changed) {
            self.generation += 1;
            self.note_eager_active();
            settled.snapshot = Some(Snapshot {
                generation: self.generation,
                outbound: self.outbound.clone(),
                destinations: self.destinations.clone(),
                absent: self.absent.keys().cloned().collect(),
                inbound: self.inbound.clone(),
            });
        }
        settled
    }

    /// When [`Units::settle`] has something to do although nothing came.
    pub fn deadline(&self) -> Option<Instant> {
        let holds = self
            .held
            .values()
            .filter(|held| !held.is_published)
            .filter_map(Held::ends);
        let strays = self.strays.values().map(|since| *since + STRAY);
        let absent = self.absent.values().map(|since| *since + ABSENT);
        holds.chain(strays).chain(absent).min()
    }

    /// Whether `key` is published or known to be absent.
    pub fn is_known(&self, key: &DestinationKey) -> bool {
        self.destinations.contains_key(key) || self.absent.contains_key(key)
    }

    /// Whether an accepted version of it is at hand.
    pub fn holds(&self, name: &ResourceName) -> bool {
        self.pieces.contains(name)
    }

    /// Active versions, for the status report.
    pub fn active(&self) -> &BTreeMap<ResourceName, Arc<str>> {
        &self.active
    }

    /// Destinations, those asked for and not answered included.
    pub fn len(&self) -> usize {
        self.destinations.len() + self.pending.len()
    }

    /// Whether there is no destination.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Destinations that wait for something.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    fn drop_destination(&mut self, key: &DestinationKey) {
        self.destinations.remove(key);
        self.uses.remove(key);
        self.held.remove(key);
        self.pending.remove(key);
        let name = listener(key);
        self.pieces.remove(&name);
        self.versions.remove(&name);
        self.active.remove(&name);
    }

    fn expire_absent(&mut self, now: Instant) {
        let before = self.absent.len();
        self.absent
            .retain(|_, since| now.saturating_duration_since(*since) < ABSENT);
        while self.absent.len() > ABSENT_MAX {
            let oldest = self.absent.iter().min_by_key(|(_, since)| **since);
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else {
                break;
            };
            self.absent.remove(&oldest);
        }
        self.is_changed |= self.absent.len() != before;
    }

    /// Listeners of destinations that may look different now.
    fn affected(&self, now: Instant) -> Vec<Arc<DestinationListener>> {
        let is_affected = |listener: &DestinationListener| {
            let is_over =
                |held: &Held| !held.is_published && held.ends().is_none_or(|ends| now >= ends);
            match self.uses.get(&listener.key) {
                None => true,
                Some(used) => {
                    used.iter().any(|name| self.dirty.contains(name))
                        || self.held.get(&listener.key).is_some_and(is_over)
                }
            }
        };
        self.pieces
            .listeners()
            .filter_map(|listener| match listener {
                Listener::Destination(destination) => Some(destination),
                Listener::Outbound(_) | Listener::Inbound(_) => None,
            })
            .filter(|listener| is_affected(listener))
            .cloned()
            .collect()
    }

    fn join(&mut self, listener: &DestinationListener, now: Instant, settled: &mut Settled) {
        let key = &listener.key;
        let used = self.pieces.used_by(listener);
        let assembly = self.pieces.assemble(listener);
        let is_complete = assembly.missing.is_empty();
        if is_complete {
            self.held.remove(key);
            for name in &used {
                if let Some(version) = self.versions.get(name) {
                    self.active.insert(name.clone(), Arc::clone(version));
                }
            }
        } else {
            let is_new = !self.destinations.contains_key(key);
            let is_hopeless = assembly.missing.is_subset(&self.unknown);
            let held = self.held.entry(key.clone()).or_default();
            held.note(&assembly.missing, now);
            let is_over = held.ends().is_none_or(|ends| now >= ends);
            if is_over && !held.is_published {
                settled
                    .incomplete
                    .push((key.clone(), assembly.missing.clone()));
                held.is_published = true;
            }
            // A first version has nothing to hold on to: rather some routes than none, once it is
            // known that no more will come.
            if !(is_over || is_new && is_hopeless) {
                self.uses.insert(key.clone(), used);
                return;
            }
        }
        self.uses.insert(key.clone(), used);
        if let Some(destination) = assembly.destination {
            self.destinations.insert(key.clone(), destination);
            self.is_changed = true;
        }
    }

    /// Subscriptions follow use.
    fn sweep(&mut self, subscribed: &BTreeSet<ResourceName>, now: Instant, settled: &mut Settled) {
        let mut used = BTreeSet::from([eager(MESH_OUTBOUND), eager(MESH_INBOUND)]);
        used.extend(self.uses.values().flatten().cloned());
        used.extend(self.pending.iter().chain(self.absent.keys()).map(listener));
        settled.want.extend(used.difference(subscribed).cloned());
        for name in subscribed.difference(&used) {
            let since = *self.strays.entry(name.clone()).or_insert(now);
            let is_over = now.saturating_duration_since(since) >= STRAY;
            if is_over || name.kind == ResourceType::Listener {
                settled.unwant.push(name.clone());
            }
        }
        self.strays
            .retain(|name, _| subscribed.contains(name) && !used.contains(name));
        let dead = self.doomed.difference(&used).cloned();
        let dead: Vec<ResourceName> = dead.chain(settled.unwant.iter().cloned()).collect();
        for name in dead {
            self.pieces.remove(&name);
            self.versions.remove(&name);
            self.active.remove(&name);
            self.doomed.remove(&name);
            self.strays.remove(&name);
        }
        self.unknown.retain(|name| used.contains(name));
    }

    fn note_eager_active(&mut self) {
        for name in [eager(MESH_OUTBOUND), eager(MESH_INBOUND)] {
            if let Some(version) = self.versions.get(&name) {
                self.active.insert(name, Arc::clone(version));
            }
        }
    }
}

/// Whether it is subscribed from the start.
pub fn is_eager(name: &ResourceName) -> bool {
    *name.name == *MESH_OUTBOUND || *name.name == *MESH_INBOUND
}

fn eager(name: &str) -> ResourceName {
    ResourceName {
        kind: ResourceType::Listener,
        name: name.into(),
    }
}

/// The listener behind a key.
pub fn listener(key: &DestinationKey) -> ResourceName {
    ResourceName {
        kind: ResourceType::Listener,
        name: key.listener_name().into(),
    }
}

#[cfg(test)]
mod tests;
