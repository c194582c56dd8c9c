//! Compiles `heddle/v1/*.proto` with protox, a protobuf compiler in Rust: no `protoc` needed.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

const PROTOS: [&str; 6] = [
    "heddle/v1/certificate.proto",
    "heddle/v1/config.proto",
    "heddle/v1/policy.proto",
    "heddle/v1/registry.proto",
    "heddle/v1/status.proto",
    "heddle/v1/traffic.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for proto in PROTOS {
        println!("cargo::rerun-if-changed={proto}");
    }
    let descriptors = protox::compile(PROTOS, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // Server reflection serves this.
    fs::write(out.join("heddle.v1.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_transport(false)
        .compile_fds(descriptors)?;
    Ok(())
}
