//! A client that refuses a configuration: what the operator sees of it.

use heddle_proto::xds::google::rpc;

use super::*;

#[tokio::test]
async fn a_refusal_is_listed_with_its_text_and_counted() {
    let running = Running::shop("{}").await;
    let mut sidecar = running.sidecar().await;
    let other = SHOP.replace("weight: 90", "weight: 60");
    running
        .apply(&other.replace("weight: 10", "weight: 40"))
        .await;
    let pushed = within(sidecar.incoming.message()).await.unwrap().unwrap();
    let refuse = DeltaDiscoveryRequest {
        type_url: pushed.type_url,
        response_nonce: pushed.nonce,
        error_detail: Some(rpc::Status {
            code: Code::InvalidArgument.into(),
            message: "routes[0]: a weight that I cannot".to_owned(),
            ..rpc::Status::default()
        }),
        ..DeltaDiscoveryRequest::default()
    };
    sidecar.requests.send(refuse).await.unwrap();
    let mut status = StatusClient::new(running.as_administrator().await);
    let refused = within(async {
        loop {
            let listed = status.list_proxies(ListProxiesRequest::default()).await;
            let proxy = listed.unwrap().into_inner().proxies.remove(0);
            if !proxy.rejections.is_empty() {
                break proxy;
            }
        }
    });
    let proxy = refused.await;
    let [rejection] = &proxy.rejections[..] else {
        panic!("one: {proxy:?}");
    };
    assert_eq!(rejection.r#type, "route");
    assert_eq!(rejection.version, pushed.resources[0].version);
    assert_eq!(rejection.message, "routes[0]: a weight that I cannot");
    assert!(rejection.at_ms > 0);
    // The endpoints are still the newest, the routes are not.
    assert_eq!(
        (proxy.resources_subscribed, proxy.resources_acknowledged),
        (2, 1)
    );
    let metrics = running.get("/metrics").await;
    let line = "heddle_control_plane_xds_rejections_total{type=\"route\"} 1\n";
    assert!(metrics.contains(line), "{metrics}");
}
