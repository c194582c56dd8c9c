//! How long certificates are renewed by certificates alone.

use super::*;
use crate::ca::Serial;

const DAY: Duration = Duration::from_secs(24 * 3600);

impl Running {
    /// Makes a certificate's last token proof older.
    async fn proven_before(&self, identity: &Identity, ago: Duration) {
        let ledger = Ledger::new(self.control_plane.store.clone());
        let serial = serial(identity);
        let mut record = ledger.find(&serial).await.unwrap().unwrap();
        record.token_proven_at = clock::wall() - ago;
        ledger.record(&serial, &record).await.unwrap();
    }

    async fn renewed(&self, by: &Identity) -> Result<Identity, Status> {
        let (issued, key) = self.issue(Some(by), None).await;
        Ok(key.certified(chain(&issued?)).unwrap())
    }
}

fn serial(of: &Identity) -> Serial {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let (_, parsed) = X509Certificate::from_der(&of.chain()[0]).unwrap();
    Serial::of(parsed.raw_serial())
}

#[tokio::test]
async fn a_week_after_the_last_token_a_certificate_renews_nothing() {
    let running = Running::start("{}").await;
    let token = running.token("web").await;
    let first = running.identity("web").await;
    running
        .proven_before(&first, 7 * DAY - Duration::from_secs(600))
        .await;
    let second = running.renewed(&first).await.unwrap();
    // A renewal proves nothing new: its time goes on from the token's.
    let ledger = Ledger::new(running.control_plane.store.clone());
    let record = ledger.find(&serial(&second)).await.unwrap().unwrap();
    let age = clock::wall()
        .duration_since(record.token_proven_at)
        .unwrap();
    assert!(age >= 7 * DAY - Duration::from_secs(600), "{age:?}");
    drop(ledger);
    running
        .proven_before(&second, 7 * DAY + Duration::from_secs(1))
        .await;
    let refusal = running.renewed(&second).await;
    refused(
        refusal,
        Code::PermissionDenied,
        "7 days old; present a token",
    );
    let metrics = running.get("/metrics").await;
    let counted = "certificate_refusals_total{reason=\"proof_too_old\"} 1";
    assert!(metrics.contains(counted), "{metrics}");
    // Everything else it may still do until its end, and a token begins another week.
    let mut authority = running.authority(Some(&second)).await;
    let watch = authority.watch_trust_bundle(WatchTrustBundleRequest::default());
    watch
        .await
        .unwrap()
        .into_inner()
        .message()
        .await
        .unwrap()
        .unwrap();
    let (issued, key) = running.issue(Some(&second), Some(&token)).await;
    let third = key.certified(chain(&issued.unwrap())).unwrap();
    running.renewed(&third).await.unwrap();
}
