//! Which backend the rules are made with: nf_tables, or iptables where the kernel cannot. Whatever
//! the other holds of an earlier run goes, or it would still be in force beside the new rules.

use super::{
    Backend, Error, Installed,
    iptables::{self, Applied, Failed},
    model::Rule,
    netlink::Refused,
    nftables,
};

/// What the choice is between: those of this machine, or in tests those of any kernel.
pub(super) trait Backends {
    fn install_nftables(&mut self, rules: &[Rule]) -> Result<(), Refused>;
    fn install_iptables(&mut self, rules: &[Rule]) -> Result<Applied, Failed>;
    /// No error where nf_tables is unknown: nothing of ours can be there.
    fn remove_nftables(&mut self) -> Result<(), Refused>;
    fn remove_iptables(&mut self) -> Result<(), Failed>;
}

/// The machine it runs on.
pub(super) struct ThisMachine;

impl Backends for ThisMachine {
    fn install_nftables(&mut self, rules: &[Rule]) -> Result<(), Refused> {
        nftables::install(rules)
    }

    fn install_iptables(&mut self, rules: &[Rule]) -> Result<Applied, Failed> {
        iptables::install(rules)
    }

    fn remove_nftables(&mut self) -> Result<(), Refused> {
        nftables::remove_if_supported()
    }

    fn remove_iptables(&mut self) -> Result<(), Failed> {
        iptables::remove().map(drop)
    }
}

pub(super) fn install(
    backends: &mut impl Backends,
    rules: &[Rule],
    backend: Backend,
) -> Result<Installed, Error> {
    let instead_of_nftables = match backend {
        Backend::Iptables => None,
        Backend::Nftables | Backend::Auto => match backends.install_nftables(rules) {
            Ok(()) => {
                backends.remove_iptables().map_err(Error::Iptables)?;
                return Ok(Installed::Nftables);
            }
            Err(refused) if backend == Backend::Auto && refused.is_unsupported() => {
                Some(refused.source)
            }
            Err(refused) => return Err(refused.into()),
        },
    };
    let applied = match (backends.install_iptables(rules), instead_of_nftables) {
        (Ok(applied), instead_of_nftables) => (applied, instead_of_nftables),
        (Err(iptables), Some(nftables)) => return Err(Error::Neither { nftables, iptables }),
        (Err(iptables), None) => return Err(Error::Iptables(iptables)),
    };
    // When that fails both are in force, and the error says so: traffic is redirected in any case.
    backends.remove_nftables()?;
    Ok(Installed::Iptables {
        programs: applied.0.programs,
        instead_of_nftables: applied.1,
        without_ipv6: applied.0.without_ipv6,
    })
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// A kernel and its tools: what installing answers, and what happened.
    struct Played {
        /// An error number, or none.
        nftables: Option<i32>,
        has_iptables: bool,
        /// An error number of the removal of an older table, or none.
        removal: Option<i32>,
        done: Vec<&'static str>,
    }

    impl Played {
        fn netlink(error: Option<i32>) -> Result<(), Refused> {
            let refused = |code| Refused {
                what: "add table inet heddle".into(),
                source: io::Error::from_raw_os_error(code),
            };
            error.map_or(Ok(()), |code| Err(refused(code)))
        }
    }

    impl Backends for Played {
        fn install_nftables(&mut self, _rules: &[Rule]) -> Result<(), Refused> {
            self.done.push("nf_tables");
            Self::netlink(self.nftables)
        }

        fn install_iptables(&mut self, _rules: &[Rule]) -> Result<Applied, Failed> {
            self.done.push("iptables");
            match self.has_iptables {
                true => Ok(Applied::by_default_programs()),
                false => Err(Failed::NoProgram),
            }
        }

        fn remove_nftables(&mut self) -> Result<(), Refused> {
            self.done.push("no nf_tables");
            Self::netlink(self.removal)
        }

        fn remove_iptables(&mut self) -> Result<(), Failed> {
            self.done.push("no iptables");
            Ok(())
        }
    }

    /// What is done, in this order, and what is said in the end: a part of it.
    #[track_caller]
    fn check(backend: Backend, mut machine: Played, done: &[&str], said: &str) {
        let text = match install(&mut machine, &[], backend) {
            Ok(installed) => installed.to_string(),
            Err(error) => format!("error: {error}"),
        };
        assert!(text.contains(said), "{text}");
        assert_eq!(machine.done, done);
    }

    fn kernel(nftables: Option<i32>) -> Played {
        Played {
            nftables,
            has_iptables: true,
            removal: None,
            done: Vec::new(),
        }
    }

    #[test]
    fn nf_tables_is_used_where_it_works_and_rules_by_iptables_go() {
        for backend in [Backend::Auto, Backend::Nftables] {
            let done = ["nf_tables", "no iptables"];
            check(backend, kernel(None), &done, "nf_tables, table inet heddle");
        }
    }

    #[test]
    fn iptables_is_used_where_the_kernel_lacks_nf_tables_and_an_older_table_goes() {
        for code in [
            libc::EPROTONOSUPPORT,
            libc::EAFNOSUPPORT,
            libc::EOPNOTSUPP,
            libc::ENOENT,
        ] {
            let done = ["nf_tables", "iptables", "no nf_tables"];
            let said = "iptables-restore, because nf_tables refused: ";
            check(Backend::Auto, kernel(Some(code)), &done, said);
            // Who asks for nf_tables gets nothing else.
            let said = "error: nf_tables: cannot add table";
            check(Backend::Nftables, kernel(Some(code)), &done[..1], said);
        }
    }

    #[test]
    fn what_does_not_mean_that_the_kernel_lacks_it_is_an_error() {
        for (code, said) in [
            (
                libc::EPERM,
                "error: changing packet rules needs CAP_NET_ADMIN",
            ),
            (
                libc::EACCES,
                "error: changing packet rules needs CAP_NET_ADMIN",
            ),
            (libc::EBUSY, "error: nf_tables: cannot add table"),
            (libc::ENOMEM, "error: nf_tables: cannot add table"),
            // The kernel does not understand us: ours to mend.
            (libc::EINVAL, "error: nf_tables: cannot add table"),
        ] {
            check(Backend::Auto, kernel(Some(code)), &["nf_tables"], said);
        }
    }

    #[test]
    fn without_either_both_reasons_are_said() {
        let machine = Played {
            has_iptables: false,
            ..kernel(Some(libc::EPROTONOSUPPORT))
        };
        let said = "error: nf_tables does not work here (Protocol not supported";
        check(Backend::Auto, machine, &["nf_tables", "iptables"], said);
        let machine = Played {
            has_iptables: false,
            ..kernel(None)
        };
        let said = "error: iptables does not work here";
        check(Backend::Iptables, machine, &["iptables"], said);
    }

    #[test]
    fn an_older_table_that_stays_in_force_is_an_error() {
        for (backend, nftables, done) in [
            (
                Backend::Auto,
                Some(libc::EOPNOTSUPP),
                &["nf_tables", "iptables", "no nf_tables"][..],
            ),
            (Backend::Iptables, None, &["iptables", "no nf_tables"]),
        ] {
            let machine = Played {
                removal: Some(libc::EBUSY),
                ..kernel(nftables)
            };
            check(backend, machine, done, "error: nf_tables: cannot");
        }
    }
}
