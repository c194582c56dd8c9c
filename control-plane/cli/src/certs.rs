//! `heddle certs`: time left of every proxy's certificate, and a certificate on disk for a peer
//! that has no sidecar (proxyless gRPC, an unmodified Envoy).

mod files;

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use clap::Subcommand;
use heddle_proto::v1::{
    AllowRequest, DenyRequest, IssueRequest, IssueResponse, RevokeAdministratorsRequest,
    certificate_authority_client::CertificateAuthorityClient,
};
use heddle_shell::{
    causes, clock,
    tls::{Anchor, Identity, KeyRequest},
};
use rustls::pki_types::CertificateDer;
use serde_json::json;
use tonic::{Code, Request, metadata::MetadataValue, transport::Channel};

use crate::{
    connect::Target,
    failure::Failure,
    output::{self, Format, Report},
    proxies,
};

/// First wait after a failed renewal, doubling to [`BACKOFF_MAX`].
const BACKOFF_BASE: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(150);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Keep a certificate, its key and the roots in a directory.
    Issue(IssueArgs),
    /// Refuse an identity everywhere, although its certificates are valid: sidecars and control
    /// plane cut what it has open.
    Deny(Named),
    /// Take an identity off the deny list.
    Allow(Named),
    /// Refuse every administrator's certificate made so far; the control plane writes a new one
    /// to its data directory. If none of yours is valid any more: a start of the control plane
    /// writes one too.
    RevokeAdministrators,
}

#[derive(Debug, clap::Args)]
struct Named {
    /// Such as `spiffe://cluster.local/ns/default/sa/web`.
    identity: String,
}

#[derive(Debug, clap::Args)]
struct IssueArgs {
    /// Directory to write; `certificate.pem`, `key.pem`, `roots.pem` and Envoy's `default.yaml`
    /// and `ROOTCA.yaml` in it are swapped together.
    #[arg(long)]
    out: PathBuf,

    /// File with the workload's token (`heddle token`); read again for each renewal. When it is
    /// no longer accepted, the current certificate in the directory proves who asks, for up to
    /// seven days after the last token.
    #[arg(long)]
    token: PathBuf,

    /// The mesh's root: a PEM file, or the hash that `heddle token` prints.
    #[arg(long, value_parser = anchor)]
    trust_anchor: Anchor,

    /// Keep running and renew in time.
    #[arg(long)]
    renew: bool,
}

pub(crate) async fn run(target: &Target, format: Format, args: Args) -> Result<(), Failure> {
    match args.command {
        None => list(target, format).await,
        // Boxed: it is the one that grows.
        Some(Command::Issue(args)) => Box::pin(keep(target, &args)).await,
        Some(Command::Deny(named)) => deny(target, format, named).await,
        Some(Command::Allow(named)) => allow(target, format, named).await,
        Some(Command::RevokeAdministrators) => revoke_administrators(target, format).await,
    }
}

async fn authority(target: &Target) -> Result<CertificateAuthorityClient<Channel>, Failure> {
    let channel = target.administrator().await?;
    Ok(CertificateAuthorityClient::new(channel))
}

async fn deny(target: &Target, format: Format, named: Named) -> Result<(), Failure> {
    let request = DenyRequest {
        identity: named.identity.clone(),
    };
    let denied = authority(target)
        .await?
        .deny(request)
        .await
        .map_err(Failure::of(&target.server))?;
    let revision = denied.into_inner().trust_bundle_revision;
    changed(format, &named.identity, "denied", revision)
}

async fn allow(target: &Target, format: Format, named: Named) -> Result<(), Failure> {
    let request = AllowRequest {
        identity: named.identity.clone(),
    };
    let allowed = authority(target)
        .await?
        .allow(request)
        .await
        .map_err(Failure::of(&target.server))?;
    let revision = allowed.into_inner().trust_bundle_revision;
    changed(format, &named.identity, "allowed", revision)
}

fn changed(format: Format, identity: &str, outcome: &str, revision: u64) -> Result<(), Failure> {
    let data = json!({
        "identity": identity,
        "outcome": outcome,
        "trustBundleRevision": revision,
    });
    output::done(format, &format!("{identity} is {outcome}"), &data)
}

async fn revoke_administrators(target: &Target, format: Format) -> Result<(), Failure> {
    let revoked = authority(target)
        .await?
        .revoke_administrators(RevokeAdministratorsRequest {})
        .await
        .map_err(Failure::of(&target.server))?
        .into_inner();
    let said = format!(
        "revoked {} certificates of the administrator; a new one, valid for {}, is in the control \
         plane's data directory (administrator/)",
        revoked.revoked,
        output::from_now(revoked.not_after_ms)
    );
    let data = json!({"revoked": revoked.revoked, "notAfterMs": revoked.not_after_ms});
    output::done(format, &said, &data)
}

async fn list(target: &Target, format: Format) -> Result<(), Failure> {
    let proxies = proxies::list(target, String::new()).await?;
    let rows = proxies.iter().map(|proxy| {
        vec![
            proxy.identity.clone(),
            proxy.node_id.clone(),
            proxies::certificate_left(proxy),
        ]
    });
    let data = proxies.iter().map(|proxy| {
        json!({
            "identity": proxy.identity,
            "nodeId": proxy.node_id,
            "notAfterMs": proxy.certificate_not_after_ms,
        })
    });
    output::print(
        format,
        &Report {
            heading: &["IDENTITY", "NODE", "LEFT"],
            rows: rows.collect(),
            data: data.collect(),
            when_empty: "no proxies are connected",
        },
    )
}

async fn keep(target: &Target, args: &IssueArgs) -> Result<(), Failure> {
    let mut not_after = issue(target, args).await?;
    if !args.renew {
        return Ok(());
    }
    loop {
        let left = not_after
            .duration_since(clock::wall())
            .unwrap_or(Duration::ZERO);
        // Half of what is left, as it is now: the certificate may be a day or seconds old.
        tokio::time::sleep(left / 2).await;
        let mut backoff = BACKOFF_BASE;
        not_after = loop {
            match issue(target, args).await {
                Ok(not_after) => break not_after,
                Err(failure) => output::complain(&format!("{failure}; the old one stays")),
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        };
    }
}

/// Has a new key certified and writes everything. Returns when the certificate ends.
async fn issue(target: &Target, args: &IssueArgs) -> Result<SystemTime, Failure> {
    let (key, issued) = match by_token(target, args).await {
        Err(failure) if is_proof_refused(&failure) => match files::read(&args.out) {
            Some(current) if current.is_valid_at(clock::wall()) => {
                output::complain(&format!("{failure}; asking by the current certificate"));
                ask(target, args, Some(&current), None).await?
            }
            _ => return Err(failure),
        },
        issued => issued?,
    };
    write(key, &issued, &args.out)?;
    output::complain(&format!(
        "{} for {}, valid for {}",
        args.out.display(),
        issued.identity,
        output::from_now(issued.not_after_ms)
    ));
    Ok(clock::from_unix_ms(issued.not_after_ms))
}

async fn by_token(
    target: &Target,
    args: &IssueArgs,
) -> Result<(KeyRequest, IssueResponse), Failure> {
    let token = bearer(&args.token)?;
    ask(target, args, None, Some(token)).await
}

/// A token that is not there, or one that the control plane does not accept (any more).
fn is_proof_refused(failure: &Failure) -> bool {
    match failure {
        Failure::Refused(status) => status.code() == Code::Unauthenticated,
        Failure::Local(_) => true,
        Failure::Unreachable { .. } | Failure::Late(_) => false,
    }
}

async fn ask(
    target: &Target,
    args: &IssueArgs,
    identity: Option<&Identity>,
    token: Option<MetadataValue<tonic::metadata::Ascii>>,
) -> Result<(KeyRequest, IssueResponse), Failure> {
    let local = |error: &dyn std::fmt::Display| Failure::Local(format!("making a key: {error}"));
    let key = KeyRequest::generate().map_err(|error| local(&error))?;
    let mut request = Request::new(IssueRequest {
        csr_der: key.csr_der().map_err(|error| local(&error))?,
        lifetime_ms: 0,
    });
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", token);
    }
    let channel = target.channel(identity, args.trust_anchor.clone()).await?;
    let issued = CertificateAuthorityClient::new(channel)
        .issue(request)
        .await
        .map_err(Failure::of(&target.server))?;
    Ok((key, issued.into_inner()))
}

fn write(key: KeyRequest, issued: &IssueResponse, out: &Path) -> Result<(), Failure> {
    let chain = issued.chain_der.iter().cloned().map(CertificateDer::from);
    let identity = key
        .certified(chain.collect())
        .map_err(|error| Failure::Local(format!("the control plane answered badly: {error}")))?;
    let bundle = issued.trust_bundle.clone().unwrap_or_default();
    let roots: Vec<CertificateDer<'static>> = bundle
        .trust_domains
        .into_values()
        .flat_map(|domain| domain.roots_der)
        .map(CertificateDer::from)
        .collect();
    files::write(out, &identity, &roots).map_err(Failure::io(format!("writing {}", out.display())))
}

fn bearer(file: &Path) -> Result<MetadataValue<tonic::metadata::Ascii>, Failure> {
    let token = std::fs::read_to_string(file)
        .map_err(Failure::io(format!("reading {}", file.display())))?;
    let mut value = MetadataValue::try_from(format!("Bearer {}", token.trim()))
        .map_err(|_not_ascii| Failure::Local(format!("{} is not a token", file.display())))?;
    value.set_sensitive(true);
    Ok(value)
}

fn anchor(text: &str) -> Result<Anchor, String> {
    Anchor::read(text).map_err(|error| causes::chain(&error))
}
