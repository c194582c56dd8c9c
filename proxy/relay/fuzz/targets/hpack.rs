//! Header blocks; see `bodies/hpack.rs`.

#![no_main]

#[path = "../bodies/hpack.rs"]
mod hpack;
#[path = "../bodies/script.rs"]
mod script;

libfuzzer_sys::fuzz_target!(|input: &[u8]| hpack::run(input));
