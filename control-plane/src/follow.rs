//! From the store to the world: reads everything once, then follows every change.
//!
//! ```text
//! store ──list──► catalog + workloads ──► World ──► Discovery ──► streams
//!   └────watch──► changes, those that wait together as one ──┘
//! ```
//!
//! What cannot be read is not left out, since that could be a policy or the mark that an address
//! is meshed: what a resource said before stays in force, and everything else goes on. After a
//! start nobody knows what it said before: then nothing is served, clients keep what they have,
//! and the rest of the control plane works, so that it can be replaced or deleted. A registration
//! that cannot be read keeps the last world in force.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt;
use heddle_shell::clock;
use tracing::{error, info};

use crate::{
    addresses,
    discovery::{Discovery, sidecars::SIDECARS},
    model::{CONFIG, Catalog, Unreadable},
    registry::{self, Record, WORKLOADS},
    store::{Changes, Event, Revision, Store, StoreError, Watch},
    telemetry::Metrics,
    world::{Mesh, Workload, WorkloadName, World},
};

/// Brings the store's state to the xDS server.
#[derive(Debug)]
pub struct Follower {
    store: Arc<dyn Store>,
    discovery: Arc<Discovery>,
    mesh: Arc<Mesh>,
    metrics: Arc<Metrics>,
    state: State,
}

#[derive(Debug, Default)]
struct State {
    catalog: Arc<Catalog>,
    workloads: Arc<BTreeMap<WorkloadName, Arc<Workload>>>,
    /// Workloads were read at this revision, maybe after the catalog: older changes of theirs are
    /// not news.
    workloads_at: Revision,
    /// Node ids of the sidecars that exist, and when they were read.
    sidecars: Arc<BTreeSet<Arc<str>>>,
    sidecars_at: Revision,
}

/// What changes are about.
#[derive(Clone, Copy, Debug, Default)]
struct News {
    /// Resources, addresses or workloads.
    is_world: bool,
    is_sidecars: bool,
}

impl Follower {
    /// Reads everything and publishes the first world.
    ///
    /// # Errors
    /// [`Unreadable`]; then nothing may be served.
    pub async fn open(
        store: Arc<dyn Store>,
        discovery: Arc<Discovery>,
        mesh: Mesh,
        metrics: Arc<Metrics>,
    ) -> Result<Self, Unreadable> {
        let state = State::load(store.as_ref(), &Catalog::default()).await?;
        let follower = Self {
            store,
            discovery,
            mesh: Arc::new(mesh),
            metrics,
            state,
        };
        follower.publish();
        Ok(follower)
    }

    /// Follows until the store closes.
    pub async fn run(mut self) {
        loop {
            match self.follow().await {
                Unreadable::Store(StoreError::Closed) => return,
                Unreadable::Store(StoreError::Compacted { oldest }) => {
                    info!(%oldest, "changes came faster than they were read; reading everything");
                }
                unreadable => {
                    error!(error = %unreadable, "a change cannot be read; reading everything");
                }
            }
            // What was applied in part is replaced as a whole before anything is published.
            self.state = loop {
                match State::load(self.store.as_ref(), &self.state.catalog).await {
                    Ok(state) => break state,
                    Err(Unreadable::Store(StoreError::Closed)) => return,
                    Err(unreadable) => {
                        error!(error = %unreadable, "the last state stays in force");
                        clock::sleep_until(clock::now() + RETRY).await;
                    }
                }
            };
            self.publish();
        }
    }

    /// Follows until it cannot.
    async fn follow(&mut self) -> Unreadable {
        let watched = self
            .store
            .watch(EVERYTHING, self.state.catalog.revision)
            .await;
        let mut watch = match watched {
            Ok(watch) => watch,
            Err(error) => return error.into(),
        };
        loop {
            if let Err(unreadable) = self.step(&mut watch).await {
                return unreadable;
            }
        }
    }

    /// The next changes: all that are there already are one new world.
    async fn step(&mut self, watch: &mut Watch) -> Result<(), Unreadable> {
        let first = watch.next().await.ok_or(StoreError::Closed)??;
        let mut news = self.state.apply(&first)?;
        for _ in 0..TOGETHER_MAX {
            let Some(Some(changes)) = watch.next().now_or_never() else {
                break;
            };
            let more = self.state.apply(&changes?)?;
            news.is_world |= more.is_world;
            news.is_sidecars |= more.is_sidecars;
        }
        match news {
            News { is_world: true, .. } => self.publish(),
            News {
                is_sidecars: true, ..
            } => self
                .discovery
                .proxies
                .know(Arc::clone(&self.state.sidecars)),
            News { .. } => {}
        }
        Ok(())
    }

    fn publish(&self) {
        // First: who sees the new world knows all that existed before it.
        let sidecars = Arc::clone(&self.state.sidecars);
        self.discovery.proxies.know(sidecars);
        let blind = self.state.catalog.unread().filter(|(_, one)| one.is_blind);
        if let Some((key, unread)) = blind.max_by_key(|(_, one)| one.revision) {
            error!(
                key,
                why = &*unread.why,
                "nothing is served until this is replaced or deleted"
            );
            return;
        }
        let registered = i64::try_from(self.state.workloads.len()).unwrap_or(i64::MAX);
        self.metrics.registrations.set(registered);
        self.discovery.publish(World::new(
            Arc::clone(&self.state.catalog),
            Arc::clone(&self.state.workloads),
            Arc::clone(&self.mesh),
        ));
    }
}

impl State {
    async fn load(store: &dyn Store, previous: &Catalog) -> Result<Self, Unreadable> {
        let catalog = Catalog::load(store, previous).await?;
        let listing = store.list(WORKLOADS).await?;
        let mut workloads = BTreeMap::new();
        for entry in &listing.entries {
            let (name, workload) = registry::read(entry)?;
            workloads.insert(name, Arc::new(workload));
        }
        let sidecars = store.list(SIDECARS).await?;
        let node_ids = sidecars.entries.iter();
        let node_ids = node_ids.filter_map(|entry| entry.key.strip_prefix(SIDECARS));
        Ok(Self {
            catalog: Arc::new(catalog),
            workloads: Arc::new(workloads),
            workloads_at: listing.revision,
            sidecars: Arc::new(node_ids.map(Arc::from).collect()),
            sidecars_at: sidecars.revision,
        })
    }

    /// What the changes are about. After an error the state must not be used.
    fn apply(&mut self, changes: &Changes) -> Result<News, Unreadable> {
        let is_catalog = changes.events.iter().any(|event| {
            event.key().starts_with(CONFIG) || event.key().starts_with(addresses::HOSTS)
        });
        if is_catalog {
            Arc::make_mut(&mut self.catalog).update(changes);
        }
        let mut is_workload = false;
        if changes.revision > self.workloads_at {
            for event in &changes.events {
                if let Some(name) = Record::name(event.key()) {
                    is_workload = true;
                    let workloads = Arc::make_mut(&mut self.workloads);
                    match event {
                        Event::Put(entry) => {
                            let (name, workload) = registry::read(entry)?;
                            workloads.insert(name, Arc::new(workload));
                        }
                        Event::Deleted { .. } => {
                            workloads.remove(&name);
                        }
                    }
                }
            }
        }
        Ok(News {
            is_world: is_catalog || is_workload,
            is_sidecars: self.apply_to_sidecars(changes),
        })
    }

    fn apply_to_sidecars(&mut self, changes: &Changes) -> bool {
        if changes.revision <= self.sidecars_at {
            return false;
        }
        let mut is_changed = false;
        for event in &changes.events {
            let Some(node_id) = event.key().strip_prefix(SIDECARS) else {
                continue;
            };
            let sidecars = Arc::make_mut(&mut self.sidecars);
            is_changed |= match event {
                Event::Put(_) => sidecars.insert(node_id.into()),
                Event::Deleted { .. } => sidecars.remove(node_id),
            };
        }
        is_changed
    }
}

/// One watch over all keys: what was written together arrives together.
const EVERYTHING: &str = "";
/// Revisions that become one world.
const TOGETHER_MAX: usize = 1024;
/// After what cannot be read.
const RETRY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use tempfile::TempDir;

    use super::*;
    use crate::{
        model::{Labels, Resource, ResourceId, Spec, WorkloadEntry},
        store::{
            Transaction,
            redb::{RedbStore, Retention},
        },
        world::tests::Fixture,
    };

    struct Scene {
        store: Arc<dyn Store>,
        discovery: Arc<Discovery>,
        _directory: TempDir,
    }

    impl Scene {
        fn new() -> Self {
            let directory = TempDir::new().unwrap();
            let path = directory.path().join("store.redb");
            Self {
                store: Arc::new(RedbStore::open(&path, Retention::default()).unwrap()),
                discovery: Discovery::new(Metrics::new()),
                _directory: directory,
            }
        }

        async fn open(&self) -> Follower {
            let store = Arc::clone(&self.store);
            let discovery = Arc::clone(&self.discovery);
            let mesh = Fixture::empty().mesh;
            Follower::open(store, discovery, mesh, Metrics::new())
                .await
                .unwrap()
        }

        /// Writes, and has it followed.
        async fn write(&self, follower: &mut Follower, transaction: Transaction) {
            let at = follower.state.catalog.revision;
            let mut watch = self.store.watch(EVERYTHING, at).await.unwrap();
            self.store.commit(transaction).await.unwrap();
            follower.step(&mut watch).await.unwrap();
        }

        /// Addresses of the served `WorkloadEntry` resources; `None` when nothing is served.
        fn served(&self) -> Option<Vec<IpAddr>> {
            let world = self.discovery.compiler()?.world();
            let entries = world.catalog.iter().filter_map(|(_, stored)| {
                let Spec::WorkloadEntry(entry) = &stored.resource.spec else {
                    return None;
                };
                Some(entry.address)
            });
            Some(entries.collect())
        }
    }

    fn id(name: &str) -> ResourceId {
        ResourceId {
            kind: crate::model::Kind::WorkloadEntry,
            namespace: "shop".to_owned(),
            name: name.to_owned(),
        }
    }

    /// An entry at 10.0.0.`last`.
    fn entry(name: &str, last: u8) -> Transaction {
        let resource = Resource {
            id: id(name),
            labels: Labels::new(),
            annotations: Labels::new(),
            spec: Spec::WorkloadEntry(WorkloadEntry {
                address: address(last),
                ports: BTreeMap::new(),
                labels: Labels::new(),
                weight: None,
                service_account: None,
            }),
        };
        let record = crate::model::Record {
            written_at_ms: 1,
            written_by: "x".to_owned(),
            json: Some(resource.to_json()),
        };
        Transaction::default().put(id(name).key(), record.to_bytes())
    }

    fn damage(name: &str) -> Transaction {
        Transaction::default().put(id(name).key(), "{")
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[tokio::test]
    async fn what_cannot_be_read_keeps_what_it_said_and_stops_nothing_else() {
        let scene = Scene::new();
        let mut follower = scene.open().await;
        scene.write(&mut follower, entry("a", 1)).await;
        scene.write(&mut follower, damage("a")).await;
        scene.write(&mut follower, entry("b", 2)).await;
        assert_eq!(scene.served(), Some(vec![address(1), address(2)]));
        let gone = Transaction::default().delete(id("a").key());
        scene.write(&mut follower, gone).await;
        assert_eq!(scene.served(), Some(vec![address(2)]));
    }

    #[tokio::test]
    async fn after_a_start_nothing_is_served_until_it_is_replaced_or_deleted() {
        let scene = Scene::new();
        scene.store.commit(entry("b", 2)).await.unwrap();
        scene.store.commit(damage("a")).await.unwrap();
        scene.store.commit(damage("c")).await.unwrap();
        let mut follower = scene.open().await;
        assert_eq!(scene.served(), None);
        scene.write(&mut follower, entry("a", 1)).await;
        assert_eq!(scene.served(), None);
        let gone = Transaction::default().delete(id("c").key());
        scene.write(&mut follower, gone).await;
        assert_eq!(scene.served(), Some(vec![address(1), address(2)]));
    }
}
