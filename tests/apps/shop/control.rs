//! The demonstration's hand on the application: one command a line, one line of JSON back.
//!
//! | command | does |
//! |---|---|
//! | `stats` | tells requests begun and in flight here |
//! | `delay <ms>` | sets the time to think about a request |
//! | `rate <n>` | makes load: n requests a second, 0 for none |
//! | `window` | counts the requests from now on apart, and tells the number |
//! | `report [n]` | tells what came of the requests of a window, or of the current one |
//! | `mark` | tells the moment and what is in flight |

use std::{sync::Arc, time::Duration};

use heddle_shell::task::Tasks;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
};

use crate::{endpoint::Endpoint, load::Load};

/// Longest command, in bytes; the connection ends at a longer one.
const COMMAND_BYTES_MAX: u64 = 256;

/// Serves commands. The load runs with it.
pub(crate) async fn serve(
    listener: UnixListener,
    endpoint: Arc<Endpoint>,
    load: Option<Arc<Load>>,
) {
    let mut tasks = Tasks::new();
    if let Some(load) = &load {
        tasks.spawn("load", Arc::clone(load).run());
    }
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors: the connections that end make room.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        tasks.reap_ended();
        tasks.spawn(
            "commands",
            converse(stream, Arc::clone(&endpoint), load.clone()),
        );
    }
}

async fn converse(stream: UnixStream, endpoint: Arc<Endpoint>, load: Option<Arc<Load>>) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut line = String::new();
        match (&mut read)
            .take(COMMAND_BYTES_MAX)
            .read_line(&mut line)
            .await
        {
            Ok(1..) if line.ends_with('\n') => {}
            _ => return,
        }
        let answer = obey(line.trim(), &endpoint, load.as_deref())
            .unwrap_or_else(|| json!({ "error": format!("unknown command: {}", line.trim()) }));
        if write
            .write_all(format!("{answer}\n").as_bytes())
            .await
            .is_err()
        {
            return;
        }
    }
}

fn obey(line: &str, endpoint: &Endpoint, load: Option<&Load>) -> Option<Value> {
    let mut words = line.split_whitespace();
    let (command, argument) = (words.next()?, words.next());
    match command {
        "stats" => Some(endpoint.stats()),
        "delay" => {
            endpoint.set_delay(argument?.parse().ok()?);
            Some(endpoint.stats())
        }
        "rate" => {
            load?.set_rate(argument?.parse().ok()?);
            Some(load?.mark())
        }
        "window" => Some(json!({ "window": load?.open_window() })),
        "report" => {
            let number = argument.map(str::parse).transpose().ok()?;
            load?.report(number)
        }
        "mark" => Some(load?.mark()),
        _ => None,
    }
}
