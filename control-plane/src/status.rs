//! `heddle.v1.Status`: what sidecars have made active, and what every connected proxy is told.

use std::{collections::HashMap, sync::Arc, time::Duration};

use heddle_policy::snapshot::xds::{ResourceName, ResourceType};
use heddle_proto::v1;
use heddle_shell::clock;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, async_trait};
use tracing::{debug, warn};

use crate::{
    authn::{Session, Workload as Proven},
    discovery::{
        self, Discovery,
        proxies::{ReportId, Reported},
    },
    page,
    streams::Streams,
    telemetry::{Metrics, OpenStream, StreamKind},
};

/// The service.
#[derive(Clone, Debug)]
pub struct StatusService {
    discovery: Arc<Discovery>,
    metrics: Arc<Metrics>,
    streams: Streams,
}

impl StatusService {
    /// Reports go to `discovery`'s list of proxies.
    pub fn new(discovery: Arc<Discovery>, metrics: Arc<Metrics>, streams: Streams) -> Self {
        Self {
            discovery,
            metrics,
            streams,
        }
    }
}

#[async_trait]
impl v1::status_server::Status for StatusService {
    type ReportStream = ReceiverStream<Result<v1::ReportResponse, Status>>;

    async fn report(
        &self,
        request: Request<Streaming<v1::ReportRequest>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let session = Session::of(&request)?;
        let proven = Arc::clone(session.workload()?);
        let (responses, stream) = mpsc::channel(RESPONSES_MAX);
        let reports = Reports {
            discovery: Arc::clone(&self.discovery),
            session,
            proven,
            requests: request.into_inner(),
            responses,
            counted: self.metrics.stream(StreamKind::Report),
        };
        self.streams.spawn("report", reports.run());
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn list_proxies(
        &self,
        request: Request<v1::ListProxiesRequest>,
    ) -> Result<Response<v1::ListProxiesResponse>, Status> {
        let request = request.get_ref();
        let after = match request.page_token.as_str() {
            "" => 0,
            token => token.parse().map_err(|_malformed| page::not_given_out())?,
        };
        let (proxies, next) = self.discovery.proxies.page(&request.namespace, after);
        Ok(Response::new(v1::ListProxiesResponse {
            proxies,
            next_page_token: page::token(next),
        }))
    }
}

/// One `Report` stream.
struct Reports {
    discovery: Arc<Discovery>,
    session: Session,
    proven: Arc<Proven>,
    requests: Streaming<v1::ReportRequest>,
    responses: mpsc::Sender<Result<v1::ReportResponse, Status>>,
    #[expect(dead_code, reason = "counts the stream for as long as it lives")]
    counted: OpenStream,
}

/// Forgets the report when its stream ends.
struct Reporting {
    discovery: Arc<Discovery>,
    id: ReportId,
    node_id: String,
}

impl Reports {
    async fn run(mut self) {
        if let Err(status) = Box::pin(self.serve()).await {
            debug!(who = %self.proven.id, code = ?status.code(), why = status.message(), "a report stream ends");
            // The client may have gone already.
            let _gone = self.responses.try_send(Err(status));
        }
    }

    async fn serve(&mut self) -> Result<(), Status> {
        let session = self.session.clone();
        let mut proof = std::pin::pin!(session.ended());
        let mut reporting: Option<Reporting> = None;
        let mut silence = clock::now() + SILENCE_MAX;
        loop {
            let request = tokio::select! {
                biased; // A proof that has ended outranks what is reported on it.
                status = &mut proof => return Err(status),
                () = self.responses.closed() => return Ok(()),
                () = clock::sleep_until(silence) => {
                    return Err(Status::deadline_exceeded("no report for too long"));
                }
                request = self.requests.message() => request,
            };
            let Some(request) = request? else {
                return Ok(());
            };
            silence = clock::now() + SILENCE_MAX;
            match &reporting {
                None => reporting = Some(self.first(&request)?),
                Some(reporting) => reporting.later(&request)?,
            }
            // One answer waiting says as much as many.
            let _already_waiting = self.responses.try_send(Ok(v1::ReportResponse {}));
        }
    }

    fn first(&self, request: &v1::ReportRequest) -> Result<Reporting, Status> {
        let node_id = &request.node_id;
        let id = &self.proven.id;
        let own = format!("{}/{}/", id.namespace(), id.service_account());
        let instance = node_id.strip_prefix(&own).filter(|instance| {
            discovery::is_instance(instance) && node_id.len() <= NODE_ID_BYTES_MAX
        });
        if instance.is_none() {
            let shown: String = node_id.chars().take(64).collect();
            warn!(who = %id, node = shown, "refused a report for another node");
            return Err(Status::permission_denied(format!(
                "{id} may not report for {shown:?}"
            )));
        }
        let mut report = Reported::default();
        take(&mut report, request)?;
        Ok(Reporting {
            discovery: Arc::clone(&self.discovery),
            id: self.discovery.proxies.report_first(node_id, report),
            node_id: node_id.clone(),
        })
    }
}

impl Reporting {
    fn later(&self, request: &v1::ReportRequest) -> Result<(), Status> {
        if !request.node_id.is_empty() && request.node_id != self.node_id {
            return Err(Status::invalid_argument("a stream reports for one node"));
        }
        let proxies = &self.discovery.proxies;
        proxies
            .report(&self.id, |report| take(report, request))
            .unwrap_or_else(|| Err(Status::aborted("a newer stream reports for this node")))
    }
}

impl Drop for Reporting {
    fn drop(&mut self) {
        self.discovery.proxies.forget_report(&self.id);
    }
}

/// Brings what is known of a sidecar up to date.
fn take(report: &mut Reported, request: &v1::ReportRequest) -> Result<(), Status> {
    let active: HashMap<ResourceName, Arc<str>> = request
        .active
        .iter()
        .map(|active| {
            if active.version.len() > VERSION_BYTES_MAX {
                return Err(Status::invalid_argument(format!(
                    "a version has at most {VERSION_BYTES_MAX} bytes"
                )));
            }
            Ok((
                name(active.resource.as_ref())?,
                active.version.as_str().into(),
            ))
        })
        .collect::<Result<_, _>>()?;
    for gone in &request.gone {
        let name = name(Some(gone))?;
        if report.active.remove(&name).is_some() {
            report.name_bytes -= name.name.len();
        }
    }
    for (name, version) in active {
        let bytes = name.name.len();
        if report.active.insert(name, version).is_none() {
            report.name_bytes += bytes;
        }
    }
    if report.active.len() > RESOURCES_MAX || report.name_bytes > NAMES_BYTES_MAX {
        return Err(Status::resource_exhausted(format!(
            "a sidecar may report {RESOURCES_MAX} resources, whose names have {NAMES_BYTES_MAX} \
             bytes together"
        )));
    }
    report.build = request.build.chars().take(BUILD_CHARS_MAX).collect();
    report.certificate_not_after_ms = request.certificate_not_after_ms;
    report.trust_bundle_revision = request.trust_bundle_revision;
    Ok(())
}

fn name(name: Option<&v1::ResourceName>) -> Result<ResourceName, Status> {
    let name = name.ok_or_else(|| Status::invalid_argument("a resource has no name"))?;
    let kind = ResourceType::ALL
        .into_iter()
        .find(|kind| kind.word() == name.r#type)
        .ok_or_else(|| {
            Status::invalid_argument("a type is not listener, route, cluster or endpoints")
        })?;
    if name.name.len() > RESOURCE_NAME_BYTES_MAX {
        return Err(Status::invalid_argument(format!(
            "a name has at most {RESOURCE_NAME_BYTES_MAX} bytes"
        )));
    }
    Ok(ResourceName {
        kind,
        name: name.name.as_str().into(),
    })
}

/// Answers that wait for a slow client; further ones say nothing new.
const RESPONSES_MAX: usize = 2;
/// A report is due every 30 s.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// Of one sidecar: some four for each of the 4096 destinations it may hold, and their subsets.
const RESOURCES_MAX: usize = 1 << 16;
/// Of those resources: what a stream may hold of them.
const NAMES_BYTES_MAX: usize = 4 << 20;
const NODE_ID_BYTES_MAX: usize = 512;
const RESOURCE_NAME_BYTES_MAX: usize = 512;
const VERSION_BYTES_MAX: usize = 64;
const BUILD_CHARS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn active(names: impl Iterator<Item = String>) -> v1::ReportRequest {
        let active = names.map(|name| v1::ActiveResource {
            resource: Some(v1::ResourceName {
                r#type: "cluster".to_owned(),
                name,
            }),
            version: "1".to_owned(),
        });
        v1::ReportRequest {
            active: active.collect(),
            ..v1::ReportRequest::default()
        }
    }

    #[test]
    fn a_report_is_bounded_by_the_bytes_of_its_names() {
        let long = |i: usize| format!("{i:0>RESOURCE_NAME_BYTES_MAX$}");
        let fill = NAMES_BYTES_MAX / RESOURCE_NAME_BYTES_MAX;
        let mut report = Reported::default();
        take(&mut report, &active((0..fill).map(long))).unwrap();
        // The same names again are no more; what is gone makes room.
        take(&mut report, &active((0..fill).map(long))).unwrap();
        let mut other = active((fill..=fill).map(long));
        let over = take(&mut report.clone(), &other).unwrap_err();
        assert_eq!(over.code(), Code::ResourceExhausted, "{over:?}");
        let gone = active((0..1).map(long)).active[0].resource.clone().unwrap();
        other.gone = vec![gone.clone(), gone];
        take(&mut report, &other).unwrap();
        assert_eq!(report.name_bytes, NAMES_BYTES_MAX);
    }
}
