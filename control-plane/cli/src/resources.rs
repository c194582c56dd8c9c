//! `heddle get` and `heddle delete`.

use heddle_proto::v1::{
    DeleteRequest, GetRequest, ListRequest, Resource, ResourceRef, config_client::ConfigClient,
};
use serde_json::{Value, json};

use crate::{
    apply::full_name,
    connect::Target,
    failure::Failure,
    output::{self, Format, Report},
};

#[derive(Debug, clap::Args)]
pub(crate) struct GetArgs {
    /// Kind, such as `VirtualService` (also `virtualservices`, `vs`); all kinds without it.
    kind: Option<String>,

    /// Name; every resource of the kind without it.
    #[arg(requires = "kind")]
    name: Option<String>,

    /// Only this namespace; with a name, `default` when not given.
    #[arg(short, long)]
    namespace: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DeleteArgs {
    /// Kind, such as `VirtualService` (also `virtualservices`, `vs`).
    kind: String,
    /// Name.
    name: String,
    /// Its namespace.
    #[arg(short, long, default_value = "default")]
    namespace: String,
}

pub(crate) async fn get(target: &Target, format: Format, args: GetArgs) -> Result<(), Failure> {
    let mut config = ConfigClient::new(target.administrator().await?);
    let kind = args.kind.as_deref().map(canonical_kind).unwrap_or_default();
    if let Some(name) = args.name {
        let named = ResourceRef {
            kind,
            namespace: args.namespace.unwrap_or_else(|| "default".to_owned()),
            name,
        };
        let resource = config
            .get(GetRequest { r#ref: Some(named) })
            .await
            .map_err(Failure::of(&target.server))?
            .into_inner();
        // One resource is shown as the user would write it, in every format, and can be applied.
        let text = output::data(format, &written(&resource)?)?;
        output::line(text.trim_end());
        return Ok(());
    }
    let resources = target
        .pages(usize::MAX, async |page_token| {
            let request = ListRequest {
                kind: kind.clone(),
                namespace: args.namespace.clone().unwrap_or_default(),
                page_size: 0,
                page_token,
            };
            let page = config.list(request).await?.into_inner();
            Ok((page.resources, page.next_page_token))
        })
        .await?;
    output::print(format, &report(&resources)?)
}

pub(crate) async fn delete(
    target: &Target,
    format: Format,
    args: DeleteArgs,
) -> Result<(), Failure> {
    let named = ResourceRef {
        kind: canonical_kind(&args.kind),
        namespace: args.namespace,
        name: args.name,
    };
    let name = full_name(&named);
    let deleted = ConfigClient::new(target.administrator().await?)
        .delete(DeleteRequest {
            r#ref: Some(named),
            expected_revision: 0,
        })
        .await
        .map_err(Failure::of(&target.server))?
        .into_inner();
    let data = json!({"resource": name, "outcome": "deleted", "revision": deleted.revision});
    output::done(format, &format!("{name} deleted"), &data)
}

fn report(resources: &[Resource]) -> Result<Report, Failure> {
    let rows = resources.iter().map(|resource| {
        let named = resource.r#ref.clone().unwrap_or_default();
        vec![
            named.kind,
            named.namespace,
            named.name,
            resource.revision.to_string(),
            resource.written_by.clone(),
        ]
    });
    let documents: Result<Vec<Value>, Failure> = resources.iter().map(document).collect();
    Ok(Report {
        heading: &["KIND", "NAMESPACE", "NAME", "REVISION", "WRITTEN BY"],
        rows: rows.collect(),
        data: Value::Array(documents?),
        when_empty: "no resources",
    })
}

fn written(resource: &Resource) -> Result<Value, Failure> {
    serde_json::from_str(&resource.json)
        .map_err(|error| Failure::Local(format!("the control plane sent bad JSON: {error}")))
}

/// One of a list, with what the table says of it.
fn document(resource: &Resource) -> Result<Value, Failure> {
    let mut document = written(resource)?;
    // Where a user of Kubernetes looks for it.
    if let Some(metadata) = document.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert(
            "resourceVersion".to_owned(),
            json!(resource.revision.to_string()),
        );
    }
    Ok(document)
}

/// `vs`, `virtualservices` and `VirtualService` are the same kind. What is unknown goes to the
/// server as it is: it knows the kinds and words the refusal.
fn canonical_kind(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    KINDS
        .iter()
        .find(|(kind, short)| {
            let kind = kind.to_ascii_lowercase();
            lower == *short || lower == kind || lower == plural(&kind)
        })
        .map_or_else(|| text.to_owned(), |(kind, _)| (*kind).to_owned())
}

fn plural(kind: &str) -> String {
    match kind.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None => format!("{kind}s"),
    }
}

/// Kinds with Istio's short names.
const KINDS: [(&str, &str); 6] = [
    ("AuthorizationPolicy", "ap"),
    ("DestinationRule", "dr"),
    ("PeerAuthentication", "pa"),
    ("ServiceEntry", "se"),
    ("VirtualService", "vs"),
    ("WorkloadEntry", "we"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_has_several_spellings() {
        for text in ["vs", "virtualservice", "VirtualServices", "VirtualService"] {
            assert_eq!(canonical_kind(text), "VirtualService");
        }
        assert_eq!(canonical_kind("serviceentries"), "ServiceEntry");
        assert_eq!(
            canonical_kind("authorizationpolicies"),
            "AuthorizationPolicy"
        );
        assert_eq!(canonical_kind("Gateway"), "Gateway");
    }
}
