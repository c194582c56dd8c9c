//! A throw-away certificate authority for subjects that bring none: root, intermediate and
//! leaves as Heddle's own look, so that handshakes cost the same.

use std::{fs, path::Path};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};

pub(super) struct Authority {
    root: CertifiedIssuer<'static, KeyPair>,
    intermediate: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(super) fn new() -> anyhow::Result<Self> {
        let ca = || {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            params
        };
        let root = CertifiedIssuer::self_signed(ca(), KeyPair::generate()?)?;
        let mut intermediate = ca();
        intermediate
            .distinguished_name
            .push(rcgen::DnType::CommonName, "intermediate");
        let intermediate = CertifiedIssuer::signed_by(intermediate, KeyPair::generate()?, &root)?;
        Ok(Self { root, intermediate })
    }

    /// Writes `<name>.pem` (chain) and `<name>.key` for `id`, and `root.pem`.
    pub(super) fn issue(&self, name: &str, id: &str, work: &Path) -> anyhow::Result<()> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.try_into()?)];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let leaf = params.signed_by(&key, &self.intermediate)?;
        fs::write(
            work.join(format!("{name}.pem")),
            leaf.pem() + &self.intermediate.pem(),
        )?;
        fs::write(work.join(format!("{name}.key")), key.serialize_pem())?;
        fs::write(work.join("root.pem"), self.root.pem())?;
        Ok(())
    }
}
