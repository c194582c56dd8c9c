//! A connection of HTTP/2; see `bodies/h2.rs`.

#![no_main]

#[path = "../bodies/h2.rs"]
mod h2;
#[path = "../bodies/script.rs"]
mod script;

libfuzzer_sys::fuzz_target!(|input: &[u8]| h2::run(input));
