//! Random heads from an encoder to a decoder, and random blocks from a model that does whatever
//! the RFC lets an encoder do.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{LIMITS, decode, encode};
use crate::{
    head::{Head, Indexing},
    hpack::{
        Decoder, Encoder, Error, Limits, check, huffman, integer, static_table,
        table::{FIELD_OVERHEAD, size_of_field},
    },
    token::Token,
};

const SEEDS: u64 = 60;

/// Names of the static table, other known ones, and unknown ones; few values, so that some
/// come again, and some that are new.
fn field(rng: &mut StdRng) -> (Vec<u8>, Vec<u8>) {
    let name: Vec<u8> = match rng.random_range(0..4) {
        0 => {
            let (token, _) = static_table::get(rng.random_range(1..=61)).unwrap();
            token.name().unwrap().into()
        }
        1 => b"traceparent".into(),
        2 => format!("x-{}", rng.random_range(0..40)).into(),
        _ => b"grpc-status".into(),
    };
    let value = match rng.random_range(0..10) {
        0 => vec![],
        1 => b"/".into(),
        2..7 => format!("value {}", rng.random_range(0..10)).into(),
        7 => vec![0xe4; rng.random_range(0..3000)],
        _ => format!("{:x}", rng.random::<u128>()).into(),
    };
    (name, value)
}

fn random_head(rng: &mut StdRng) -> Head {
    let mut head = Head::new();
    for _ in 0..rng.random_range(0..12) {
        let (name, value) = field(rng);
        let indexing = match rng.random_range(0..10) {
            0 => Indexing::Never,
            1..5 => Indexing::Allowed,
            _ => Indexing::Indexed,
        };
        head.push(&name, &value, indexing);
    }
    head
}

/// Name, value, and whether it may never be indexed.
fn fields(head: &Head) -> Vec<(Vec<u8>, Vec<u8>, bool)> {
    let fields = head.iter().map(|field| {
        assert_eq!(field.token, Token::of(field.name));
        let is_secret = field.indexing == Indexing::Never;
        (field.name.to_vec(), field.value.to_vec(), is_secret)
    });
    fields.collect()
}

#[test]
fn what_is_encoded_is_decoded_and_both_tables_stay_equal() {
    for seed in 0..SEEDS {
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(4096));
        let mut indexed = 0;
        for step in 0..300 {
            while rng.random_bool(0.05) {
                let size = rng.random_range(0..6000);
                encoder.set_table_bytes_max(size);
                decoder.set_table_bytes_max(size);
            }
            let head = random_head(&mut rng);
            let block = encode(&mut encoder, &head);
            let decoded = decode(&mut decoder, &block);
            let decoded = decoded.unwrap_or_else(|error| panic!("seed {seed}, {step}: {error}"));
            let (sent, came) = (fields(&head), fields(&decoded));
            assert_eq!(sent.len(), came.len(), "seed {seed}, {step}");
            for (sent, came) in sent.iter().zip(&came) {
                assert_eq!(
                    (&sent.0, &sent.1),
                    (&came.0, &came.1),
                    "seed {seed}, {step}"
                );
                assert!(came.2 || !sent.2, "a secret is told: seed {seed}, {step}");
            }
            let (ours, theirs) = (encoder.table(), decoder.table());
            assert_eq!(ours.fields(), theirs.fields(), "seed {seed}, {step}");
            assert_eq!(ours.size(), theirs.size(), "seed {seed}, {step}");
            assert!(ours.size() <= ours.size_max() && ours.size_max() <= 4096);
            assert!(ours.memory_bytes() <= 3 * 4096, "seed {seed}, {step}");
            indexed += usize::from(block.len() < head.list_bytes() / 4);
        }
        assert!(indexed > 0, "seed {seed}: nothing was compressed");
    }
}

/// An encoder that is as simple as can be, and chooses at random.
struct Model {
    /// Newest first.
    table: Vec<(Vec<u8>, Vec<u8>)>,
    size_max: usize,
}

/// What a block stands for.
#[derive(Default)]
struct Expected {
    fields: Vec<(Vec<u8>, Vec<u8>)>,
    is_malformed: bool,
}

impl Model {
    fn block(&mut self, rng: &mut StdRng, expected: &mut Expected) -> Vec<u8> {
        let mut block = Vec::new();
        while rng.random_bool(0.1) {
            self.size_max = rng.random_range(0..=4096);
            integer::write(0x20, 5, self.size_max, &mut block);
            self.evict();
        }
        for _ in 0..rng.random_range(0..20) {
            let (name, value) = match rng.random_bool(0.5) {
                true => self.indexed(rng, &mut block),
                false => self.literal(rng, &mut block),
            };
            let judged = check::value(Token::of(&name), &value);
            expected.is_malformed |= check::name(&name).is_err() || judged.is_err();
            expected.fields.push((name, value.trim_ascii().to_vec()));
        }
        block
    }

    fn indexed(&mut self, rng: &mut StdRng, block: &mut Vec<u8>) -> (Vec<u8>, Vec<u8>) {
        let index = self.index(rng);
        integer::write(0x80, 7, index, block);
        self.get(index)
    }

    fn literal(&mut self, rng: &mut StdRng, block: &mut Vec<u8>) -> (Vec<u8>, Vec<u8>) {
        let (mut name, mut value) = field(rng);
        if rng.random_bool(0.003) {
            name.insert(0, b'A');
        }
        if rng.random_bool(0.003) {
            value.push(b'\n');
        }
        if rng.random_bool(0.05) {
            value.insert(0, b' ');
            value.push(b'\t');
        }
        let enters = rng.random_bool(0.6);
        let (flags, prefix_bits) = match (enters, rng.random_bool(0.5)) {
            (true, _) => (0x40, 6),
            (false, true) => (0x00, 4),
            (false, false) => (0x10, 4),
        };
        if rng.random_bool(0.5) {
            let index = self.index(rng);
            integer::write(flags, prefix_bits, index, block);
            name = self.get(index).0;
        } else {
            block.push(flags);
            string(rng, &name, block);
        }
        string(rng, &value, block);
        if enters {
            self.table.insert(0, (name.clone(), value.clone()));
            self.evict();
        }
        (name, value)
    }

    fn index(&self, rng: &mut StdRng) -> usize {
        let dynamic = self.table.len();
        match dynamic > 0 && rng.random_bool(0.7) {
            true => 62 + rng.random_range(0..dynamic),
            false => rng.random_range(1..=61),
        }
    }

    fn get(&self, index: usize) -> (Vec<u8>, Vec<u8>) {
        match static_table::get(index) {
            Some((token, value)) => (token.name().unwrap().into(), value.into()),
            None => self.table[index - 62].clone(),
        }
    }

    fn size(&self) -> usize {
        let sizes = self
            .table
            .iter()
            .map(|(name, value)| size_of_field(name, value));
        sizes.sum()
    }

    fn evict(&mut self) {
        while self.size() > self.size_max {
            self.table.pop();
        }
    }
}

fn string(rng: &mut StdRng, string: &[u8], block: &mut Vec<u8>) {
    if rng.random_bool(0.5) {
        integer::write(0x80, 7, huffman::encoded_len(string), block);
        huffman::encode(string, block);
    } else {
        integer::write(0, 7, string.len(), block);
        block.extend_from_slice(string);
    }
}

#[test]
fn whatever_an_encoder_does_is_understood() {
    let (mut taken, mut malformed, mut too_large) = (0, 0, 0);
    for seed in 0..SEEDS {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut decoder = Decoder::new(4096);
        let mut model = Model {
            table: vec![],
            size_max: 4096,
        };
        for step in 0..200 {
            let mut expected = Expected::default();
            let block = model.block(&mut rng, &mut expected);
            let limits = match rng.random_bool(0.1) {
                true => Limits {
                    list_bytes_max: rng.random_range(0..3000),
                    fields_max: rng.random_range(0..20),
                },
                false => LIMITS,
            };
            let mut head = Head::new();
            let decoded = decoder.decode(&block, limits, &mut head);
            let came: Vec<_> = fields(&head).into_iter().map(|(n, v, _)| (n, v)).collect();
            let names_and_values = came.iter().map(|(name, value)| name.len() + value.len());
            let list_bytes = names_and_values.sum::<usize>() + came.len() * FIELD_OVERHEAD;
            assert!(list_bytes <= limits.list_bytes_max as usize);
            assert!(came.len() <= limits.fields_max as usize);
            assert_eq!(came, expected.fields[..came.len()], "seed {seed}, {step}");
            match decoded {
                Ok(()) => {
                    assert_eq!(came.len(), expected.fields.len(), "seed {seed}, {step}");
                    assert!(!expected.is_malformed, "seed {seed}, {step}");
                    taken += 1;
                }
                Err(Error::TooLarge) => too_large += 1,
                Err(Error::Malformed(_)) => {
                    assert!(expected.is_malformed, "seed {seed}, {step}");
                    malformed += 1;
                }
                Err(Error::Compression(why)) => panic!("seed {seed}, {step}: {why}"),
            }
            assert_eq!(decoder.table().fields(), model.table, "seed {seed}, {step}");
            assert_eq!(decoder.table().size(), model.size(), "seed {seed}, {step}");
        }
    }
    assert!(taken > 1000 && malformed > 100 && too_large > 100);
}

/// No panic, whatever bytes come, and no more is kept than the limits say.
#[test]
fn random_bytes_are_survived() {
    for seed in 0..SEEDS {
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..100 {
            let mut decoder = Decoder::new(4096);
            for _ in 0..4 {
                let mut block = vec![0; rng.random_range(0..200)];
                rng.fill(&mut block[..]);
                let mut head = Head::new();
                let decoded = decoder.decode(&block, LIMITS, &mut head);
                assert!(
                    head.list_bytes() <= LIMITS.list_bytes_max as usize,
                    "seed {seed}"
                );
                if matches!(decoded, Err(Error::Compression(_))) {
                    break;
                }
            }
        }
    }
}
