//! All desired state at one revision of the store, indexed for readers.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    slice,
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::error;

use super::{
    CONFIG, DestinationRule, Fault, Host, Kind, Resource, ResourceId, ServiceEntry, Spec,
    VirtualService,
};
use crate::{
    addresses,
    store::{Changes, Entry, Event, Revision, Store, StoreError},
};

/// All resources at one revision. Cheap to clone: resources are shared.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// The store's revision it was read at.
    pub revision: Revision,
    resources: BTreeMap<ResourceId, Stored>,
    services: HashMap<Host, ResourceId>,
    routes: HashMap<Host, ResourceId>,
    rules: HashMap<Host, ResourceId>,
    /// What was allotted, by host.
    numbers: HashMap<Host, u16>,
    addresses: HashMap<Host, [IpAddr; 2]>,
    /// Deleted resources whose history is kept.
    tombstones: BTreeMap<ResourceId, Revision>,
    /// By key of the store.
    unread: BTreeMap<Arc<str>, Unread>,
}

/// What the store holds under one key and we cannot read: it was written by a version with other
/// rules, or is damaged. Until it is replaced or deleted, what the key held before stays in force.
#[derive(Clone, Debug)]
pub struct Unread {
    /// Revision of its last write.
    pub revision: Revision,
    /// What is wrong with it.
    pub why: Arc<str>,
    /// It as it is; what is no text is shown as good as it can be.
    pub text: Arc<str>,
    /// Nobody here knows what the key held before: whatever is made of this catalog may lack a
    /// policy, or the mark that an address is meshed.
    pub is_blind: bool,
}

/// What the store holds under a resource's key. A deletion is written, not done, so that its
/// author and its time are as durable as those of any other change.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Record {
    /// Milliseconds since the Unix epoch.
    pub written_at_ms: i64,
    /// A SPIFFE id, or `administrator`.
    pub written_by: String,
    /// The canonical form. `None`: deleted.
    pub json: Option<String>,
}

/// Why the store's content could not be read.
#[derive(Debug, Error)]
pub enum Unreadable {
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What it holds is not ours, or of a version with other rules.
    #[error("stored {key} cannot be read; was it written by another version? {why}")]
    Record {
        /// Where it is.
        key: String,
        /// What is wrong.
        why: String,
    },
}

/// A resource as it was stored.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The resource.
    pub resource: Arc<Resource>,
    /// Revision of its last write.
    pub revision: Revision,
    /// When that happened, in milliseconds since the Unix epoch.
    pub written_at_ms: i64,
    /// Who did it: a SPIFFE id, or `administrator`.
    pub written_by: Arc<str>,
}

impl Record {
    /// Reads what is under a resource's key.
    ///
    /// # Errors
    /// [`Unreadable::Record`].
    pub fn read(entry: &Entry) -> Result<Self, Unreadable> {
        serde_json::from_slice(&entry.value).map_err(|error| Unreadable::Record {
            key: entry.key.to_string(),
            why: error.to_string(),
        })
    }

    /// For the store.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts and a number always serialize")
    }
}

impl Catalog {
    /// Reads everything. What `previous` has of it is not decoded again.
    ///
    /// A watch from [`Catalog::revision`] with [`Catalog::update`] continues without a gap.
    ///
    /// # Errors
    /// The store's. What it holds and cannot be read is [`Unread`].
    pub async fn load(store: &dyn Store, previous: &Self) -> Result<Self, StoreError> {
        let config = store.list(CONFIG).await?;
        let allotted = store.list(addresses::HOSTS).await?;
        let mut catalog = Self {
            revision: config.revision,
            ..Self::default()
        };
        let is_first = previous.revision == Revision(0);
        for entry in config.entries.iter().chain(&allotted.entries) {
            catalog.take(entry, previous, is_first);
        }
        Ok(catalog)
    }

    /// Applies changes of any keys; those it does not know are skipped. Applying them twice is
    /// the same as once.
    pub fn update(&mut self, changes: &Changes) {
        let none = Self::default();
        for event in &changes.events {
            match event {
                Event::Put(entry) => self.take(entry, &none, false),
                Event::Deleted { key, .. } => self.forget(key),
            }
        }
        self.revision = self.revision.max(changes.revision);
    }

    /// Takes what is under a key; when that cannot be read, what was there before.
    fn take(&mut self, entry: &Entry, previous: &Self, is_first: bool) {
        let Err(unreadable) = self.read(entry, previous) else {
            self.unread.remove(&entry.key);
            return;
        };
        let key = &entry.key;
        let before = previous.unread.get(key).or_else(|| self.unread.get(key));
        let is_blind = before.map_or(is_first, |before| before.is_blind);
        if before.is_none_or(|before| before.revision != entry.modified) {
            error!(
                %key,
                error = %unreadable,
                "what it held before stays in force until it is replaced or deleted"
            );
        }
        let record = Record::read(entry).ok().and_then(|record| record.json);
        let text = record.unwrap_or_else(|| String::from_utf8_lossy(&entry.value).into_owned());
        let unread = Unread {
            revision: entry.modified,
            why: unreadable.to_string().into(),
            text: text.into(),
            is_blind,
        };
        if let Some(id) = ResourceId::from_key(key) {
            self.tombstones.remove(&id);
            if let Some(known) = previous.get(&id) {
                self.insert(known.clone());
            }
        }
        self.unread.insert(Arc::clone(key), unread);
    }

    fn read(&mut self, entry: &Entry, previous: &Self) -> Result<(), Unreadable> {
        let unreadable = |why: String| Unreadable::Record {
            key: entry.key.to_string(),
            why,
        };
        if let Some(host) = entry.key.strip_prefix(addresses::HOSTS) {
            let host = Host::qualified(host, "").ok_or_else(|| unreadable("not a host".into()))?;
            let number = str::from_utf8(&entry.value)
                .ok()
                .and_then(|n| n.parse().ok());
            let number = number.ok_or_else(|| unreadable("not a number".into()))?;
            self.allot(host, number);
            return Ok(());
        }
        let Some(id) = ResourceId::from_key(&entry.key) else {
            return match entry.key.strip_prefix(CONFIG) {
                Some(_) => Err(unreadable("its kind is unknown".into())),
                None => Ok(()),
            };
        };
        let known = previous.get(&id);
        if let Some(known) = known.filter(|known| known.revision == entry.modified) {
            self.insert(known.clone());
            return Ok(());
        }
        let record = Record::read(entry)?;
        let Some(json) = record.json else {
            self.remove(&id);
            self.tombstones.insert(id, entry.modified);
            return Ok(());
        };
        let resource =
            Resource::from_json(&json).map_err(|fault: Fault| unreadable(fault.to_string()))?;
        self.insert(Stored {
            resource: Arc::new(resource),
            revision: entry.modified,
            written_at_ms: record.written_at_ms,
            written_by: record.written_by.into(),
        });
        Ok(())
    }

    fn forget(&mut self, key: &str) {
        if let Some(host) = key.strip_prefix(addresses::HOSTS) {
            self.release(host);
        } else if let Some(id) = ResourceId::from_key(key) {
            self.remove(&id);
            self.tombstones.remove(&id);
        }
        self.unread.remove(key);
    }

    /// What cannot be read, by key of the store.
    pub fn unread(&self) -> impl Iterator<Item = (&str, &Unread)> {
        self.unread.iter().map(|(key, unread)| (&**key, unread))
    }

    /// The text of a resource that cannot be read.
    pub fn unread_at(&self, id: &ResourceId) -> Option<&Unread> {
        self.unread.get(&*id.key())
    }

    /// Revision of a resource's last write, whether it can be read or not.
    pub fn revision_of(&self, id: &ResourceId) -> Option<Revision> {
        let unread = self.unread_at(id).map(|unread| unread.revision);
        unread.or_else(|| self.get(id).map(|stored| stored.revision))
    }

    /// Deleted resources whose history is kept, with the revision of their deletion.
    pub fn tombstones(&self) -> impl Iterator<Item = (&ResourceId, Revision)> {
        self.tombstones.iter().map(|(id, revision)| (id, *revision))
    }

    /// Every resource, by kind, namespace and name.
    pub fn iter(&self) -> impl Iterator<Item = (&ResourceId, &Stored)> {
        self.resources.iter()
    }

    /// Every resource of a kind in a namespace, by name.
    pub fn of(
        &self,
        kind: Kind,
        namespace: &str,
    ) -> impl Iterator<Item = (&ResourceId, &Stored)> + use<'_> {
        let first = ResourceId {
            kind,
            namespace: namespace.to_owned(),
            name: String::new(),
        };
        let namespace = namespace.to_owned();
        let is_of = move |id: &ResourceId| id.kind == kind && id.namespace == namespace;
        self.resources
            .range(first..)
            .take_while(move |(id, _)| is_of(id))
    }

    /// One resource.
    pub fn get(&self, id: &ResourceId) -> Option<&Stored> {
        self.resources.get(id)
    }

    /// The one service of a host, with its id.
    pub fn service(&self, host: &str) -> Option<(&ResourceId, &ServiceEntry)> {
        match self.by_host(&self.services, host)? {
            (id, Spec::ServiceEntry(service)) => Some((id, service)),
            _ => None,
        }
    }

    /// The one `VirtualService` of a host, with its id.
    pub fn routes(&self, host: &str) -> Option<(&ResourceId, &VirtualService)> {
        match self.by_host(&self.routes, host)? {
            (id, Spec::VirtualService(routes)) => Some((id, routes)),
            _ => None,
        }
    }

    /// The one `DestinationRule` of a host, with its id.
    pub fn rule(&self, host: &str) -> Option<(&ResourceId, &DestinationRule)> {
        match self.by_host(&self.rules, host)? {
            (id, Spec::DestinationRule(rule)) => Some((id, rule)),
            _ => None,
        }
    }

    /// Where clients dial a host: what its service lists, else what was allotted.
    pub fn addresses_of(&self, host: &str) -> &[IpAddr] {
        match self.service(host) {
            Some((_, service)) if !service.addresses.is_empty() => &service.addresses,
            Some(_) => self
                .addresses
                .get(host)
                .map_or(&[], <[IpAddr; 2]>::as_slice),
            None => &[],
        }
    }

    /// Adds or replaces a resource.
    pub fn insert(&mut self, stored: Stored) {
        let id = stored.resource.id.clone();
        self.remove(&id);
        if let Some((index, hosts)) = self.index(&stored.resource.spec) {
            index.extend(hosts.iter().map(|host| (host.clone(), id.clone())));
        }
        self.tombstones.remove(&id);
        self.unread.remove(&*id.key());
        self.resources.insert(id, stored);
    }

    /// Takes a resource out, be it one that cannot be read. `false`: there is none.
    pub fn delete(&mut self, id: &ResourceId) -> bool {
        let unread = self.unread.remove(&*id.key());
        self.remove(id).is_some() || unread.is_some()
    }

    /// Takes a resource out.
    pub fn remove(&mut self, id: &ResourceId) -> Option<Stored> {
        let stored = self.resources.remove(id)?;
        if let Some((index, hosts)) = self.index(&stored.resource.spec) {
            for host in hosts {
                if index.get(host) == Some(id) {
                    index.remove(host);
                }
            }
        }
        Some(stored)
    }

    /// Notes what was allotted to a host without addresses.
    pub fn allot(&mut self, host: Host, number: u16) {
        self.numbers.insert(host.clone(), number);
        self.addresses.insert(host, addresses::addresses(number));
    }

    /// Forgets what was allotted to a host.
    pub fn release(&mut self, host: &str) {
        self.numbers.remove(host);
        self.addresses.remove(host);
    }

    /// Every allotment, by host.
    pub fn allotments(&self) -> impl Iterator<Item = (&Host, u16)> {
        self.numbers.iter().map(|(host, number)| (host, *number))
    }

    /// Which index knows a resource, and under which hosts.
    fn index<'a>(
        &mut self,
        spec: &'a Spec,
    ) -> Option<(&mut HashMap<Host, ResourceId>, &'a [Host])> {
        match spec {
            Spec::ServiceEntry(service) => Some((&mut self.services, &service.hosts)),
            Spec::VirtualService(routes) => Some((&mut self.routes, &routes.hosts)),
            Spec::DestinationRule(rule) => Some((&mut self.rules, slice::from_ref(&rule.host))),
            Spec::AuthorizationPolicy(_) | Spec::PeerAuthentication(_) | Spec::WorkloadEntry(_) => {
                None
            }
        }
    }

    fn by_host<'a>(
        &'a self,
        index: &'a HashMap<Host, ResourceId>,
        host: &str,
    ) -> Option<(&'a ResourceId, &'a Spec)> {
        let (id, stored) = self.resources.get_key_value(index.get(host)?)?;
        Some((id, &stored.resource.spec))
    }
}
