//! Certificates for subjects that bring none: root, intermediate and leaves as Heddle's own look,
//! so that handshakes cost the same.

use std::{fs, path::Path};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};

/// The two identities of a pair.
pub(super) struct Pair;

impl Pair {
    pub(super) const CLIENT: &str = "spiffe://cluster.local/ns/bench/sa/client";
    pub(super) const SERVER: &str = "spiffe://cluster.local/ns/bench/sa/server";
    /// What those check who know no SPIFFE ids.
    pub(super) const SERVER_NAME: &str = "server.bench";

    /// Writes `client` and `server`, each as `.pem` (chain), `.key` and `.both`, and `root.pem`.
    pub(super) fn issue(work: &Path) -> anyhow::Result<()> {
        let root = CertifiedIssuer::self_signed(authority("root"), KeyPair::generate()?)?;
        let intermediate =
            CertifiedIssuer::signed_by(authority("intermediate"), KeyPair::generate()?, &root)?;
        fs::write(work.join("root.pem"), root.pem())?;
        for (name, id) in [("client", Self::CLIENT), ("server", Self::SERVER)] {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            params.subject_alt_names = vec![
                SanType::URI(id.try_into()?),
                SanType::DnsName(format!("{name}.bench").try_into()?),
            ];
            params.extended_key_usages = vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ];
            let leaf = params.signed_by(&key, &intermediate)?;
            let (chain, key) = (leaf.pem() + &intermediate.pem(), key.serialize_pem());
            fs::write(work.join(format!("{name}.pem")), &chain)?;
            fs::write(work.join(format!("{name}.key")), &key)?;
            fs::write(work.join(format!("{name}.both")), chain + &key)?;
        }
        Ok(())
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}
