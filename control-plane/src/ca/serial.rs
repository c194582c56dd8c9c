//! Serial numbers: what a certificate is called in the ledger.

use std::{fmt, sync::Arc};

use rand::Rng;

/// Octets of the serials we make: 127 bits of chance, in the limit of 20 (RFC 5280 section
/// 4.1.2.2).
const OCTETS: usize = 16;

/// A certificate's serial number, lower-case hexadecimal without leading zero octets.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Serial(Arc<str>);

impl Serial {
    /// A new one. Neither zero nor negative as an integer.
    pub fn random(rng: &mut impl Rng) -> ([u8; OCTETS], Self) {
        let mut octets = [0; OCTETS];
        rng.fill_bytes(&mut octets);
        octets[0] = (octets[0] & 0x7f) | 0x40;
        (octets, Self::of(&octets))
    }

    /// The serial of a certificate, from the octets of its integer.
    pub fn of(octets: &[u8]) -> Self {
        let significant = octets.iter().position(|octet| *octet != 0);
        let octets = &octets[significant.unwrap_or(octets.len())..];
        let text: String = octets.iter().map(|octet| format!("{octet:02x}")).collect();
        Self(text.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn a_serial_is_the_same_from_the_certificates_integer() {
        let (octets, serial) = Serial::random(&mut StdRng::seed_from_u64(1));
        assert_eq!(Serial::of(&octets), serial);
        // DER puts a zero before an integer whose first bit is set.
        assert_eq!(Serial::of(&[0, 0x80, 1]), Serial::of(&[0x80, 1]));
        assert_eq!(Serial::of(&[0x0a]).as_str(), "0a");
        assert_eq!(serial.as_str().len(), 2 * OCTETS);
    }
}
