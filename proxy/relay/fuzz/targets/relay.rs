//! The whole relay; see `bodies/relay.rs`.

#![no_main]

#[path = "../bodies/relay.rs"]
mod relay;
#[path = "../../tests/relay/scene.rs"]
mod scene;
#[path = "../bodies/script.rs"]
mod script;

libfuzzer_sys::fuzz_target!(|input: &[u8]| relay::run(input));
