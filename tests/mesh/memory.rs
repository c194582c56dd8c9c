//! What passes is not kept. Memory is that of a process, so each of these runs in one of its own:
//! the test starts itself again, alone.

use std::{process::Command, time::Duration};

use bytes::Bytes;
use heddle_policy::snapshot::Protocol;
use heddle_tests::{
    call::{Caller, Feed, grpc, http1_request},
    echo::{App, Speaks},
    mesh::{Pair, Plan},
};
use http::Request;
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const BLOCK: usize = 64 * 1024;
const BLOCKS: usize = 1024;
const KIB_MAX: u64 = 8 * 1024;
/// Set in the process that measures.
const ALONE: &str = "HEDDLE_TEST_ALONE";

/// Runs `measure` in a process where no other test runs. `name` is the test's.
pub(crate) fn alone(name: &str, measure: impl Future<Output = ()>) {
    if std::env::var_os(ALONE).is_none() {
        let program = std::env::current_exe().unwrap();
        let mut command = Command::new(program);
        command.args(["--exact", name, "--nocapture", "--test-threads=1"]);
        let output = command.env(ALONE, "1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}\n{error}");
        // A name that nobody has would succeed as well.
        assert!(text.contains("1 passed"), "{text}");
        return;
    }
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().unwrap();
    runtime.block_on(async {
        let measured = tokio::time::timeout(Duration::from_mins(2), measure);
        measured.await.expect("it ends");
    });
}

/// The most memory since [`Peak::begin`].
pub(crate) struct Peak {
    baseline_kib: u64,
}

impl Peak {
    pub(crate) fn begin() -> Self {
        // Makes the peak what is in use now (proc(5)).
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        Self {
            baseline_kib: status_kib("VmRSS:"),
        }
    }

    pub(crate) fn grew_kib(&self) -> u64 {
        status_kib("VmHWM:").saturating_sub(self.baseline_kib)
    }
}

fn status_kib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let number = line.unwrap().trim().strip_suffix(" kB").unwrap();
    number.parse().unwrap()
}

/// 64 MiB up, then 64 MiB down.
async fn pass(caller: &mut Caller, request: impl Fn(&str, Feed) -> Request<Feed>) {
    let block = Bytes::from(vec![7; BLOCK]);
    let (feed, body) = Feed::channel();
    let feeding = async {
        for _ in 0..BLOCKS {
            feed.send(block.clone()).await.unwrap();
        }
        drop(feed);
    };
    let (answer, ()) = tokio::join!(caller.call(request("/echo.Echo/Sum", body)), feeding);
    assert_eq!(answer.body, (BLOCK * BLOCKS).to_string().as_bytes());

    let mut down = request("/echo.Echo/Repeat", Feed::of(block));
    let headers = down.headers_mut();
    headers.insert("x-repeat", BLOCKS.to_string().parse().unwrap());
    let mut response = caller.send(down).await.unwrap();
    let mut bytes = 0;
    while let Some(frame) = response.body_mut().frame().await {
        bytes += frame.unwrap().data_ref().map_or(0, Bytes::len);
    }
    assert_eq!(bytes, BLOCK * BLOCKS);
}

async fn bodies() {
    let h2 = App::good(Speaks::Http2).await;
    let pair = Pair::start(h2.address, &Plan::default());
    let mut caller = Caller::http2(pair.entry).await;
    let h1 = App::good(Speaks::Http1).await;
    let plan = Plan {
        protocol: Protocol::Http1,
        ..Plan::default()
    };
    let other = Pair::start(h1.address, &plan);
    let mut other_caller = Caller::http1(other.entry).await;
    assert_eq!(caller.unary("ping").await.status, 200);
    let small = http1_request("POST", "/", Feed::of("ping"));
    assert_eq!(other_caller.call(small).await.status, 200);
    let raw = App::good(Speaks::Bytes).await;
    let plan = Plan {
        protocol: Protocol::Tcp,
        ..Plan::default()
    };
    let opaque = Pair::start(raw.address, &plan);

    let peak = Peak::begin();
    pass(&mut caller, grpc).await;
    let grew = peak.grew_kib();
    assert!(grew <= KIB_MAX, "HTTP/2: {grew} KiB");
    let post = |path: &str, body| http1_request("POST", path, body);
    pass(&mut other_caller, post).await;
    let grew = peak.grew_kib();
    assert!(grew <= KIB_MAX, "HTTP/1.1: {grew} KiB");

    let (mut read, mut write) = TcpStream::connect(opaque.entry).await.unwrap().into_split();
    let writing = async {
        let block = [7; BLOCK];
        for _ in 0..BLOCKS {
            write.write_all(&block).await.unwrap();
        }
        write.shutdown().await.unwrap();
    };
    let reading = async {
        let (mut block, mut bytes) = ([0; BLOCK], 0);
        while let Ok(n @ 1..) = read.read(&mut block).await {
            bytes += n;
        }
        bytes
    };
    let ((), bytes) = tokio::join!(writing, Box::pin(reading));
    assert_eq!(bytes, BLOCK * BLOCKS);
    let grew = peak.grew_kib();
    assert!(grew <= KIB_MAX, "bytes: {grew} KiB");
}

#[test]
fn bodies_of_64_mib_pass_within_8_mib() {
    alone("memory::bodies_of_64_mib_pass_within_8_mib", bodies());
}
