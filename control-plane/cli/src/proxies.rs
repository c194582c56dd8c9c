//! `heddle proxies`: who is connected, what they run, what they refused.

use heddle_proto::v1::{ListProxiesRequest, Proxy, status_client::StatusClient};
use serde_json::{Value, json};

use crate::{
    connect::Target,
    failure::Failure,
    output::{self, Format, Report},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this namespace.
    #[arg(short, long, default_value = "")]
    namespace: String,
}

pub(crate) async fn run(target: &Target, format: Format, args: Args) -> Result<(), Failure> {
    let proxies = list(target, args.namespace).await?;
    output::print(
        format,
        &Report {
            heading: &[
                "NODE",
                "FLAVOUR",
                "BUILD",
                "SUBSCRIBED",
                "ACKED",
                "ACTIVE",
                "CERTIFICATE",
                "REJECTED",
            ],
            rows: proxies.iter().map(row).collect(),
            data: proxies.iter().map(data).collect(),
            when_empty: "no proxies are connected",
        },
    )
}

pub(crate) async fn list(target: &Target, namespace: String) -> Result<Vec<Proxy>, Failure> {
    let mut status = StatusClient::new(target.administrator().await?);
    let pages = target.pages(usize::MAX, async |page_token| {
        let request = ListProxiesRequest {
            namespace: namespace.clone(),
            page_token,
        };
        let page = status.list_proxies(request).await?.into_inner();
        Ok((page.proxies, page.next_page_token))
    });
    pages.await
}

/// Time left of a proxy's certificate, for tables.
pub(crate) fn certificate_left(proxy: &Proxy) -> String {
    match proxy.certificate_not_after_ms {
        0 => "unknown".to_owned(),
        not_after => output::from_now(not_after),
    }
}

fn row(proxy: &Proxy) -> Vec<String> {
    let active = match proxy.flavour.as_str() {
        "heddle" => proxy.resources_active.to_string(),
        // Only our own sidecars report what is active.
        _ => "-".to_owned(),
    };
    let rejected: Vec<String> = proxy
        .rejections
        .iter()
        .map(|rejection| format!("{}: {}", rejection.r#type, rejection.message))
        .collect();
    vec![
        proxy.node_id.clone(),
        proxy.flavour.clone(),
        proxy.build.clone(),
        proxy.resources_subscribed.to_string(),
        proxy.resources_acknowledged.to_string(),
        active,
        certificate_left(proxy),
        rejected.join("; "),
    ]
}

fn data(proxy: &Proxy) -> Value {
    let rejections: Vec<Value> = proxy
        .rejections
        .iter()
        .map(|rejection| {
            json!({
                "type": rejection.r#type,
                "version": rejection.version,
                "message": rejection.message,
                "atMs": rejection.at_ms,
            })
        })
        .collect();
    json!({
        "nodeId": proxy.node_id,
        "identity": proxy.identity,
        "build": proxy.build,
        "flavour": proxy.flavour,
        "connectedAtMs": proxy.connected_at_ms,
        "resourcesSubscribed": proxy.resources_subscribed,
        "resourcesAcknowledged": proxy.resources_acknowledged,
        "resourcesActive": proxy.resources_active,
        "certificateNotAfterMs": proxy.certificate_not_after_ms,
        "rejections": rejections,
    })
}
