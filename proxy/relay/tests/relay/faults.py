"""Plants faults in the relay, one at a time, and has the simulation find them.

Each fault is a change of one place: a credit that is lost, an outcome told twice, a waiter whom nobody wakes. The
simulation is worth what it finds of them. A change of the source that moves a place makes its fault fail here, in words.

    python3 proxy/relay/tests/relay/faults.py [--seeds N] [--only PART-OF-A-NAME]

Works on a copy of the workspace below target/faults. Seeds are tried in steps until one finds the fault.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[4]
COPY = ROOT / "target" / "faults"
RELAY = pathlib.Path("proxy/relay/src")
STEPS = [3, 30, 300, 3_000, 10_000]

# Name, file, what is there, what is planted.
FAULTS = [
    ("the client's credit is lost", "relay/upload.rs",
     "conn.codec.release(client.stream, credit);", "_ = credit;"),
    ("the client's credit is given again after a retry", "relay/upload.rs",
     "exchange.upload.credited += credit;", ""),
    ("the endpoint's credit is lost when a piece goes at once", "relay/answer.rs",
     "self.release(leg, passed);", ""),
    ("the endpoint's credit is lost when a piece goes late", "relay/answer.rs",
     "self.release(leg, *sent);", ""),
    ("a mirror's credit is lost", "relay/rivals.rs",
     "self.release(leg, u32::try_from(len).unwrap_or(u32::MAX));", "_ = (leg, len);"),
    ("an answer that has begun is repeated", "relay/exchange.rs",
     """                exchange.report(Outcome::Reset, now);
                self.break_off(id, crate::error::RESET, grpc::UNAVAILABLE, now);""",
     "                self.attempt_failed(id, ProxyError::Refused(String::new()), now);"),
    ("what was given up is sent again", "relay/upload.rs",
     "        !self.is_given_up\n", "        true\n"),
    ("a replay has no bound", "relay/upload.rs",
     "if is_sent && upload.kept.len() + data.len() > bytes_max {", "if false {"),
    ("a piece is not kept for the replay", "relay/upload.rs",
     "upload.kept.push(data.clone());", "if upload.kept.len() < 10_000 { upload.kept.push(data.clone()); }"),
    ("a request without a body is the only kind", "relay/route.rs",
     "            false => Then::More,\n        };\n        let endpoint",
     "            false => Then::End,\n        };\n        let endpoint"),
    ("nobody wakes who waits when a connection is there", "relay/channel.rs",
     "        self.channel_changed(conn, now);\n    }\n\n    /// A connection to an endpoint takes",
     "        _ = now;\n    }\n\n    /// A connection to an endpoint takes"),
    ("who waits is forgotten when a dial fails", "relay/channel/waiting.rs",
     "self.give_up_first(id, error.clone(), endpoint, now);", "_ = (error, endpoint); self.next_waiting(id);"),
    ("a waiter is served twice", "relay/channel/waiting.rs",
     "attempt.is_some_and(|attempt| attempt.waits_in == Some(id))", "attempt.is_some()"),
    ("a connection that is gone is used", "relay.rs",
     "            self.channels.forget(channel, conn);\n", ""),
    ("a connection takes more requests than it may", "relay/channel.rs",
     "if sent.uses >= uses_max.min(STREAMS_MAX) {", "if sent.uses > uses_max.min(STREAMS_MAX) {"),
    ("a limit of connections is not asked", "relay/channel.rs",
     "admission.acquire(Resource::Connections, limit)", "{ _ = limit; admission.acquire(Resource::Connections, None) }"),
    ("an attempt that was abandoned is still heard", "relay/exchange.rs",
     """        if let Some(conn) = self.conns.get_mut(leg.conn) {
            conn.exchanges.remove(&leg.stream.0);
            match code {""",
     """        if let Some(conn) = self.conns.get_mut(leg.conn) {
            match code {"""),
    ("a stream is left open when its attempt is abandoned", "relay/exchange.rs",
     "Some(code) => conn.codec.reset(leg.stream, code),", "Some(_) => {}"),
    ("a timer outlives its exchange", "relay/exchange.rs",
     """        if let Some((timer, _)) = exchange.timer {
            self.timers.cancel(timer);
        }
        self.account""", "        self.account"),
    ("a deadline is forgotten", "relay/exchange.rs",
     "let due = [self.until, self.deadline, self.hedge_at];", "let due = [self.until, self.hedge_at];"),
    ("the next attempt never comes", "relay/exchange.rs",
     "let due = [self.until, self.deadline, self.hedge_at];", "let due = [self.deadline, self.hedge_at];"),
    ("slots leak", "relay/exchange.rs",
     "let facts = exchange.facts;", "std::mem::forget(exchange.held); let facts = exchange.facts;"),
    ("an exchange has two records", "relay/exchange.rs",
     "        self.records.push_back(Record {",
     """        if facts.attempts > 1 {
            self.begun[0] -= 1;
        }
        self.records.extend((facts.attempts > 1).then(|| Record {
            direction: facts.direction, spoken: facts.spoken, head: Head::new(), request: None, destination: None,
            route: None, cluster: None, endpoint: None, peer: Peer::Anonymous, caller: Arc::clone(&facts.caller),
            status: None, grpc_status: None, reason: None, attempts: 0, bytes_received: 0, bytes_sent: 0,
            duration: Duration::ZERO, first_response: None,
        }));
        self.records.push_back(Record {"""),
    ("a client's end leaves its exchanges", "relay.rs",
     "None => self.client_gone(exchange, now),", "None => {}"),
    ("an endpoint's end leaves its attempts", "relay.rs",
     "Some(_) => self.attempt_broke(exchange, Leg { conn, stream }, lost, now),", "Some(_) => _ = (lost, stream),"),
    ("an answer ends before its body has gone", "relay/answer.rs",
     "        if exchange.facts.unsent == 0 {\n            self.finish(id, now);\n        }\n    }\n\n    /// The endpoint may",
     "        self.finish(id, now);\n    }\n\n    /// The endpoint may"),
    ("a hedge's loser goes on", "relay/rivals.rs",
     "                self.part(leg, Some(Code::CANCEL));\n", "                _ = Code::CANCEL;\n"),
    ("what a filter holds of a body is lost", "relay/filter.rs",
     "        self.body.push(data);\n", "        if self.body.is_empty() { self.body.push(data); }\n"),
    ("a window that is shut is written over", "h2/flow.rs",
     "usize::try_from(self.0).unwrap_or(0)", "usize::try_from(self.0).unwrap_or(0).max(1)"),
    ("a goodbye of an endpoint loses what it had not begun", "relay/conn.rs",
     "false => (stream, *exchange, Lost::Stream(Code::REFUSED_STREAM)),", "false => (stream, *exchange, lost),"),
    ("bytes are not refunded", "relay/charge.rs",
     "            self.account.refund(before - kept);\n", ""),
]

def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--seeds", type=int, default=10_000, help="at most so many for each fault")
    arguments.add_argument("--only", default="", help="faults whose names contain this")
    arguments = arguments.parse_args()
    chosen = [fault for fault in FAULTS if arguments.only in fault[0]]
    copy()
    if not played(1, {}):
        sys.exit("without a fault the simulation fails")
    missed = [name for name, *change in chosen if not found(name, *change, arguments.seeds)]
    print(f"{len(chosen) - len(missed)} of {len(chosen)} faults found")
    sys.exit(1 if missed else 0)


def copy():
    """The workspace without what is built. Times stay, so that little is built again."""
    skipped = shutil.ignore_patterns("target", ".git")
    shutil.copytree(ROOT, COPY / "tree", ignore=skipped, dirs_exist_ok=True)


def found(name, file, old, new, seeds_max):
    path = COPY / "tree" / RELAY / file
    source = path.read_text()
    if source.count(old) != 1:
        print(f"{name}: {file} has its place {source.count(old)} times")
        return False
    path.write_text(source.replace(old, new))
    began = time.monotonic()
    try:
        for seeds in [step for step in STEPS if step <= seeds_max]:
            if not played(seeds, {"RUSTFLAGS": "-Awarnings"}):
                print(f"{name}: found within {seeds} seeds ({time.monotonic() - began:.0f} s)", flush=True)
                return True
        print(f"{name}: NOT FOUND ({time.monotonic() - began:.0f} s)", flush=True)
        return False
    finally:
        path.write_text(source)


def played(seeds, environment):
    """Whether all went well. What hangs does not."""
    command = ["cargo", "test", "--quiet", "--locked", "-p", "heddle-relay", "--test", "relay"]
    environment = {**os.environ, "HEDDLE_SIM_SEEDS": str(seeds), "CARGO_TARGET_DIR": str(COPY / "build"),
                   "RUST_BACKTRACE": "0", **environment}
    try:
        ran = subprocess.run(command, cwd=COPY / "tree", env=environment, capture_output=True, text=True,
                             timeout=300 + 30 * seeds)
    except subprocess.TimeoutExpired:
        return False
    if "could not compile" in ran.stderr:
        sys.exit(ran.stderr[-3000:])
    return ran.returncode == 0


if __name__ == "__main__":
    main()
