//! Integers of 32 bits with a prefix in their first byte (RFC 7541 section 5.1).

use super::Error;

/// Reads the integer whose prefix is the low `prefix_bits` of `first`, of 1 to 8, and whose rest
/// is at the front of `block`, which it is cut off.
#[inline]
pub(super) fn read(first: u8, prefix_bits: u32, block: &mut &[u8]) -> Result<u32, Error> {
    let prefix_max = u8::MAX >> (8 - prefix_bits);
    let prefix = first & prefix_max;
    if prefix < prefix_max {
        return Ok(u32::from(prefix));
    }
    read_rest(prefix, block)
}

fn read_rest(prefix: u8, block: &mut &[u8]) -> Result<u32, Error> {
    let mut value = u64::from(prefix);
    for (position, &byte) in block.iter().take(CONTINUATION_MAX).enumerate() {
        value += u64::from(byte & 0x7f) << (7 * position);
        if byte & 0x80 == 0 {
            *block = &block[position + 1..];
            return u32::try_from(value).or(Err(TOO_LARGE));
        }
    }
    match block.len() < CONTINUATION_MAX {
        true => Err(Error::Compression("block ends within an integer")),
        false => Err(TOO_LARGE),
    }
}

/// Appends `value` behind the bits `flags` of the first byte, which are above the prefix.
#[inline]
pub(super) fn write(flags: u8, prefix_bits: u32, value: usize, out: &mut Vec<u8>) {
    let prefix_max = u8::MAX >> (8 - prefix_bits);
    let small = u8::try_from(value).ok().filter(|&value| value < prefix_max);
    if let Some(value) = small {
        out.push(flags | value);
        return;
    }
    out.push(flags | prefix_max);
    write_rest(value - usize::from(prefix_max), out);
}

fn write_rest(mut rest: usize, out: &mut Vec<u8>) {
    while rest >= 0x80 {
        out.push(0x80 | low_bits(rest));
        rest >>= 7;
    }
    out.push(low_bits(rest));
}

#[expect(clippy::cast_possible_truncation, reason = "they are seven bits")]
fn low_bits(value: usize) -> u8 {
    (value & 0x7f) as u8
}

/// What follows the prefix of an integer of 32 bits, at most.
const CONTINUATION_MAX: usize = 5;

const TOO_LARGE: Error = Error::Compression("integer is too large");

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(prefix_bits: u32, value: u32, bytes: &[u8]) {
        let flags = !(u8::MAX >> (8 - prefix_bits));
        let mut written = Vec::new();
        write(flags, prefix_bits, value as usize, &mut written);
        assert_eq!(written[0] & flags, flags);
        written[0] &= !flags;
        assert_eq!(written, bytes);
        check_read(prefix_bits, bytes, Ok(value));
    }

    /// What follows the integer is left.
    #[track_caller]
    fn check_read(prefix_bits: u32, bytes: &[u8], expected: Result<u32, Error>) {
        let followed = [bytes, &[0xaa; 2]].concat();
        let mut rest = &followed[1..];
        let high_bits = !(u8::MAX >> (8 - prefix_bits));
        assert_eq!(read(bytes[0] | high_bits, prefix_bits, &mut rest), expected);
        if expected.is_ok() {
            assert_eq!(rest, [0xaa; 2]);
        }
    }

    #[test]
    fn the_examples_of_appendix_c_1() {
        check(5, 10, &[10]);
        check(5, 1337, &[0x1f, 0x9a, 0x0a]);
        check(8, 42, &[42]);
    }

    #[test]
    fn values_around_the_prefix_and_the_largest() {
        for prefix_bits in 1..=8_u8 {
            let prefix_max = u8::MAX >> (8 - prefix_bits);
            let (bits, max) = (u32::from(prefix_bits), u32::from(prefix_max));
            check(bits, 0, if max > 0 { &[0] } else { &[0, 0] });
            check(bits, max, &[prefix_max, 0]);
            check(bits, max + 127, &[prefix_max, 127]);
            check(bits, max + 128, &[prefix_max, 0x80, 1]);
        }
        check(8, u32::MAX, &[0xff, 0x80, 0xfe, 0xff, 0xff, 0x0f]);
    }

    #[test]
    fn more_than_32_bits_are_refused() {
        check_read(8, &[0xff, 0x81, 0xfe, 0xff, 0xff, 0x0f], Err(TOO_LARGE));
        check_read(5, &[0x1f, 0xff, 0xff, 0xff, 0xff, 0x7f], Err(TOO_LARGE));
        check_read(5, &[0x1f, 0x80, 0x80, 0x80, 0x80, 0x80, 0], Err(TOO_LARGE));
    }

    #[test]
    fn zeros_may_follow_within_the_bound() {
        check_read(5, &[0x1f, 0x80, 0x80, 0x80, 0x80, 0], Ok(31));
    }

    #[test]
    fn an_end_within_an_integer_is_told() {
        for mut rest in [&[][..], &[0x80], &[0xff, 0xff, 0xff, 0xff]] {
            let cut = Error::Compression("block ends within an integer");
            assert_eq!(read(0xff, 7, &mut rest), Err(cut));
        }
    }
}
