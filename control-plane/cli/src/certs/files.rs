//! A directory whose files change together.
//!
//! ```text
//! out/certificate.pem ─► current/certificate.pem     current ─► generation-7/
//! ```
//!
//! A generation is written aside, then `current` is replaced by one rename: a reader finds the
//! old set or the new one. The SDS files hold key and certificate inline, so Envoy cannot pair
//! an old key with a new certificate; it is told to watch the directory for that rename.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink},
    path::Path,
};

use heddle_shell::tls::Identity;
use pem::Pem;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject};
use serde_json::{Value, json};

const GENERATION: &str = "generation-";
const CURRENT: &str = "current";
const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

/// Replaces the set in `out`, which is made when missing.
pub(super) fn write(
    out: &Path,
    identity: &Identity,
    roots: &[CertificateDer<'_>],
) -> io::Result<()> {
    fs::create_dir_all(out)?;
    let old = generations(out)?;
    let next = old.iter().max().map_or(1, |newest| newest + 1);
    let name = format!("{GENERATION}{next}");
    fs::DirBuilder::new().mode(0o700).create(out.join(&name))?;

    let chain = certificates(identity.chain());
    let key = pem::encode(&Pem::new("PRIVATE KEY", identity.key().secret_der()));
    let roots = certificates(roots);
    let files = [
        (
            "default.yaml",
            secret(
                "default",
                &json!({
                    "tls_certificate": {
                        "certificate_chain": { "inline_string": &chain },
                        "private_key": { "inline_string": &key },
                    },
                }),
            )?,
        ),
        (
            "ROOTCA.yaml",
            secret(
                "ROOTCA",
                &json!({
                    "validation_context": { "trusted_ca": { "inline_string": &roots } },
                }),
            )?,
        ),
        ("certificate.pem", chain),
        ("key.pem", key),
        ("roots.pem", roots),
    ];
    for (file, text) in &files {
        private_file(&out.join(&name).join(file), text)?;
    }
    replace_link(out, CURRENT, &name)?;
    for (file, _) in &files {
        let target = format!("{CURRENT}/{file}");
        if fs::read_link(out.join(file)).is_ok_and(|is| is == Path::new(&target)) {
            continue;
        }
        replace_link(out, file, &target)?;
    }
    // The generation before this one stays: somebody may be reading it.
    for generation in old.iter().filter(|generation| **generation + 1 < next) {
        fs::remove_dir_all(out.join(format!("{GENERATION}{generation}")))?;
    }
    Ok(())
}

/// The newest identity in `out`, if there is a usable one.
pub(super) fn read(out: &Path) -> Option<Identity> {
    let current = out.join(CURRENT);
    let chain = CertificateDer::pem_file_iter(current.join("certificate.pem"))
        .ok()?
        .collect::<Result<_, _>>()
        .ok()?;
    let key = PrivatePkcs8KeyDer::from_pem_file(current.join("key.pem")).ok()?;
    Identity::new(chain, key).ok()
}

fn generations(out: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(out)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(GENERATION));
        found.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    Ok(found)
}

fn private_file(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Points `name` at `target` in one step, also when it already points elsewhere.
fn replace_link(out: &Path, name: &str, target: &str) -> io::Result<()> {
    let aside = out.join(format!(".{name}.new"));
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(target, &aside)?;
    fs::rename(aside, out.join(name))
}

fn certificates(chain: &[CertificateDer<'_>]) -> String {
    let blocks: Vec<Pem> = chain
        .iter()
        .map(|certificate| Pem::new("CERTIFICATE", certificate.as_ref()))
        .collect();
    pem::encode_many(&blocks)
}

/// An SDS file of one secret (`envoy.service.secret.v3`, path config source).
fn secret(name: &str, content: &Value) -> io::Result<String> {
    let mut secret = json!({ "@type": SECRET, "name": name });
    if let (Some(secret), Some(content)) = (secret.as_object_mut(), content.as_object()) {
        secret.extend(content.clone());
    }
    serde_saphyr::to_string(&json!({ "resources": [secret] })).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn identity() -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(
            "spiffe://td/ns/shop/sa/web".try_into().unwrap(),
        )];
        let certificate = params.self_signed(&key).unwrap();
        Identity::new(
            vec![certificate.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()),
        )
        .unwrap()
    }

    #[test]
    fn every_generation_is_a_matching_set() {
        let out = tempfile::tempdir().unwrap();
        for _ in 0..3 {
            let identity = identity();
            write(out.path(), &identity, identity.chain()).unwrap();
            let read = Identity::new(
                CertificateDer::pem_file_iter(out.path().join("certificate.pem"))
                    .unwrap()
                    .collect::<Result<_, _>>()
                    .unwrap(),
                PrivatePkcs8KeyDer::from_pem_file(out.path().join("key.pem")).unwrap(),
            )
            .unwrap();
            assert_eq!(read.chain(), identity.chain());
            let sds = fs::read_to_string(out.path().join("default.yaml")).unwrap();
            let sds: Value = serde_saphyr::from_str(&sds).unwrap();
            let inline = &sds["resources"][0]["tls_certificate"]["private_key"]["inline_string"];
            let key = fs::read_to_string(out.path().join("key.pem")).unwrap();
            assert_eq!(inline.as_str(), Some(key.as_str()));
        }
        assert_eq!(generations(out.path()).unwrap().len(), 2);
    }

    #[test]
    fn a_key_is_readable_by_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let out = tempfile::tempdir().unwrap();
        let identity = identity();
        write(out.path(), &identity, identity.chain()).unwrap();
        for file in ["key.pem", "default.yaml"] {
            let mode = fs::metadata(out.path().join(file))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o077, 0, "{file}: {mode:o}");
        }
    }
}
