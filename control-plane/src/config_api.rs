//! `heddle.v1.Config`: the only way into desired state.
//!
//! ```text
//! documents ─► decode ─► check together ─► compile (`Validate`) ─► one transaction
//!                 │            │                  │                    │ somebody else wrote:
//!                 └── all faults, nothing applied ┘                    └─ read again, judge again
//! ```
//!
//! [`Desired`] is the part without gRPC, which `heddle.v1.Traffic` writes through as well.

mod desired;
mod faults;

use std::{pin::Pin, sync::Arc};

use futures_util::Stream;
use heddle_proto::v1::{self, audit_event::Action, config_server::Config};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

pub use self::{
    desired::{Applied, Change, Changed, Desired, Refusal, Validate, WriteOutcome},
    faults::faults_of,
};
use crate::{
    audit,
    authn::Session,
    model::{CONFIG, Fault, Kind, Record, ResourceId, document},
    page,
    store::{Changes, Event, Revision, StoreError},
};

/// The service.
#[derive(Debug)]
pub struct ConfigService {
    desired: Arc<Desired>,
}

impl ConfigService {
    /// A service over desired state.
    pub fn new(desired: Arc<Desired>) -> Self {
        Self { desired }
    }
}

#[tonic::async_trait]
impl Config for ConfigService {
    async fn apply(
        &self,
        request: Request<v1::ApplyRequest>,
    ) -> Result<Response<v1::ApplyResponse>, Status> {
        let who = Session::of(&request)?.caller.name().to_owned();
        let request = request.into_inner();
        let namespace = match request.default_namespace.as_str() {
            "" => DEFAULT_NAMESPACE,
            namespace => namespace,
        };
        let mut faults = Vec::new();
        let mut documents = Vec::new();
        for text in &request.documents {
            documents.extend(document::parse(
                &text.file,
                &text.text,
                namespace,
                &mut faults,
            ));
        }
        faults.extend(duplicates(&documents));
        if documents.len() > DOCUMENTS_MAX {
            return Err(Status::invalid_argument(format!(
                "a request may have at most {DOCUMENTS_MAX} resources"
            )));
        }
        if !faults.is_empty() {
            return Err(Refusal::Faults(faults).into());
        }
        let mut expectations = Vec::new();
        for expectation in &request.expectations {
            let id = id_of(expectation.r#ref.as_ref())?;
            expectations.push((id, Revision(expectation.revision)));
        }
        let change = Change {
            who,
            documents,
            deletions: Vec::new(),
            expectations,
            dry_run: request.dry_run,
        };
        let outcome = self.desired.change(&change).await?;
        Ok(Response::new(v1::ApplyResponse {
            applied: outcome.applied.into_iter().map(Into::into).collect(),
            revision: outcome.revision.0,
        }))
    }

    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::Resource>, Status> {
        let id = id_of(request.get_ref().r#ref.as_ref())?;
        let entry = self
            .desired
            .store()
            .get(&id.key())
            .await
            .map_err(Refusal::from)?;
        let Some(entry) = entry else {
            return Err(Refusal::NotFound(id).into());
        };
        match change_of(&Event::Put(entry)) {
            Some(v1::Change {
                resource: Some(resource),
                is_deletion: false,
            }) => Ok(Response::new(resource)),
            _ => Err(Refusal::NotFound(id).into()),
        }
    }

    async fn list(
        &self,
        request: Request<v1::ListRequest>,
    ) -> Result<Response<v1::ListResponse>, Status> {
        let request = request.into_inner();
        let prefix = prefix_of(&request.kind)?;
        let size = match request.page_size {
            0 => PAGE,
            size => size.min(PAGE_MAX),
        } as usize;
        let after = page::key(&request.page_token, &prefix)?;
        let listing = self
            .desired
            .store()
            .list(&prefix)
            .await
            .map_err(Refusal::from)?;
        let entries = listing.entries.into_iter().filter(|entry| {
            let id = ResourceId::from_key(&entry.key);
            let is_wanted =
                |id: ResourceId| request.namespace.is_empty() || id.namespace == request.namespace;
            *entry.key > *after && id.is_some_and(is_wanted)
        });
        let resources = entries.filter_map(|entry| {
            let key = Arc::clone(&entry.key);
            let change = change_of(&Event::Put(entry)).filter(|change| !change.is_deletion)?;
            Some((key, change.resource?))
        });
        let (resources, next) = page::fill(size, resources);
        Ok(Response::new(v1::ListResponse {
            resources,
            revision: listing.revision.0,
            next_page_token: page::token(next),
        }))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        let who = Session::of(&request)?.caller.name().to_owned();
        let request = request.into_inner();
        let id = id_of(request.r#ref.as_ref())?;
        let expectations = match request.expected_revision {
            0 => Vec::new(),
            revision => vec![(id.clone(), Revision(revision))],
        };
        let change = Change {
            who,
            documents: Vec::new(),
            deletions: vec![id],
            expectations,
            dry_run: false,
        };
        let outcome = self.desired.change(&change).await?;
        Ok(Response::new(v1::DeleteResponse {
            revision: outcome.revision.0,
        }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::Change, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let session = Session::of(&request)?;
        let request = request.into_inner();
        let prefix = prefix_of(&request.kind)?;
        let store = self.desired.store();
        let after = match request.from_revision {
            0 => store.revision().await.map_err(Refusal::from)?,
            revision => Revision(revision),
        };
        let mut watch = store.watch(&prefix, after).await.map_err(Refusal::from)?;
        let (sender, receiver) = mpsc::channel(WATCH_QUEUE_MAX);
        self.desired.spawn("config-watch", async move {
            let follow = async {
                while let Some(changes) = watch.next().await {
                    if forward(changes, &sender).await.is_err() {
                        return;
                    }
                }
            };
            // A stream ends with its caller's proof, before anything more is told, and when
            // nobody reads it.
            tokio::select! {
                biased;
                status = session.ended() => drop(sender.send(Err(status)).await),
                () = sender.closed() => {}
                () = follow => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn history(
        &self,
        request: Request<v1::HistoryRequest>,
    ) -> Result<Response<v1::HistoryResponse>, Status> {
        let request = request.into_inner();
        let id = id_of(request.r#ref.as_ref())?;
        let limit = match request.limit {
            0 => HISTORY,
            limit => limit.min(PAGE_MAX),
        };
        let before = match request.page_token.as_str() {
            "" => u64::MAX,
            token => token.parse().map_err(|_malformed| page::not_given_out())?,
        };
        // All that are kept of one resource: the store bounds how many.
        let events = self.desired.store().history(&id.key(), usize::MAX).await;
        let events = events.map_err(Refusal::from)?;
        if events.is_empty() {
            return Err(Refusal::NotFound(id).into());
        }
        // Decoded as far as the page goes.
        let older = events
            .iter()
            .map(|event| (event.revision().0, event))
            .filter(|(at, _)| *at < before)
            .filter_map(|(at, event)| Some((at, change_of(event)?)));
        let (changes, next) = page::fill(limit as usize, older);
        Ok(Response::new(v1::HistoryResponse {
            changes,
            next_page_token: page::token(next),
        }))
    }

    async fn audit(
        &self,
        request: Request<v1::AuditRequest>,
    ) -> Result<Response<v1::AuditResponse>, Status> {
        let request = request.into_inner();
        let limit = match request.limit {
            0 => AUDIT,
            limit => limit.min(PAGE_MAX),
        };
        let before = page::key(&request.page_token, audit::PREFIX)?;
        let audit = self.desired.audit();
        let events = audit.newest(&request.subject, before).await;
        let events = events.map_err(Refusal::from)?;
        let events = events.map(|(key, event)| (key, v1::AuditEvent::from(event)));
        let (events, next) = page::fill(limit as usize, events);
        Ok(Response::new(v1::AuditResponse {
            events,
            next_page_token: page::token(next),
        }))
    }
}

/// Passes changes on; an error ends the stream.
async fn forward(
    changes: Result<Changes, StoreError>,
    sender: &mpsc::Sender<Result<v1::Change, Status>>,
) -> Result<(), ()> {
    let changes = match changes {
        Ok(changes) => changes,
        Err(error) => {
            // The watcher may have gone; there is nobody else to tell.
            let _ = sender.send(Err(Refusal::from(error).into())).await;
            return Err(());
        }
    };
    for change in changes.events.iter().filter_map(change_of) {
        if sender.send(Ok(change)).await.is_err() {
            return Err(());
        }
    }
    Ok(())
}

/// The API's view of a change of a resource's key. `None`: the key itself went, long after the
/// resource did. What is damaged is shown as it is, so that it can be found and deleted.
fn change_of(event: &Event) -> Option<v1::Change> {
    let Event::Put(entry) = event else {
        return None;
    };
    let id = ResourceId::from_key(&entry.key)?;
    let record = Record::read(entry).unwrap_or_else(|_damaged| Record {
        written_at_ms: 0,
        written_by: String::new(),
        json: Some(String::from_utf8_lossy(&entry.value).into_owned()),
    });
    Some(v1::Change {
        is_deletion: record.json.is_none(),
        resource: Some(v1::Resource {
            r#ref: Some(ref_of(&id)),
            revision: entry.modified.0,
            json: record.json.unwrap_or_default(),
            written_at_ms: record.written_at_ms,
            written_by: record.written_by,
        }),
    })
}

fn id_of(reference: Option<&v1::ResourceRef>) -> Result<ResourceId, Status> {
    let reference = reference.ok_or_else(|| Status::invalid_argument("ref is required"))?;
    if reference.name.is_empty() {
        return Err(Status::invalid_argument("ref.name is required"));
    }
    let namespace = match reference.namespace.as_str() {
        "" => DEFAULT_NAMESPACE,
        namespace => namespace,
    };
    Ok(ResourceId {
        kind: kind_of(&reference.kind)?,
        namespace: namespace.to_owned(),
        name: reference.name.clone(),
    })
}

fn kind_of(text: &str) -> Result<Kind, Status> {
    Kind::parse(text).ok_or_else(|| {
        let known = Kind::ALL.map(Kind::as_str).join(", ");
        Status::invalid_argument(format!("kind must be one of {known}"))
    })
}

fn ref_of(id: &ResourceId) -> v1::ResourceRef {
    v1::ResourceRef {
        kind: id.kind.as_str().to_owned(),
        namespace: id.namespace.clone(),
        name: id.name.clone(),
    }
}

fn prefix_of(kind: &str) -> Result<String, Status> {
    match kind {
        "" => Ok(CONFIG.to_owned()),
        kind => Ok(format!("{CONFIG}{}/", kind_of(kind)?)),
    }
}

/// Documents that repeat an earlier one of the request.
fn duplicates(documents: &[document::Document]) -> Vec<Fault> {
    let mut seen = std::collections::HashSet::new();
    documents
        .iter()
        .filter(|document| !seen.insert(&document.resource.id))
        .map(|document| {
            let message = format!("{} is in this request twice", document.resource.id);
            document.fault("metadata.name", message)
        })
        .collect()
}

impl From<Applied> for v1::Applied {
    fn from(applied: Applied) -> Self {
        let outcome = match applied.outcome {
            WriteOutcome::Created => v1::applied::Outcome::Created,
            WriteOutcome::Updated => v1::applied::Outcome::Updated,
            WriteOutcome::Unchanged => v1::applied::Outcome::Unchanged,
        };
        Self {
            r#ref: Some(ref_of(&applied.id)),
            outcome: outcome.into(),
            revision: applied.revision.0,
            warnings: applied.warnings,
        }
    }
}

impl From<audit::Event> for v1::AuditEvent {
    fn from(event: audit::Event) -> Self {
        let action = match event.action {
            audit::Action::Created => Action::Created,
            audit::Action::Updated => Action::Updated,
            audit::Action::Deleted => Action::Deleted,
            audit::Action::Refused => Action::Refused,
            audit::Action::Denied => Action::Denied,
            audit::Action::Allowed => Action::Allowed,
            audit::Action::Minted => Action::Minted,
            audit::Action::Revoked => Action::Revoked,
        };
        Self {
            at_ms: event.at_ms,
            who: event.who,
            action: action.into(),
            subject: event.subject,
            before: event.before,
            after: event.after,
            reason: event.reason,
        }
    }
}

/// Namespace of what names none.
pub const DEFAULT_NAMESPACE: &str = "default";
/// Resources of one request: with their audit events and addresses they fit one transaction.
const DOCUMENTS_MAX: usize = 500;
const PAGE: u32 = 500;
const PAGE_MAX: u32 = 1000;
const HISTORY: u32 = 20;
const AUDIT: u32 = 100;
/// Changes that wait for a slow watcher; the store's log has the rest.
const WATCH_QUEUE_MAX: usize = 16;

#[cfg(test)]
pub(crate) mod tests;
