//! RFC 7541 appendix C.

use super::{LIMITS, hex, lines};
use crate::{head::Head, hpack::Decoder};

/// A decoder whose table holds 256 bytes, as the answers in the appendix want it.
fn decoder_of_256_bytes() -> Decoder {
    let mut decoder = Decoder::new(4096);
    decoder
        .decode(&hex("3f e1 01"), LIMITS, &mut Head::new())
        .unwrap();
    decoder
}

/// Blocks one after the other, with the fields of each and the size of the table behind it.
#[track_caller]
fn check(mut decoder: Decoder, blocks: &[(&str, &str, usize)]) {
    for (block, fields, size) in blocks {
        let mut head = Head::new();
        decoder.decode(&hex(block), LIMITS, &mut head).unwrap();
        assert_eq!(lines(&head), *fields);
        assert_eq!(decoder.table().size(), *size);
    }
}

#[test]
fn appendix_c_2() {
    let indexed = "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572";
    check(
        Decoder::new(4096),
        &[(indexed, "custom-key: custom-header\n", 55)],
    );
    let not_indexed = "040c 2f73 616d 706c 652f 7061 7468";
    check(
        Decoder::new(4096),
        &[(not_indexed, ":path: /sample/path\n", 0)],
    );
    let never_indexed = "1008 7061 7373 776f 7264 0673 6563 7265 74";
    check(
        Decoder::new(4096),
        &[(never_indexed, "password: secret\n", 0)],
    );
    check(Decoder::new(4096), &[("82", ":method: GET\n", 0)]);
}

const REQUESTS: [&str; 3] = [
    ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com\n",
    ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com\n\
     cache-control: no-cache\n",
    ":method: GET\n:scheme: https\n:path: /index.html\n:authority: www.example.com\n\
     custom-key: custom-value\n",
];

const ANSWERS: [&str; 3] = [
    ":status: 302\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:21 GMT\n\
     location: https://www.example.com\n",
    ":status: 307\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:21 GMT\n\
     location: https://www.example.com\n",
    ":status: 200\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:22 GMT\n\
     location: https://www.example.com\ncontent-encoding: gzip\n\
     set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1\n",
];

#[test]
fn appendix_c_3_requests_without_huffman() {
    check(
        Decoder::new(4096),
        &[
            (
                "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
                REQUESTS[0],
                57,
            ),
            ("8286 84be 5808 6e6f 2d63 6163 6865", REQUESTS[1], 110),
            (
                "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
                REQUESTS[2],
                164,
            ),
        ],
    );
}

#[test]
fn appendix_c_4_requests_with_huffman() {
    check(
        Decoder::new(4096),
        &[
            (
                "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
                REQUESTS[0],
                57,
            ),
            ("8286 84be 5886 a8eb 1064 9cbf", REQUESTS[1], 110),
            (
                "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
                REQUESTS[2],
                164,
            ),
        ],
    );
}

#[test]
fn appendix_c_5_answers_without_huffman() {
    check(
        decoder_of_256_bytes(),
        &[
            (
                "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 \
                 2032 303a 3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 \
                 6c65 2e63 6f6d",
                ANSWERS[0],
                222,
            ),
            ("4803 3330 37c1 c0bf", ANSWERS[1], 222),
            (
                "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d \
                 54c0 5a04 677a 6970 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 \
                 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e \
                 3d31",
                ANSWERS[2],
                215,
            ),
        ],
    );
}

#[test]
fn appendix_c_6_answers_with_huffman() {
    check(
        decoder_of_256_bytes(),
        &[
            (
                "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 \
                 2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
                ANSWERS[0],
                222,
            ),
            ("4883 640e ffc1 c0bf", ANSWERS[1], 222),
            (
                "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab \
                 77ad 94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f \
                 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
                ANSWERS[2],
                215,
            ),
        ],
    );
}
