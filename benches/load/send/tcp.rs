//! Bytes that must come back as they went.

use std::{cell::RefCell, rc::Rc, time::Duration};

use anyhow::{Context, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinSet,
    try_join,
};

use super::Order;
use crate::{
    clock::{Instant, now},
    generator::{Answers, Latency},
    scenario::Stream,
};

/// The same block over and over on each connection, both directions at once.
pub(super) async fn stream(stream: &Stream, order: &Order) -> anyhow::Result<Answers> {
    let block = block(stream.bytes);
    let start = now();
    let end = start + Duration::from_secs(order.seconds.into());
    let mut streams = JoinSet::new();
    for _ in 0..stream.connections.get() {
        let (reader, writer) = dial(order).await?.into_split();
        let block = Rc::clone(&block);
        streams.spawn_local(async move {
            let (sent, received) = try_join!(write(writer, &block, end), read(reader, &block))?;
            ensure!(
                sent == received,
                "{sent} bytes went and {received} came back"
            );
            Ok(sent + received)
        });
    }
    let mut bytes = 0;
    while let Some(ended) = streams.join_next().await {
        bytes += ended??;
    }
    Ok(Answers {
        count: stream.connections.get().into(),
        bytes,
        elapsed_s: start.elapsed().as_secs_f64(),
        latency: None,
    })
}

/// One connection after another, in as many loops as are asked for. The latency is that of the
/// first connect to the last byte back.
pub(super) async fn connect(stream: &Stream, order: &Order) -> anyhow::Result<Answers> {
    let block = block(stream.bytes);
    let start = now();
    let end = start + Duration::from_secs(order.seconds.into());
    let latencies = Rc::new(RefCell::new(Latency::histogram()));
    let mut loops = JoinSet::new();
    for _ in 0..stream.connections.get() {
        let (block, latencies, order) = (Rc::clone(&block), Rc::clone(&latencies), order.clone());
        loops.spawn_local(async move {
            loop {
                let us = exchange(&order, &block).await?.as_micros();
                let us = us.try_into().unwrap_or(u64::MAX);
                latencies.borrow_mut().saturating_record(us);
                if now() >= end {
                    return anyhow::Ok(());
                }
            }
        });
    }
    while let Some(ended) = loops.join_next().await {
        ended??;
    }
    let latencies = latencies.borrow();
    Ok(Answers {
        count: latencies.len(),
        bytes: latencies.len() * 2 * stream.bytes as u64,
        elapsed_s: start.elapsed().as_secs_f64(),
        latency: Some(Latency::of(&latencies)),
    })
}

async fn exchange(order: &Order, block: &[u8]) -> anyhow::Result<Duration> {
    let start = now();
    let mut socket = dial(order).await?;
    socket.write_all(block).await?;
    let mut answer = vec![0; block.len()];
    socket.read_exact(&mut answer).await.context("reading")?;
    let taken = start.elapsed();
    ensure!(answer == block, "other bytes came back");
    socket.shutdown().await?;
    ensure!(socket.read(&mut answer).await? == 0, "too much came back");
    Ok(taken)
}

async fn dial(order: &Order) -> anyhow::Result<TcpStream> {
    let socket = TcpStream::connect(order.address)
        .await
        .context("connecting")?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

async fn write(mut writer: OwnedWriteHalf, block: &[u8], end: Instant) -> anyhow::Result<u64> {
    let mut sent = 0;
    loop {
        writer.write_all(block).await.context("writing")?;
        sent += block.len() as u64;
        if now() >= end {
            writer.shutdown().await?;
            return Ok(sent);
        }
    }
}

async fn read(mut reader: OwnedReadHalf, block: &[u8]) -> anyhow::Result<u64> {
    let mut received = 0u64;
    let mut buffer = vec![0; BUFFER_BYTES];
    // Of the next byte within the block.
    let mut at = 0;
    loop {
        let count = reader.read(&mut buffer).await.context("reading")?;
        if count == 0 {
            return Ok(received);
        }
        received += count as u64;
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            let same = rest.len().min(block.len() - at);
            ensure!(
                rest[..same] == block[at..at + same],
                "other bytes came back"
            );
            rest = &rest[same..];
            at = (at + same) % block.len();
        }
    }
}

const BUFFER_BYTES: usize = 128 * 1024;

/// Bytes of no short period, so that a lost or doubled piece shows.
fn block(bytes: usize) -> Rc<[u8]> {
    let mut state = 1u32;
    (0..bytes.max(1))
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        })
        .collect()
}
