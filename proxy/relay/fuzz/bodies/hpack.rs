//! Header blocks one after the other, with changes of the size of the table between them.
//!
//! No panic; limits and bounds hold; what was decoded is decoded again after it was encoded.

use heddle_relay::{
    head::{Head, Indexing},
    hpack::{Decoder, Encoder, Error, Limits},
};

use crate::script::Script;

pub(crate) fn run(input: &[u8]) {
    let mut script = Script::new(input);
    let limits = Limits {
        list_bytes_max: script.number(),
        fields_max: u32::from(script.byte()),
    };
    let mut table_bytes_max = script.number();
    let mut decoder = Decoder::new(table_bytes_max);
    table_bytes_max = table_bytes_max.max(4096);
    let mut again = Again {
        encoder: Encoder::new(),
        decoder: Decoder::new(4096),
    };
    while !script.is_over() {
        match script.byte() % 4 {
            0 => {
                let allowed = script.number();
                decoder.set_table_bytes_max(allowed);
                table_bytes_max = table_bytes_max.max(allowed);
            }
            1 => again.resize(script.number()),
            _ => {
                let mut head = Head::new();
                let decoded = decoder.decode(script.piece(), limits, &mut head);
                assert!(head.list_bytes() <= limits.list_bytes_max as usize);
                assert!(head.iter().len() <= limits.fields_max as usize);
                assert!(decoder.memory_bytes() <= 4 * table_bytes_max as usize);
                match decoded {
                    Ok(()) | Err(Error::TooLarge | Error::Malformed(_)) => again.pass(&head),
                    Err(Error::Compression(_)) => return,
                }
            }
        }
    }
}

/// The next connection that heads are sent on, and its other end.
struct Again {
    encoder: Encoder,
    decoder: Decoder,
}

impl Again {
    fn resize(&mut self, table_bytes_max: u32) {
        self.encoder.set_table_bytes_max(table_bytes_max);
        self.decoder.set_table_bytes_max(table_bytes_max);
    }

    fn pass(&mut self, head: &Head) {
        let (mut block, mut passed) = (Vec::new(), Head::new());
        self.encoder.encode(head, &mut block);
        let limits = Limits {
            list_bytes_max: u32::MAX,
            fields_max: u32::MAX,
        };
        let decoded = self.decoder.decode(&block, limits, &mut passed);
        assert_eq!(decoded, Ok(()));
        assert_eq!(passed.iter().len(), head.iter().len());
        for (sent, came) in head.iter().zip(passed.iter()) {
            assert_eq!((sent.token, sent.name), (came.token, came.name));
            assert_eq!(sent.value, came.value);
            assert!(sent.indexing != Indexing::Never || came.indexing == Indexing::Never);
        }
        assert!(self.encoder.memory_bytes() <= 13 * 1024);
    }
}
