//! Authorization: deny before allow, and a rule that cannot be judged denies.

/// The rules of one port.
#[derive(Clone, Debug, Default)]
pub struct Rules {}
