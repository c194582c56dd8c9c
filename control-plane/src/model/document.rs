//! Documents of users into resources, and resources into their canonical form.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    AuthorizationPolicy, DestinationRule, Fault, Kind, Labels, PeerAuthentication, Resource,
    ResourceId, ServiceEntry, Spec, VirtualService, WorkloadEntry,
    decode::{Decode, Decoder, shown},
    values::{DnsLabel, is_name},
    workload_entry::LabelSet,
    yaml::{self, Node},
};

/// A resource with the text it came from, for what is found wrong with it later.
#[derive(Clone, Debug)]
pub struct Document {
    /// The resource.
    pub resource: Resource,
    /// What the user calls the text.
    pub file: String,
    root: Node,
}

/// Reads every document of a text, YAML or JSON. Faults are added to `faults`.
pub fn parse(file: &str, text: &str, namespace: &str, faults: &mut Vec<Fault>) -> Vec<Document> {
    let nodes = match yaml::parse(text) {
        Ok(nodes) => nodes,
        Err(malformed) => {
            faults.push(Fault {
                file: file.to_owned(),
                at: malformed.at,
                path: String::new(),
                message: malformed.message,
            });
            return Vec::new();
        }
    };
    let mut documents = Vec::new();
    for root in nodes {
        let mut decoder = Decoder::new(file, namespace, faults);
        if let Some(resource) = Resource::decode(&root, &mut decoder) {
            let file = file.to_owned();
            documents.push(Document {
                resource,
                file,
                root,
            });
        }
    }
    documents
}

impl Document {
    /// A resource that no text of a user's says.
    pub fn made(resource: Resource) -> Self {
        Self {
            resource,
            file: String::new(),
            root: Node {
                value: yaml::Value::Null,
                at: yaml::Position::default(),
            },
        }
    }

    /// Checks that the store would give back what it is given: what it does not can never be read
    /// again, by anybody.
    pub(crate) fn check_storable(&self) -> Result<(), Fault> {
        let json = self.resource.to_json();
        if json.len() > CANONICAL_BYTES_MAX {
            let message = format!(
                "cannot be stored: with {} bytes it is larger than {CANONICAL_BYTES_MAX}",
                json.len()
            );
            return Err(self.fault("", message));
        }
        match Resource::from_json(&json) {
            Ok(again) if again == self.resource => Ok(()),
            Ok(_) => Err(self.fault(
                "",
                "cannot be stored: it would be read back as something else, which is a fault of \
                 Heddle's",
            )),
            Err(fault) => {
                let message = format!("cannot be stored: {}", fault.message);
                Err(self.fault(&fault.path, message))
            }
        }
    }

    /// A fault of this document at a path of it.
    pub fn fault(&self, path: &str, message: impl Into<String>) -> Fault {
        Fault {
            file: self.file.clone(),
            at: self.root.nearest(path).at,
            path: path.to_owned(),
            message: message.into(),
        }
    }
}

impl Resource {
    /// The canonical form: one text for all documents that say the same.
    pub fn to_json(&self) -> String {
        let metadata = Metadata {
            name: &self.id.name,
            namespace: &self.id.namespace,
            labels: &self.labels,
            annotations: &self.annotations,
        };
        let canonical = Canonical {
            api_version: format!("{}/v1", self.id.kind.group()),
            kind: self.id.kind.as_str(),
            metadata,
            spec: &self.spec,
        };
        serde_json::to_string(&canonical).expect("keys are texts and no value refuses to serialize")
    }

    /// Reads the canonical form.
    ///
    /// # Errors
    /// What is wrong with it: it was written by a version with other rules.
    pub fn from_json(json: &str) -> Result<Self, Fault> {
        let fault = |message: String| Fault {
            file: String::new(),
            at: yaml::Position::default(),
            path: String::new(),
            message,
        };
        let root = yaml::read_back(json).map_err(|error| fault(format!("is not JSON: {error}")))?;
        let mut faults = Vec::new();
        let resource = Self::decode(&root, &mut Decoder::new("", "default", &mut faults));
        match (resource, faults.into_iter().next()) {
            (_, Some(fault)) => Err(fault),
            (Some(resource), None) => Ok(resource),
            (None, None) => Err(fault("is nothing that we know".to_owned())),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Canonical<'a> {
    api_version: String,
    kind: &'static str,
    metadata: Metadata<'a>,
    spec: &'a Spec,
}

#[derive(Serialize)]
struct Metadata<'a> {
    name: &'a str,
    namespace: &'a str,
    #[serde(skip_serializing_if = "Labels::is_empty")]
    labels: &'a Labels,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

impl Decode for Resource {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let mut fields = decoder.fields(node)?;
        let group = fields.required::<ApiVersion>(decoder, "apiVersion");
        let kind = fields.required::<Kind>(decoder, "kind");
        let (group, kind) = (group?, kind?);
        if group.0 != kind.group() {
            return decoder.within(format_args!(".apiVersion"), |decoder| {
                let message = format!("{kind} belongs to {}/v1", kind.group());
                decoder.refuse(node.nearest("apiVersion"), message)
            });
        }
        decoder.kind = Some(kind);
        let name = fields.required::<Name>(decoder, "metadata");
        if let Some(name) = &name {
            decoder.namespace.clone_from(&name.namespace);
        }
        let spec = match kind {
            Kind::AuthorizationPolicy => fields
                .required::<AuthorizationPolicy>(decoder, "spec")
                .map(Spec::AuthorizationPolicy),
            Kind::DestinationRule => fields
                .required::<DestinationRule>(decoder, "spec")
                .map(Spec::DestinationRule),
            Kind::PeerAuthentication => fields
                .required::<PeerAuthentication>(decoder, "spec")
                .map(Spec::PeerAuthentication),
            Kind::ServiceEntry => fields
                .required::<ServiceEntry>(decoder, "spec")
                .map(Spec::ServiceEntry),
            Kind::VirtualService => fields
                .required::<VirtualService>(decoder, "spec")
                .map(Spec::VirtualService),
            Kind::WorkloadEntry => fields
                .required::<WorkloadEntry>(decoder, "spec")
                .map(Spec::WorkloadEntry),
        };
        fields.close(decoder);
        let name = name?;
        Some(Self {
            id: ResourceId {
                kind,
                namespace: name.namespace,
                name: name.name,
            },
            labels: name.labels,
            annotations: name.annotations,
            spec: spec?,
        })
    }
}

struct ApiVersion(&'static str);

impl Decode for ApiVersion {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let text = decoder.text(node)?;
        match API_VERSIONS.iter().find(|(name, _)| *name == text) {
            Some((_, group)) => Some(Self(group)),
            None => {
                let known = API_VERSIONS.map(|(name, _)| name).join(", ");
                let message = format!("`{}` must be one of {known}", shown(text));
                decoder.refuse(node, message)
            }
        }
    }
}

impl Decode for Kind {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        decoder.word(node, &Self::ALL.map(|kind| (kind.as_str(), kind)))
    }
}

/// `metadata`.
struct Name {
    name: String,
    namespace: String,
    labels: Labels,
    annotations: BTreeMap<String, String>,
}

impl Decode for Name {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let mut fields = decoder.fields(node)?;
        let name = fields.required::<DnsName>(decoder, "name");
        let namespace = fields.optional::<DnsLabel>(decoder, "namespace");
        let labels = fields.or_default::<LabelSet>(decoder, "labels");
        let annotations = fields.or_default::<LabelSet>(decoder, "annotations");
        fields.close(decoder);
        let namespace = namespace?.map_or_else(|| decoder.namespace.clone(), |label| label.0);
        Some(Self {
            name: name?.0,
            namespace,
            labels: labels?.0,
            annotations: annotations?.0,
        })
    }
}

struct DnsName(String);

impl Decode for DnsName {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let text = decoder.text(node)?;
        if is_name(text) {
            Some(Self(text.to_owned()))
        } else {
            decoder.refuse(
                node,
                format!("`{}` is not a DNS name in lower case", shown(text)),
            )
        }
    }
}

/// Longest canonical form: quoted once more, in its record, it fits the store's values.
pub const CANONICAL_BYTES_MAX: usize = 1_000_000;
/// What may be written, and its group.
const API_VERSIONS: [(&str, &str); 5] = [
    ("networking.istio.io/v1", "networking.istio.io"),
    ("networking.istio.io/v1beta1", "networking.istio.io"),
    ("networking.istio.io/v1alpha3", "networking.istio.io"),
    ("security.istio.io/v1", "security.istio.io"),
    ("security.istio.io/v1beta1", "security.istio.io"),
];

#[cfg(test)]
mod tests;
