//! `heddle apply -f FILE..`

use std::{io::Read, path::PathBuf};

use heddle_proto::v1::{
    ApplyRequest, Document, ResourceRef, applied::Outcome, config_client::ConfigClient,
};
use serde_json::json;

use crate::{
    connect::Target,
    failure::Failure,
    output::{self, Format, Report},
};

/// Largest file sent, in bytes; the server has its own limit for a document.
const FILE_BYTES_MAX: u64 = 4 << 20;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// File of YAML or JSON documents, `-` for standard input, or a directory whose `.yaml`,
    /// `.yml` and `.json` files are taken. May be given several times.
    #[arg(short, long = "filename", required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Namespace of resources that name none.
    #[arg(short, long, default_value = "default")]
    namespace: String,

    /// Validate only.
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn run(target: &Target, format: Format, args: Args) -> Result<(), Failure> {
    let mut documents = Vec::new();
    for file in &args.files {
        collect(file, &mut documents)?;
    }
    if documents.is_empty() {
        return Err(Failure::Local("no file to apply".to_owned()));
    }
    let request = ApplyRequest {
        documents,
        dry_run: args.dry_run,
        default_namespace: args.namespace,
        expectations: Vec::new(),
    };
    let applied = ConfigClient::new(target.administrator().await?)
        .apply(request)
        .await
        .map_err(Failure::of(&target.server))?
        .into_inner()
        .applied;
    for warning in applied.iter().flat_map(|applied| &applied.warnings) {
        output::complain(&format!("warning: {warning}"));
    }
    let rows = applied.iter().map(|applied| {
        let name = applied.r#ref.as_ref().map(full_name).unwrap_or_default();
        vec![name, outcome(applied.outcome(), args.dry_run).to_owned()]
    });
    let data = applied.iter().map(|applied| {
        json!({
            "resource": applied.r#ref.as_ref().map(full_name),
            "outcome": outcome(applied.outcome(), args.dry_run),
            "revision": applied.revision,
            "warnings": applied.warnings,
        })
    });
    output::print(
        format,
        &Report {
            heading: &["RESOURCE", "OUTCOME"],
            rows: rows.collect(),
            data: data.collect(),
            when_empty: "nothing to apply",
        },
    )
}

/// Such as `VirtualService default/user-service`.
pub(crate) fn full_name(resource: &ResourceRef) -> String {
    format!("{} {}/{}", resource.kind, resource.namespace, resource.name)
}

fn outcome(outcome: Outcome, is_dry_run: bool) -> &'static str {
    match (outcome, is_dry_run) {
        (Outcome::Created, false) => "created",
        (Outcome::Created, true) => "would be created",
        (Outcome::Updated, false) => "updated",
        (Outcome::Updated, true) => "would be updated",
        (Outcome::Unchanged, _) => "unchanged",
        (Outcome::Unspecified, _) => "unknown",
    }
}

fn collect(file: &PathBuf, documents: &mut Vec<Document>) -> Result<(), Failure> {
    let name = file.display().to_string();
    if name == "-" {
        let text = read(std::io::stdin()).map_err(Failure::io("reading standard input"))?;
        documents.push(Document { file: name, text });
        return Ok(());
    }
    let reading = || Failure::io(format!("reading {name}"));
    if file.is_dir() {
        let mut inside: Vec<PathBuf> = std::fs::read_dir(file)
            .and_then(|entries| {
                entries
                    .map(|entry| entry.map(|entry| entry.path()))
                    .collect()
            })
            .map_err(reading())?;
        inside.retain(|path| {
            path.extension()
                .is_some_and(|ext| ext == "yaml" || ext == "yml" || ext == "json")
        });
        inside.sort();
        return inside.iter().try_for_each(|path| collect(path, documents));
    }
    let text = std::fs::File::open(file)
        .and_then(read)
        .map_err(reading())?;
    documents.push(Document { file: name, text });
    Ok(())
}

fn read(source: impl Read) -> std::io::Result<String> {
    let mut text = String::new();
    source.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(std::io::Error::other(format!(
            "is larger than {FILE_BYTES_MAX} bytes"
        )));
    }
    Ok(text)
}
