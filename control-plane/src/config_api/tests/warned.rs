//! What an answer to `Apply` warns of: what was stored and does not do what it says.

use super::*;

/// Applies a service with these ports and routes of it. Each part must be in a warning about the
/// routes, and there are no others.
async fn check(ports: &str, routes: &str, parts: &[&str]) {
    let fixture = Fixture::new();
    let service = format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: web}}\nspec:\n  hosts: [web]\n  resolution: STATIC\n  ports: [{ports}]\n"
    );
    let virtual_service = format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: web}}\nspec:\n  hosts: [web]\n{routes}"
    );
    let applied = fixture.apply(&(service + &virtual_service)).await.unwrap();
    let warnings = &applied.applied[1].warnings;
    assert_eq!(warnings.len(), parts.len(), "{warnings:?}");
    for part in parts {
        assert!(
            warnings.iter().any(|warning| warning.contains(part)),
            "{part} is not in {warnings:?}"
        );
    }
}

const HTTP: &str = "  http: [{route: [{destination: {host: web}}]}]\n";
const TCP: &str = "  tcp: [{route: [{destination: {host: web}}]}]\n";

#[tokio::test]
async fn routes_that_no_port_follows_are_told() {
    let [declared, undeclared, bytes] = [
        "{number: 80, name: http, protocol: HTTP}",
        "{number: 81, name: any}",
        "{number: 5432, name: sql, protocol: TCP}",
    ];
    let both = format!("{HTTP}{TCP}");
    let ports = |ports: &[&str]| ports.join(", ");
    check(declared, HTTP, &[]).await;
    check(undeclared, HTTP, &[]).await;
    check(bytes, TCP, &[]).await;
    check(&ports(&[declared, bytes]), &both, &[]).await;
    check(&ports(&[undeclared, bytes]), &both, &[]).await;
    check(declared, TCP, &["spec.tcp: never applies"]).await;
    check(undeclared, TCP, &["spec.tcp: never applies"]).await;
    check(undeclared, &both, &["spec.tcp: never applies"]).await;
    let in_part = ["spec.tcp: does not apply to port 81 "];
    check(&ports(&[undeclared, bytes]), TCP, &in_part).await;
    check(bytes, HTTP, &["spec.http: never applies"]).await;
}
