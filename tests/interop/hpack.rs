//! Our HPACK against that of another implementation: what one encodes the other decodes, and
//! neither takes a block that the other refuses.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use heddle_relay::{
    head::{Head, Indexing},
    hpack::{Decoder, Encoder, Error, Limits},
};
use heddle_tests::netns::Requires;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde::Deserialize;
use serde_json::{Value, json};

use super::peers;

const SEEDS: u64 = 20;
const BLOCKS: u32 = 100;

const LIMITS: Limits = Limits {
    list_bytes_max: u32::MAX,
    fields_max: u32::MAX,
};

/// Name, value, and whether it is secret.
type Field = (String, String, bool);

#[test]
fn another_implementation_decodes_what_we_encode() -> Result<()> {
    each_seed(|rng, peer| {
        let mut encoder = Encoder::new();
        for _ in 0..BLOCKS {
            if rng.random_bool(0.1) {
                let size = rng.random_range(0..5000);
                encoder.set_table_bytes_max(size);
                peer.ask(&json!({ "size": size }))?;
            }
            let head = random_head(rng);
            let mut block = Vec::new();
            encoder.encode(&head, &mut block);
            let answer = peer.ask(&json!({ "decode": hex(&block) }))?;
            let came = answer
                .fields
                .with_context(|| format!("{:?}", answer.error))?;
            let sent = fields(&head);
            ensure!(came.len() == sent.len());
            for (sent, came) in sent.iter().zip(&came) {
                ensure!((&sent.0, &sent.1) == (&came.0, &came.1));
                ensure!(came.2 || !sent.2, "a secret is told");
            }
        }
        Ok(())
    })
}

#[test]
fn we_decode_what_another_implementation_encodes() -> Result<()> {
    each_seed(|rng, peer| {
        let mut decoder = Decoder::new(4096);
        for _ in 0..BLOCKS {
            if rng.random_bool(0.1) {
                let size = rng.random_range(0..5000);
                decoder.set_table_bytes_max(size);
                peer.ask(&json!({ "size": size }))?;
            }
            let sent = fields(&random_head(rng));
            let answer = peer.ask(&json!({ "encode": sent }))?;
            let block = bytes(&answer.block.context("a block")?)?;
            let mut head = Head::new();
            decoder.decode(&block, LIMITS, &mut head)?;
            let came = fields(&head);
            ensure!(came.len() == sent.len());
            for (sent, came) in sent.iter().zip(&came) {
                ensure!((&sent.0, &sent.1) == (&came.0, &came.1));
                // It indexes a secret that is in its table.
                ensure!(sent.2 || !came.2, "nobody said that it is secret");
            }
        }
        Ok(())
    })
}

/// Every entry of the static table, and every character that a value may have.
#[test]
fn the_tables_of_the_rfc_are_the_same() -> Result<()> {
    let Some(mut peer) = Peer::start()? else {
        return Ok(());
    };
    let mut decoder = Decoder::new(4096);
    let indexed: Vec<u8> = (0x81..0x81 + 61).collect();
    let theirs = peer.ask(&json!({ "decode": hex(&indexed) }))?.fields;
    let mut ours = Head::new();
    decoder.decode(&indexed, LIMITS, &mut ours)?;
    ensure!(theirs.context("fields")? == fields(&ours));

    let characters: Vec<u8> = (0x21..0x7f).chain(0x80..=0xff).collect();
    let characters: Vec<_> = characters.iter().map(std::slice::from_ref).collect();
    let spaced = characters.join(&b"\t "[..]);
    let sent = [("61".to_owned(), hex(&spaced), false)];
    let answer = peer.ask(&json!({ "encode": sent }))?;
    let mut came = Head::new();
    decoder.decode(
        &bytes(&answer.block.context("a block")?)?,
        LIMITS,
        &mut came,
    )?;
    ensure!(fields(&came) == sent);
    Ok(())
}

/// Blocks in which some bytes are others, as long as both understand them.
#[test]
fn what_we_refuse_another_implementation_refuses() -> Result<()> {
    each_seed(|rng, peer| {
        let mut refused = 0;
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(4096));
        for _ in 0..BLOCKS {
            let mut block = Vec::new();
            encoder.encode(&random_head(rng), &mut block);
            for _ in 0..rng.random_range(0..4) {
                if !block.is_empty() {
                    let at = rng.random_range(0..block.len());
                    block[at] = rng.random();
                }
            }
            let mut head = Head::new();
            let ours = decoder.decode(&block, LIMITS, &mut head);
            let theirs = peer.ask(&json!({ "decode": hex(&block) }))?;
            let context = || format!("{}: {ours:?}, {:?}", hex(&block), theirs.error);
            match ours {
                // It leaves names and values to whoever uses it.
                Ok(()) | Err(Error::Malformed(_)) => {
                    let came = trimmed(theirs.fields.as_ref().with_context(context)?)?;
                    let taken = fields(&head);
                    ensure!(came.starts_with(&taken), context());
                    ensure!(ours.is_err() || came.len() == taken.len(), context());
                }
                Err(Error::Compression(_)) => {
                    ensure!(theirs.error.is_some(), context());
                    refused += 1;
                    decoder = Decoder::new(4096);
                    encoder = Encoder::new();
                    peer.ask(&json!({ "new": true }))?;
                }
                Err(Error::TooLarge) => unreachable!("there are no limits"),
            }
        }
        ensure!(refused > 0, "no block was refused");
        Ok(())
    })
}

/// As we pass them on: without white space at the ends of values.
fn trimmed(fields: &[Field]) -> Result<Vec<Field>> {
    let trimmed = fields
        .iter()
        .map(|(name, value, is_secret)| -> Result<Field> {
            let value = bytes(value)?;
            Ok((name.clone(), hex(value.trim_ascii()), *is_secret))
        });
    trimmed.collect()
}

/// Runs it for every seed, with a peer that begins anew.
fn each_seed(mut run: impl FnMut(&mut StdRng, &mut Peer) -> Result<()>) -> Result<()> {
    let Some(mut peer) = Peer::start()? else {
        return Ok(());
    };
    for seed in 0..SEEDS {
        peer.ask(&json!({ "new": true }))?;
        run(&mut StdRng::seed_from_u64(seed), &mut peer).with_context(|| format!("seed {seed}"))?;
    }
    Ok(())
}

/// Few names and values, so that some come again, and some that are new.
fn random_head(rng: &mut StdRng) -> Head {
    let mut head = Head::new();
    for _ in 0..rng.random_range(0..12) {
        let name = match rng.random_range(0..4) {
            0 => "traceparent".to_owned(),
            1 => ["accept", "cookie", "authorization", "via"][rng.random_range(0..4)].to_owned(),
            2 => [":method", ":path", ":status", ":authority"][rng.random_range(0..4)].to_owned(),
            _ => format!("x-{}", rng.random_range(0..20)),
        };
        let value = match rng.random_range(0..8) {
            0 => String::new(),
            1 => ["GET", "/", "200", "/index.html"][rng.random_range(0..4)].to_owned(),
            2..6 => format!("value {}", rng.random_range(0..10)),
            6 => "ä{~\\".repeat(rng.random_range(0..300)),
            _ => format!("{:x}", rng.random::<u128>()),
        };
        let indexing = match rng.random_range(0..8) {
            0 => Indexing::Never,
            1..4 => Indexing::Allowed,
            _ => Indexing::Indexed,
        };
        head.push(name.as_bytes(), value.as_bytes(), indexing);
    }
    head
}

fn fields(head: &Head) -> Vec<Field> {
    let fields = head.iter().map(|field| {
        let is_secret = field.indexing == Indexing::Never;
        (hex(field.name), hex(field.value), is_secret)
    });
    fields.collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Result<Vec<u8>> {
    let starts = (0..hex.len()).step_by(2);
    starts
        .map(|at| {
            Ok(u8::from_str_radix(
                hex.get(at..at + 2).context("pairs")?,
                16,
            )?)
        })
        .collect()
}

/// `hpack_peer.py`.
struct Peer {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

#[derive(Debug, Deserialize)]
struct Answer {
    block: Option<String>,
    fields: Option<Vec<Field>>,
    error: Option<String>,
}

impl Peer {
    /// None where there is no environment for it, which has been said then.
    fn start() -> Result<Option<Self>> {
        let python = peers::peer("python")?;
        let programs = [python.to_str().context("a path")?];
        let requires = Requires {
            programs: &programs,
        };
        if !requires.check()? {
            return Ok(None);
        }
        let words = peers::script("hpack_peer.py", &[])?;
        let mut command = Command::new("timeout");
        command.args(["-k", "1", "120"]).args(words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("starting a peer")?;
        Ok(Some(Self {
            orders: child.stdin.take().context("a piped stdin")?,
            answers: BufReader::new(child.stdout.take().context("a piped stdout")?),
            child,
        }))
    }

    fn ask(&mut self, order: &Value) -> Result<Answer> {
        writeln!(self.orders, "{order}")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("the peer said {line:?}"))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
