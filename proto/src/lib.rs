//! Heddle's gRPC API (`heddle.v1`) and the part of Envoy's xDS v3 it speaks. No logic.

/// `heddle.v1`, generated from `proto/heddle/v1/*.proto`, which documents every field.
#[expect(
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::excessive_nesting,
    clippy::too_many_lines,
    unused_qualifications,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("heddle.v1");

    /// The encoded `FileDescriptorSet` of the package, for gRPC server reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("heddle.v1");
}

pub mod xds;
