//! What a decoder refuses, and that its table follows all the same.

use super::{LIMITS, decode, hex, lines};
use crate::{
    head::Head,
    hpack::{Decoder, Error, Limits, huffman, integer},
};

#[track_caller]
fn check_lost(blocks: &[&str], why: &str) {
    let mut decoder = Decoder::new(4096);
    let (last, before) = blocks.split_last().unwrap();
    for block in before {
        decode(&mut decoder, &hex(block)).unwrap();
    }
    match decode(&mut decoder, &hex(last)) {
        Err(Error::Compression(reason)) => assert_eq!(reason, why),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_index_is_that_of_a_field() {
    let why = "index of no field";
    check_lost(&["80"], why);
    check_lost(&["be"], why);
    check_lost(&["ff 80 ff ff ff 0f"], why);
    // Of a name.
    check_lost(&["7e 00"], why);
    check_lost(&["0f 2f 00"], why);
    check_lost(&["1f 2f 00"], why);
    // One field has entered, and one has left again.
    check_lost(&["41 01 61", "bf"], why);
    check_lost(&["41 01 61", "20 be"], why);
}

#[test]
fn a_block_ends_behind_a_field() {
    let in_string = "block ends within a string";
    check_lost(&["40"], in_string);
    check_lost(&["40 02 61"], in_string);
    check_lost(&["40 01 61"], in_string);
    check_lost(&["41 03 61 62"], in_string);
    check_lost(&["01 ff ff ff ff ff 0e"], in_string);
    let in_integer = "block ends within an integer";
    check_lost(&["ff"], in_integer);
    check_lost(&["ff 80"], in_integer);
    check_lost(&["7f"], in_integer);
    check_lost(&["41 7f 80"], in_integer);
    check_lost(&["3f"], in_integer);
}

#[test]
fn integers_have_32_bits() {
    let why = "integer is too large";
    check_lost(&["ff ff ff ff ff 7f"], why);
    check_lost(&["ff 80 80 80 80 80 00"], why);
    check_lost(&["01 7f ff ff ff ff 1f"], why);
    check_lost(&["3f ff ff ff ff ff ff ff ff ff 01"], why);
}

#[test]
fn strings_are_well_coded() {
    check_lost(&["01 81 00"], "Huffman code ends early");
    check_lost(&["01 82 1f ff"], "Huffman code ends early");
    check_lost(&["01 84 ff ff ff ff"], "EOS in a Huffman code");
    // Also where the string is not kept, as the list is full.
    let mut block = [0x82].repeat(LIMITS.fields_max as usize + 1);
    block.extend_from_slice(&[0x01, 0x81, 0x00]);
    let decoded = decode(&mut Decoder::new(4096), &block);
    assert_eq!(
        decoded.unwrap_err(),
        Error::Compression("Huffman code ends early")
    );
}

#[test]
fn the_size_of_the_table_changes_within_bounds_and_first_in_a_block() {
    check_lost(&["3f e2 1f"], "table is made larger than allowed");
    check_lost(&["20 3f e2 1f"], "table is made larger than allowed");
    check_lost(&["82 20"], "table size changes amid a block");
    check_lost(&["20 82 3f e1 1f"], "table size changes amid a block");
}

/// SETTINGS that are acknowledged one after the other, and whether the next block is taken.
#[track_caller]
fn check_lowered(acknowledged: &[u32], block: &str, is_taken: bool) {
    let mut decoder = Decoder::new(4096);
    for &table_bytes_max in acknowledged {
        decoder.set_table_bytes_max(table_bytes_max);
    }
    let decoded = decode(&mut decoder, &hex(block));
    assert_eq!(decoded.is_ok(), is_taken, "{decoded:?}");
}

#[test]
fn a_table_that_is_too_large_is_made_smaller_in_the_next_block() {
    check_lowered(&[4096], "82", true);
    check_lowered(&[8192], "82", true);
    check_lowered(&[8192], "3f e1 3f 82", true);
    check_lowered(&[100], "82", false);
    check_lowered(&[100], "", false);
    check_lowered(&[100], "3f 45 82", true);
    check_lowered(&[100], "3f 46 82", false);
    check_lowered(&[100], "20 82", true);
    check_lowered(&[100, 4096], "82", false);
    check_lowered(&[100, 4096], "3f e1 1f 82", false);
    check_lowered(&[100, 4096], "3f 45 3f e1 1f 82", true);
    check_lowered(&[100, 50], "3f 45 82", false);
    check_lowered(&[0, 100], "20 3f 45 82", true);
    check_lowered(&[0, 100], "20 82", true);
}

#[test]
fn a_peer_may_use_4096_bytes_until_it_has_acknowledged_less() {
    let mut decoder = Decoder::new(0);
    let fields = decode(&mut decoder, &hex("41 01 61 be")).unwrap();
    assert_eq!(lines(&fields), ":authority: a\n:authority: a\n");
    decoder.set_table_bytes_max(0);
    assert_eq!(
        lines(&decode(&mut decoder, &hex("20 82")).unwrap()),
        ":method: GET\n"
    );
    assert_eq!(decoder.table().len(), 0);
    // Only once: the table is as small as it has to be.
    decode(&mut decoder, &hex("82")).unwrap();
}

/// A field that is refused enters the table like any other, and is refused again by its index.
#[track_caller]
fn check_malformed(name: &[u8], value: &[u8]) {
    let mut block = vec![0x40];
    for string in [name, value] {
        integer::write(0, 7, string.len(), &mut block);
        block.extend_from_slice(string);
    }
    // A second, well-formed one behind it.
    block.extend_from_slice(b"\x41\x01a");
    let mut decoder = Decoder::new(4096);
    let mut check = |block: &[u8]| match decode(&mut decoder, block) {
        Err(Error::Malformed(_)) => {}
        other => panic!("{other:?}"),
    };
    check(&block);
    check(&[0xbf]);
    check(&[0x82, 0xbe, 0xbf, 0x82]);
    assert_eq!(
        lines(&decode(&mut decoder, &[0xbe]).unwrap()),
        ":authority: a\n"
    );
    assert_eq!(decoder.table().fields()[1], (name.to_vec(), value.to_vec()));
}

#[test]
fn names_and_values_are_those_of_http_2() {
    for name in [
        "", ":", "Te", "te:", "a b", "a\r\nb", "a\0", "é", "::path", ":Path",
    ] {
        check_malformed(name.as_bytes(), b"value");
    }
    for value in ["a\nb", "a\rb", "a\0", "\x7f", " \n", "\r "] {
        check_malformed(b"name", value.as_bytes());
        check_malformed(b":path", value.as_bytes());
    }
    for value in [" ", "a ", "\ta"] {
        check_malformed(b":path", value.as_bytes());
    }
}

/// A value with white space at its ends is passed on without it, by every way on which it can come,
/// and is in the table with it.
#[test]
fn white_space_at_the_ends_of_a_value_is_taken_off() {
    for name in ["name", "grpc-message"] {
        for (value, trimmed) in [(" a b\t", "a b"), ("a ", "a"), (" ", ""), ("\t \t", "")] {
            let mut decoder = Decoder::new(4096);
            for first in [0x00, 0x10, 0x40] {
                let mut block = vec![first];
                for string in [name, value] {
                    integer::write(0, 7, string.len(), &mut block);
                    block.extend_from_slice(string.as_bytes());
                }
                block.extend_from_slice(b"\x00\x01x\x01y");
                let expected = format!("{name}: {trimmed}\nx: y\n");
                assert_eq!(lines(&decode(&mut decoder, &block).unwrap()), expected);
            }
            let expected = format!("{name}: {trimmed}\n{name}: {trimmed}\n:method: GET\n");
            let again = decode(&mut decoder, &[0xbe, 0xbe, 0x82]).unwrap();
            assert_eq!(lines(&again), expected);
            let stored = (name.as_bytes().to_vec(), value.as_bytes().to_vec());
            assert_eq!(decoder.table().fields(), [stored]);
        }
    }
}

#[test]
fn the_name_of_a_malformed_field_is_judged_by_itself() {
    let mut decoder = Decoder::new(4096);
    let malformed = |block: &[u8], decoder: &mut Decoder| {
        assert!(matches!(decode(decoder, block), Err(Error::Malformed(_))));
    };
    // A good name with a bad value, then a bad name with a good value.
    malformed(b"\x40\x01a\x01\n", &mut decoder);
    malformed(b"\x40\x01B\x01b", &mut decoder);
    assert_eq!(
        lines(&decode(&mut decoder, b"\x0f\x30\x01c").unwrap()),
        "a: c\n"
    );
    malformed(b"\x0f\x2f\x01c", &mut decoder);
    malformed(b"\x7e\x01c", &mut decoder);
    malformed(b"\xbe", &mut decoder);
}

#[track_caller]
fn check_limits(block: &[u8], limits: Limits, is_taken: bool) {
    let decoded = Decoder::new(4096).decode(block, limits, &mut Head::new());
    assert_eq!(
        decoded,
        if is_taken {
            Ok(())
        } else {
            Err(Error::TooLarge)
        }
    );
}

#[test]
fn a_list_has_as_many_fields_and_bytes_as_its_limits_say() {
    let limits = |list_bytes_max, fields_max| Limits {
        list_bytes_max,
        fields_max,
    };
    let block = b"\x82\x41\x01a\xbe\x00\x01b\x02cd\x10\x01b\x02cd";
    // `:method: GET`, `:authority: a` twice, and `b: cd` twice.
    let bytes = 10 + 11 + 11 + 3 + 3 + 5 * 32;
    check_limits(block, limits(bytes, 5), true);
    check_limits(block, limits(bytes - 1, 5), false);
    check_limits(block, limits(bytes, 4), false);
    check_limits(b"", limits(0, 0), true);
    check_limits(b"\x82", limits(41, 1), false);
    check_limits(b"\x82", limits(u32::MAX, 0), false);
}

#[test]
fn what_is_behind_a_limit_enters_the_table() {
    let mut decoder = Decoder::new(4096);
    let limits = Limits {
        list_bytes_max: 40,
        fields_max: 100,
    };
    let block = b"\x40\x01a\x01b\x40\x01c\x01d\x7e\x01e\xc0\x41\x01f";
    let mut head = Head::new();
    assert_eq!(
        decoder.decode(block, limits, &mut head),
        Err(Error::TooLarge)
    );
    assert_eq!(lines(&head), "a: b\n");
    let fields = decode(&mut decoder, &hex("c1 c0 bf be")).unwrap();
    assert_eq!(lines(&fields), "a: b\nc: d\nc: e\n:authority: f\n");
}

/// 16 KiB that refer to one large field stand for 64 MiB.
#[test]
fn a_bomb_costs_no_more_than_the_limits() {
    let mut decoder = Decoder::new(4096);
    let large = [b'a'; 4000];
    let mut block = b"\x40\x01a".to_vec();
    integer::write(0, 7, large.len(), &mut block);
    block.extend_from_slice(&large);
    decode(&mut decoder, &block).unwrap();

    let by_index = [0xbe; 16 * 1024];
    let with_its_name = b"\x0f\x2f\x00".repeat(5 * 1024);
    for block in [&by_index[..], &with_its_name] {
        let block = [block, b"\x41\x01b"].concat();
        let mut head = Head::new();
        let decoded = decoder.decode(&block, LIMITS, &mut head);
        assert_eq!(decoded, Err(Error::TooLarge));
        assert!(head.list_bytes() <= LIMITS.list_bytes_max as usize);
        assert!(head.memory_bytes() <= 3 * LIMITS.list_bytes_max as usize);
        assert_eq!(
            lines(&decode(&mut decoder, &[0xbe]).unwrap()),
            ":authority: b\n"
        );
        decode(&mut decoder, b"\x20\x3f\xe1\x1f\x41\x01c").unwrap();
    }
    assert!(decoder.memory_bytes() <= 3 * 4096);
}

/// A name of 4,000 bytes that a sender has copied within the table for every two bytes, behind a
/// limit.
#[test]
fn long_names_are_not_copied_without_end() {
    let name = [b'a'; 4000];
    let mut block = vec![0x40];
    integer::write(0, 7, name.len(), &mut block);
    block.extend_from_slice(&name);
    block.push(0);
    let of_name = |count: usize| [&block[..], &b"\x7e\x00".repeat(count)].concat();
    let limits = Limits {
        list_bytes_max: 8 * 1024,
        fields_max: 100,
    };
    let decode = |count| Decoder::new(4096).decode(&of_name(count), limits, &mut Head::new());
    assert_eq!(decode(1), Ok(()));
    assert_eq!(decode(60), Err(Error::TooLarge));
    let lost = Error::Compression("too many names behind a limit");
    assert_eq!(decode(70), Err(lost));
}

/// The most that the Huffman code can stand for, many times: room is as the block's, not more.
#[test]
fn long_strings_take_room_while_they_are_decoded() {
    let mut block = vec![];
    let mut coded = vec![];
    huffman::encode(&[b'0'; 16_000], &mut coded);
    for _ in 0..10 {
        block.push(0x01);
        integer::write(0x80, 7, coded.len(), &mut block);
        block.extend_from_slice(&coded);
    }
    let limits = Limits {
        list_bytes_max: 20_000,
        fields_max: 100,
    };
    let mut head = Head::new();
    let decoded = Decoder::new(4096).decode(&block, limits, &mut head);
    assert_eq!(decoded, Err(Error::TooLarge));
    assert!(head.memory_bytes() <= 4 * 20_000, "{}", head.memory_bytes());
}
