//! One side of HTTP/1.1; see `bodies/h1.rs`.

#![no_main]

#[path = "../bodies/h1.rs"]
mod h1;
#[path = "../bodies/script.rs"]
mod script;

libfuzzer_sys::fuzz_target!(|input: &[u8]| h1::run(input));
