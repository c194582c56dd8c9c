//! A kernel without nf_tables: a filter on system calls that refuses the sockets it is spoken to
//! over, as such a kernel does, for this process and all it starts.

use std::{ffi::c_ulong, io};

/// Refuses sockets of `NETLINK_NETFILTER` from here on.
pub(crate) fn without_nftables() -> io::Result<()> {
    // Without it only the mightiest may have a filter (seccomp(2)).
    control(libc::PR_SET_NO_NEW_PRIVS, 1, 0)?;
    let mut filter = FILTER;
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).expect("a few"),
        filter: filter.as_mut_ptr(),
    };
    let mode = libc::SECCOMP_MODE_FILTER.into();
    control(libc::PR_SET_SECCOMP, mode, &raw const program as c_ulong)
}

#[expect(unsafe_code, reason = "no crate of ours sets a filter on system calls")]
fn control(option: i32, first: c_ulong, second: c_ulong) -> io::Result<()> {
    let none: c_ulong = 0;
    // SAFETY: both options take numbers, but for the filter's address, which is read within the
    // call.
    match unsafe { libc::prctl(option, first, second, none, none) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// In classic BPF over `struct seccomp_data`: `socket(AF_NETLINK, _, NETLINK_NETFILTER)` is
/// `EPROTONOSUPPORT`, everything else is allowed.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the kernel's own numbers, all of them small; a const cannot convert otherwise"
)]
const FILTER: [libc::sock_filter; 8] = [
    load(0),
    unless(libc::SYS_socket as u32, 5),
    load(ARGUMENTS),
    unless(libc::AF_NETLINK as u32, 3),
    load(ARGUMENTS + 2 * 8),
    unless(libc::NETLINK_NETFILTER as u32, 1),
    end(libc::SECCOMP_RET_ERRNO | libc::EPROTONOSUPPORT as u32),
    end(libc::SECCOMP_RET_ALLOW),
];

/// Of the first of the call's arguments, eight bytes each.
const ARGUMENTS: u32 = 16;

const fn load(offset: u32) -> libc::sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0)
}

/// Skips as many instructions unless what was loaded is this.
const fn unless(value: u32, skipped: u8) -> libc::sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, skipped)
}

const fn end(verdict: u32) -> libc::sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, verdict, 0)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "codes have eight bits; a const cannot convert otherwise"
)]
const fn instruction(code: u32, k: u32, jf: u8) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf,
        k,
    }
}
