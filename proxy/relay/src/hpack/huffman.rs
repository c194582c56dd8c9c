//! The Huffman code of string literals (RFC 7541 section 5.2 and appendix B).
//!
//! It is a canonical code, so that the lengths of the codes are all there is to know: shorter
//! ones come first, and those of one length follow each other in the order of their symbols.

use super::Error;

/// Appends what `encoded` stands for: at most 8 bytes for 5.
pub(super) fn decode(encoded: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    let mut bits = Bits {
        window: 0,
        count: 0,
        rest: encoded,
    };
    loop {
        bits.fill();
        // At least three times: 56 bits were filled unless these are the last.
        while bits.count >= PAIR_BITS {
            let pair = &PAIRS[(bits.window >> (64 - PAIR_BITS)) as usize];
            match pair.symbols {
                0 => out.push(bits.long_code()?),
                1 => {
                    out.push(pair.decoded[0]);
                    bits.skip(pair.bits.into());
                }
                _ => {
                    out.extend_from_slice(&pair.decoded);
                    bits.skip(pair.bits.into());
                }
            }
        }
        if bits.rest.is_empty() {
            return bits.end(out);
        }
    }
}

/// How many bytes `plain` takes encoded.
pub(super) fn encoded_len(plain: &[u8]) -> usize {
    let lengths = plain.iter().map(|&byte| CODES[usize::from(byte)].bits);
    lengths.map(usize::from).sum::<usize>().div_ceil(8)
}

/// Appends `plain`, encoded.
pub(super) fn encode(plain: &[u8], out: &mut Vec<u8>) {
    let (mut window, mut free) = (0_u64, 64);
    for &byte in plain {
        let code = CODES[usize::from(byte)];
        free -= u32::from(code.bits);
        window |= u64::from(code.code) << free;
        // The longest code takes 30 bits.
        if free < 32 {
            out.extend_from_slice(&window.to_be_bytes()[..4]);
            window <<= 32;
            free += 32;
        }
    }
    // Padding is the beginning of EOS, whose bits are all set.
    window |= u64::MAX.checked_shr(64 - free).unwrap_or(0);
    let used = (64 - free).div_ceil(8) as usize;
    out.extend_from_slice(&window.to_be_bytes()[..used]);
}

/// The bits that come next, from the highest of `window` on; those behind the first `count` of
/// them are 0 or are those of `rest`.
struct Bits<'a> {
    window: u64,
    count: u32,
    rest: &'a [u8],
}

impl Bits<'_> {
    /// Fills the window to at least 56 bits, if so many are left.
    fn fill(&mut self) {
        if let Some(next) = self.rest.first_chunk() {
            self.window |= u64::from_be_bytes(*next) >> self.count;
            let bytes = (63 - self.count) / 8;
            self.rest = &self.rest[bytes as usize..];
            self.count += 8 * bytes;
            return;
        }
        while self.count <= 56
            && let Some((&next, rest)) = self.rest.split_first()
        {
            self.window |= u64::from(next) << (56 - self.count);
            self.count += 8;
            self.rest = rest;
        }
    }

    fn skip(&mut self, bits: u32) {
        self.window <<= bits;
        self.count -= bits;
    }

    /// Takes a code of more than [`PAIR_BITS`], or of any length at the end.
    fn long_code(&mut self) -> Result<u8, Error> {
        self.fill();
        let next = (self.window >> 32) as u32;
        let class = CLASSES.iter().find(|class| next <= class.last);
        let class = class.expect("the last class ends with all bits set");
        if class.bits > self.count {
            return Err(Error::Compression("Huffman code ends early"));
        }
        let at = class.symbols_from + ((next - class.first) >> (32 - class.bits)) as usize;
        self.skip(class.bits);
        let symbol = SYMBOLS[at];
        u8::try_from(symbol).or(Err(Error::Compression("EOS in a Huffman code")))
    }

    /// Takes the last codes, and the padding: less than 8 bits, all set.
    fn end(mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        loop {
            let is_padding = self.window.leading_ones() >= self.count;
            if is_padding && self.count < 8 {
                return Ok(());
            }
            out.push(self.long_code()?);
        }
    }
}

#[derive(Clone, Copy)]
struct Code {
    code: u32,
    bits: u8,
}

/// By symbol.
static CODES: [Code; 257] = {
    let mut codes = [Code { code: 0, bits: 0 }; 257];
    let (mut at, mut next, mut bits) = (0, 0_u32, 0);
    while at < SYMBOLS.len() {
        let symbol = SYMBOLS[at] as usize;
        next <<= LENGTHS[symbol] - bits;
        bits = LENGTHS[symbol];
        codes[symbol] = Code { code: next, bits };
        next += 1;
        at += 1;
    }
    assert!(next == 1 << bits, "the code is complete");
    codes
};

/// In the order of their codes. 256 is EOS.
#[expect(clippy::cast_possible_truncation, reason = "there are 257")]
static SYMBOLS: [u16; 257] = {
    let mut symbols = [0; 257];
    let (mut bits, mut at) = (1, 0);
    while bits <= BITS_MAX {
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] == bits {
                symbols[at] = symbol as u16;
                at += 1;
            }
            symbol += 1;
        }
        bits += 1;
    }
    symbols
};

/// The codes of one length: their first and last when they are the high bits of a word.
#[derive(Clone, Copy)]
struct Class {
    bits: u32,
    /// The bits behind the code are 0.
    first: u32,
    /// The bits behind the code are 1.
    last: u32,
    /// Where the symbol of `first` is in [`SYMBOLS`].
    symbols_from: usize,
}

/// From the shortest codes to the longest.
static CLASSES: [Class; CLASS_COUNT] = {
    let nothing = Class {
        bits: 0,
        first: 0,
        last: 0,
        symbols_from: 0,
    };
    let mut classes = [nothing; CLASS_COUNT];
    let (mut at, mut class) = (0, 0);
    while at < SYMBOLS.len() {
        let Code { code, bits } = CODES[SYMBOLS[at] as usize];
        let bits = bits as u32;
        let first = code << (32 - bits);
        let last = first | (u32::MAX >> bits);
        if at > 0 && classes[class].bits == bits {
            classes[class].last = last;
        } else {
            class += (at > 0) as usize;
            classes[class] = Class {
                bits,
                first,
                last,
                symbols_from: at,
            };
        }
        at += 1;
    }
    assert!(class + 1 == CLASS_COUNT);
    classes
};

/// What the next [`PAIR_BITS`] begin with: two symbols, one, or none when the code is longer.
#[derive(Clone, Copy)]
struct Pair {
    decoded: [u8; 2],
    symbols: u8,
    /// Of all symbols.
    bits: u8,
}

/// 16 KiB, most of it for letters that are seldom: what is used stays in a cache of the first
/// level. Two codes of the most common letters and digits (5 and 6 bits) fit.
#[expect(clippy::cast_possible_truncation, reason = "EOS is longer")]
static PAIRS: [Pair; 1 << PAIR_BITS] = {
    let nothing = Pair {
        decoded: [0; 2],
        symbols: 0,
        bits: 0,
    };
    let mut pairs = [nothing; 1 << PAIR_BITS];
    let mut at = 0;
    while at < SYMBOLS.len() {
        let symbol = SYMBOLS[at];
        let Code { code, bits } = CODES[symbol as usize];
        if bits as u32 > PAIR_BITS {
            break;
        }
        let rest_bits = PAIR_BITS - bits as u32;
        let mut rest = 0;
        while rest < 1 << rest_bits {
            let place = &mut pairs[((code << rest_bits) | rest) as usize];
            place.decoded[0] = symbol as u8;
            place.symbols = 1;
            place.bits = bits;
            rest += 1;
        }
        at += 1;
    }
    let mut first = 0;
    while first < pairs.len() {
        let bits = pairs[first].bits;
        let second = pairs[(first << bits) & (pairs.len() - 1)];
        if pairs[first].symbols == 1 && (bits + second_bits(second)) as u32 <= PAIR_BITS {
            pairs[first].decoded[1] = second.decoded[0];
            pairs[first].symbols = 2;
            pairs[first].bits = bits + second_bits(second);
        }
        first += 1;
    }
    pairs
};

/// Of the first symbol of `pair`, which may have been given its second already.
const fn second_bits(pair: Pair) -> u8 {
    match pair.symbols {
        0 => u8::MAX / 2,
        _ => LENGTHS[pair.decoded[0] as usize],
    }
}

const PAIR_BITS: u32 = 12;
const BITS_MAX: u8 = 30;
const CLASS_COUNT: usize = 21;

/// Bits of the code of each symbol.
static LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, //
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28, //
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, //
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, //
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, //
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, //
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, //
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, //
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, //
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, //
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, //
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, //
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, //
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, //
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, //
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, //
    30,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(plain: &[u8]) {
        let (mut encoded, mut decoded) = (Vec::new(), Vec::new());
        encode(plain, &mut encoded);
        assert_eq!(encoded.len(), encoded_len(plain));
        decode(&encoded, &mut decoded).unwrap();
        assert_eq!(decoded, plain);
    }

    #[track_caller]
    fn check_refused(encoded: &[u8]) {
        let decoded = decode(encoded, &mut Vec::new());
        assert!(
            matches!(decoded, Err(Error::Compression(_))),
            "{encoded:x?}"
        );
    }

    #[test]
    fn every_symbol_alone_and_beside_every_other() {
        check(b"");
        for first in 0..=255 {
            check(&[first]);
            for second in 0..=255 {
                check(&[first, second]);
                check(&[b'0', first, second, b'~', first]);
            }
        }
    }

    #[test]
    fn long_strings() {
        let all: Vec<u8> = (0..4096_u32).map(|n| (n * n / 7 % 251) as u8).collect();
        for end in (0..all.len()).step_by(37) {
            check(&all[..end]);
        }
        check(&[b'a'; 1000]);
        check(&[b'\n'; 1000]);
    }

    #[test]
    fn some_codes_of_appendix_b() {
        for (symbol, code, bits) in [
            (b'0', 0x0, 5),
            (b't', 0x9, 5),
            (b' ', 0x14, 6),
            (b'z', 0x7b, 7),
            (b'&', 0xf8, 8),
            (b'!', 0x3f8, 10),
            (b'|', 0x7fc, 11),
            (b'\\', 0x7fff0, 19),
            (0x00, 0x1ff8, 13),
            (0x16, 0x3fff_fffe, 30),
            (0xff, 0x3ff_ffee, 26),
        ] {
            let of = CODES[usize::from(symbol)];
            assert_eq!((of.code, of.bits), (code, bits), "{symbol:#x}");
        }
        assert_eq!((CODES[256].code, CODES[256].bits), (0x3fff_ffff, 30));
    }

    #[test]
    fn padding_is_short_and_set() {
        check_refused(&[0xff]);
        check_refused(&[0b0000_0111, 0xff]);
        check_refused(&[0b0000_0000]);
        check_refused(&[0b0000_0110]);
        check_refused(&[0b0000_0011]);
        let mut decoded = Vec::new();
        decode(&[0b0000_0111], &mut decoded).unwrap();
        assert_eq!(decoded, b"0");
    }

    #[test]
    fn codes_do_not_end_early_and_eos_does_not_come() {
        check_refused(&[0xff, 0xff, 0xff, 0xff]);
        check_refused(&[0xff, 0xff, 0xff, 0xfc]);
        check_refused(&[0xff, 0xff]);
        check_refused(&[0b0000_0111, 0b1111_1111, 0xff, 0xff, 0xff, 0xff, 0xff]);
        // The first 8 of the 13 bits of `$`.
        check_refused(&[0b0000_0111, 0b1111_1111]);
    }
}
