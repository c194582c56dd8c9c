//! One call from outside the mesh: in plaintext, with a certificate of the mesh, or with one of
//! a CA that the mesh does not know. Prints what came of it as one line of JSON.

use std::{
    error::Error,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use futures_util::{TryStreamExt, stream};
use heddle_shell::{
    causes::chain,
    tls::{self, Accept, Anchor, Identity, Trust},
};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tonic::{Status, body::Body, client::Grpc};
use tonic_prost::ProstCodec;

use crate::{
    channel::origin,
    endpoint,
    wire::{Call, Half, Kind, Reply, Request},
};

/// For the whole call.
const PATIENCE: Duration = Duration::from_secs(5);

/// A connection that refuses its request tells why within this.
const LAST_WORDS: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// `host:port` to dial.
    to: String,

    /// Authority to name instead of `to`.
    #[arg(long)]
    authority: Option<String>,

    /// Directory with `certificate.pem`, `key.pem` and `roots.pem` of a mesh identity, as
    /// `heddle certs issue` writes it. Plaintext without.
    #[arg(long)]
    credentials: Option<PathBuf>,

    /// Claim this SPIFFE id with a certificate of a CA made up on the spot; the credentials'
    /// roots still verify the other side.
    #[arg(long, requires = "credentials")]
    forge: Option<String>,
}

/// How a call ended.
enum Outcome {
    Answered(Vec<String>),
    Refused(Status),
    Cut(String),
}

#[expect(clippy::print_stdout, reason = "the result belongs on standard output")]
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let outcome = timeout(PATIENCE, Box::pin(dial(&args)))
        .await
        .unwrap_or_else(|_elapsed| Ok(Outcome::Cut(format!("no answer in {PATIENCE:?}"))))?;
    println!("{}", outcome.to_json());
    Ok(())
}

async fn dial(args: &Args) -> anyhow::Result<Outcome> {
    let authority = args.authority.as_deref().unwrap_or(&args.to);
    match &args.credentials {
        None => match TcpStream::connect(&args.to).await {
            Ok(stream) => Box::pin(call(stream, authority)).await,
            Err(error) => Ok(Outcome::Cut(chain(&error))),
        },
        Some(directory) => {
            let config = client(directory, args.forge.as_deref())?;
            let mut stream = match tls::dial(&args.to, config).await {
                Ok(stream) => stream,
                Err(error) => return Ok(Outcome::Cut(chain(&error))),
            };
            // In TLS 1.3 the server judges our certificate after our side of the handshake is
            // done. Its alert would be lost to a write that finds the connection closed; what it
            // says otherwise stays unread.
            match timeout(LAST_WORDS, stream.fill_buf()).await {
                Ok(Err(error)) => Ok(Outcome::Cut(chain(&error))),
                Ok(Ok(_)) | Err(_) => Box::pin(call(stream, authority)).await,
            }
        }
    }
}

async fn call<S>(stream: S, authority: &str) -> anyhow::Result<Outcome>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let handshake = http2::handshake::<_, _, Body>(TokioExecutor::new(), TokioIo::new(stream));
    let (sender, connection) = match handshake.await {
        Ok(started) => started,
        Err(error) => return Ok(Outcome::Cut(chain(&error))),
    };
    let service = tower::service_fn(move |request| sender.clone().send_request(request));
    let mut grpc = Grpc::with_origin(service, origin(authority)?);
    let request = async {
        grpc.ready()
            .await
            .map_err(|error| Status::from_error(error.into()))?;
        let call = Call {
            half: Half::Lookups,
            kind: Kind::Get,
        };
        let message = Request { id: 0, number: 0 };
        let replies = grpc
            .streaming(
                tonic::Request::new(stream::iter([message])),
                call.path().parse().expect("paths of calls are paths"),
                ProstCodec::<Request, Reply>::default(),
            )
            .await?;
        replies.into_inner().try_collect::<Vec<Reply>>().await
    };
    let (mut request, mut connection) = (pin!(request), pin!(connection));
    let answer = tokio::select! {
        // The request first: a connection may end right after its answer.
        biased;
        answer = &mut request => answer,
        ended = &mut connection => {
            let why = ended.err().map_or_else(|| "closed".to_owned(), |error| chain(&error));
            // What had arrived before the end is the answer.
            return Ok(match request.await {
                Ok(replies) => Outcome::answered(replies),
                Err(status) if is_sent(&status) => Outcome::Refused(status),
                Err(_) => Outcome::Cut(why),
            });
        }
    };
    Ok(match answer {
        Ok(replies) => Outcome::answered(replies),
        Err(status) if is_sent(&status) => Outcome::Refused(status),
        Err(status) => match timeout(LAST_WORDS, connection).await {
            Ok(Err(error)) => Outcome::Cut(chain(&error)),
            _ => Outcome::Cut(chain(&status)),
        },
    })
}

/// Whether the other side sent the status, rather than this one made it up.
fn is_sent(status: &Status) -> bool {
    status.source().is_none()
}

impl Outcome {
    fn answered(replies: Vec<Reply>) -> Self {
        let hops = replies.into_iter().flat_map(|reply| reply.hops);
        Self::Answered(hops.map(|hop| hop.instance).collect())
    }

    fn to_json(&self) -> Value {
        match self {
            Self::Answered(hops) => json!({ "outcome": "answered", "hops": hops }),
            Self::Refused(status) => json!({
                "outcome": "refused",
                "code": format!("{:?}", status.code()),
                "reason": endpoint::reason(status),
                "message": status.message(),
            }),
            Self::Cut(why) => json!({ "outcome": "cut", "message": why }),
        }
    }
}

fn client(directory: &Path, forged: Option<&str>) -> anyhow::Result<Arc<ClientConfig>> {
    let certificates = |name: &str| -> anyhow::Result<Vec<CertificateDer<'static>>> {
        let file = directory.join(name);
        let read = CertificateDer::pem_file_iter(&file).and_then(Iterator::collect);
        read.with_context(|| format!("reading {}", file.display()))
    };
    let identity = match forged {
        Some(id) => forge(id).context("making a CA up")?,
        None => {
            let key = PrivatePkcs8KeyDer::from_pem_file(directory.join("key.pem"))
                .context("reading key.pem")?;
            Identity::new(certificates("certificate.pem")?, key)?
        }
    };
    let roots = Trust::Anchor(Anchor::Roots(certificates("roots.pem")?));
    Ok(tls::client(Some(&identity), roots, Accept::Mesh, &[b"h2"])?)
}

/// A certificate for `id`, by a CA that nobody has heard of.
fn forge(id: &str) -> anyhow::Result<Identity> {
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = Issuer::new(ca, KeyPair::generate()?);
    let key = KeyPair::generate()?;
    let mut leaf = CertificateParams::default();
    leaf.distinguished_name = rcgen::DistinguishedName::new();
    leaf.subject_alt_names = vec![SanType::URI(id.try_into()?)];
    let leaf = leaf.signed_by(&key, &ca)?;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    Ok(Identity::new(vec![leaf.der().clone()], key)?)
}
