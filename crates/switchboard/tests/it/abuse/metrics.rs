//! Every metric changes when it should, and is documented.

use std::collections::BTreeSet;

use super::files::limit_files;
use super::wire::{
    CLOSE, PING, REQUEST, TEXT, Wire, close_payload, frame, read_head, request_with,
};
use crate::server::Server;
use crate::v1::metrics as v1;

macro_rules! refused {
    ($status:literal) => {
        concat!("switchboard_handshakes_refused_total{status=\"", $status, "\"}")
    };
}
macro_rules! closed {
    ($code:literal) => {
        concat!("switchboard_connections_closed_total{code=\"", $code, "\"}")
    };
}
macro_rules! messages {
    ($result:literal) => {
        concat!("switchboard_messages_total{result=\"", $result, "\"}")
    };
}
macro_rules! pauses {
    ($reason:literal) => {
        concat!("switchboard_reader_pauses_total{reason=\"", $reason, "\"}")
    };
}

/// A sample, the settings under which it can change, and an action that changes it. The returned
/// connections are kept until it has changed.
type Case = (&'static str, &'static [&'static str], fn(&Server) -> Vec<Wire>);

const CASES: &[Case] = &[
    ("switchboard_connections", &[], open),
    ("switchboard_sockets_accepted_total", &[], open),
    ("switchboard_accept_failures_total", &[], |server| {
        limit_files(server, 0);
        // The socket of the last request may not be closed yet, and leave space for one.
        let mut sockets = [server.socket(), server.socket(), server.socket()];
        assert!(read_head(&mut sockets[2]).starts_with("HTTP/1.1 503 "));
        limit_files(server, 100);
        vec![]
    }),
    (refused!("400"), &[], |server| request(server, &REQUEST.replace("HTTP/1.1", "HTTP/1.0"))),
    (refused!("403"), &["allowed_origins=https://a.example"], |server| {
        request(server, &request_with("Origin: null\r\n"))
    }),
    (refused!("405"), &[], |server| request(server, &REQUEST.replace("GET", "PUT"))),
    (refused!("408"), &["handshake_timeout=50ms"], |server| request(server, "GET / HT")),
    (refused!("426"), &[], |server| request(server, &REQUEST.replace("Version: 13", "Version: 7"))),
    (refused!("431"), &[], |server| request(server, &request_with(&"A: b\r\n".repeat(100)))),
    (refused!("503"), &["max_connections=1"], |server| {
        let inside = Wire::open_patiently(server);
        request(server, REQUEST);
        vec![inside]
    }),
    (closed!("1000"), &[], |server| close(server, 1000)),
    (closed!("1001"), &[], |server| close(server, 1001)),
    (closed!("1002"), &[], |server| say(server, &frame(0x83, b""))),
    (closed!("1007"), &[], |server| say(server, &frame(TEXT, b"\xFF"))),
    (closed!("1008"), &[], |server| say(server, &frame(PING, b"").repeat(201))),
    (closed!("1009"), &["max_message_bytes=1000"], |server| {
        say(server, &frame(TEXT, &[b'a'; 1001]))
    }),
    (closed!("4508"), &["out_queue_max_bytes=64KiB"], overflow),
    (closed!("other"), &[], |server| close(server, 3000)),
    (closed!("none"), &[], |server| {
        drop(open(server));
        vec![]
    }),
    (messages!("delivered"), &["shards=1"], |server| exchange(server, 1)),
    (messages!("delivered"), &["shards=2"], |server| exchange(server, 1)),
    (messages!("forwarded"), &["shards=2"], |server| exchange(server, 1)),
    (messages!("duplicate"), &[], |server| exchange(server, 2)),
    (messages!("no_such_device"), &[], |server| say(server, &frame(TEXT, b"send,1,nobody"))),
    (messages!("unknown_command"), &[], |server| say(server, &frame(TEXT, b"dance,1,please"))),
    (messages!("unreadable"), &[], |server| say(server, &frame(TEXT, b"hello"))),
    (messages!("info"), &[], |server| say(server, &frame(TEXT, b"help"))),
    ("switchboard_messages_returned_total", &["shards=2"], leave_while_messages_come),
    ("switchboard_out_queue_overflows_total", &["out_queue_max_bytes=64KiB"], overflow),
    (pauses!("rate_limit"), &["rate_limit_messages_per_s=100", "rate_limit_burst=1"], |server| {
        say(server, &frame(TEXT, b"help").repeat(3))
    }),
    (pauses!("receiver"), &["out_queue_max_bytes=64KiB", "shards=1"], overflow),
    (pauses!("out_queue"), &["out_queue_max_bytes=1KiB"], |server| {
        say(server, &frame(TEXT, b"help").repeat(100))
    }),
    (
        pauses!("shard_queue"),
        &["shards=2", "shard_queue_max_bytes=1KiB", "max_message_bytes=1KiB"],
        |server| exchange(server, 100),
    ),
    ("switchboard_received_bytes_total", &[], |server| say(server, &frame(PING, b""))),
    ("switchboard_sent_bytes_total", &[], |server| say(server, &frame(PING, b""))),
    ("switchboard_shard_busy_seconds_total{shard=\"0\"}", &["shards=2"], open),
    ("switchboard_shard_busy_seconds_total{shard=\"1\"}", &["shards=2"], |server| {
        exchange(server, 1)
    }),
    ("switchboard_shard_turns_total{shard=\"0\"}", &["shards=2"], open),
    ("switchboard_shard_turns_total{shard=\"1\"}", &["shards=2"], |server| exchange(server, 1)),
    ("switchboard_delivery_latency_seconds_sum", &["shards=1"], |server| exchange(server, 1)),
    ("switchboard_delivery_latency_seconds_count", &["shards=1"], |server| exchange(server, 1)),
    ("switchboard_delivery_latency_seconds_count", &["shards=2"], |server| exchange(server, 1)),
    ("process_open_fds", &[], open),
    // Each reading takes some.
    ("process_cpu_seconds_total", &[], |_| vec![]),
];

/// Samples that no case here changes, and the test that covers each.
const ELSEWHERE: [&str; 13] = [
    // abuse/log.rs
    "switchboard_log_lines_dropped_total",
    // v1/reload.rs
    "switchboard_config_reloads_total",
    "switchboard_max_connections",
    "switchboard_devices_max",
    "switchboard_memory_messages_max_bytes",
    // abuse/tls.rs
    refused!("tls"),
    pauses!("http_pipe"),
    // monitoring/process.rs
    "process_resident_memory_bytes",
    "process_virtual_memory_bytes",
    "process_threads",
    "process_max_fds",
    "process_start_time_seconds",
    "switchboard_build_info",
];

fn open(server: &Server) -> Vec<Wire> {
    vec![Wire::open(server)]
}

fn request(server: &Server, request: &str) -> Vec<Wire> {
    server.raw(request.as_bytes());
    vec![]
}

fn say(server: &Server, bytes: &[u8]) -> Vec<Wire> {
    let mut wire = Wire::open(server);
    wire.bytes(bytes);
    vec![wire]
}

fn close(server: &Server, code: u16) -> Vec<Wire> {
    say(server, &frame(CLOSE, &close_payload(code, b"")))
}

/// Has one device send another the same text `times` times.
fn exchange(server: &Server, times: usize) -> Vec<Wire> {
    let (mut from, to) = (Wire::open(server), Wire::open(server));
    let text = if times > 2 { "x".repeat(500) } else { String::new() };
    let command = |n| frame(TEXT, format!("send,{},{}{text}", to.id, n * (times / 3)).as_bytes());
    from.bytes(&(0..times).flat_map(command).collect::<Vec<u8>>());
    vec![from, to]
}

/// Sends to a device that does not read until it is closed.
fn overflow(server: &Server) -> Vec<Wire> {
    let (mut from, to) = (Wire::open(server), Wire::open_small(server));
    let text = "x".repeat(500_000);
    for n in 0..100 {
        from.say(&format!("send,{},{n}{text}", to.id));
        if from.ask("help") == "Invalid destinationId" {
            return vec![from, to];
        }
    }
    panic!("it is never closed");
}

/// Repeats until a message finds its receiver gone at the other shard; that depends on timing.
fn leave_while_messages_come(server: &Server) -> Vec<Wire> {
    for _ in 0..1000 {
        let mut wires = exchange(server, 300);
        drop(wires.pop());
        let answers = wires[0].ask("help");
        if answers == "Invalid destinationId"
            && server.metric("switchboard_messages_returned_total") > 0.0
        {
            break;
        }
    }
    vec![]
}

#[test]
fn every_metric_moves_when_it_should() {
    for &(sample, settings, cause) in CASES {
        let server = Server::with(settings);
        let before = server.metric(sample);
        let connections = cause(&server);
        server.await_metric(sample, |now| now > before);
        drop(connections);
    }
}

#[test]
fn no_metric_is_without_a_case() {
    let server = Server::with(&["shards=2"]);
    for line in server.get("/metrics").lines() {
        let Some((sample, _)) = line.rsplit_once(' ').filter(|_| !line.starts_with('#')) else {
            continue;
        };
        let has_case = CASES.iter().any(|(case, ..)| *case == sample)
            || v1::CASES.iter().any(|(case, ..)| *case == sample)
            || ELSEWHERE.iter().chain(&v1::ELSEWHERE).any(|name| sample.starts_with(name))
            || sample.starts_with("switchboard_delivery_latency_seconds_bucket");
        assert!(has_case, "{sample}");
    }
}

/// Names and label values in docs/operations.md are exactly those of `/metrics`.
#[test]
fn every_metric_is_described() {
    let guide = include_str!("../../../../../docs/operations.md");
    let server = Server::start();
    let text = server.get("/metrics");
    let mut told = BTreeSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, labels) = line.split_once(['{', ' ']).unwrap();
        let name = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix))
            .unwrap_or(name);
        told.insert(name);
        let row = guide.lines().find(|row| row.starts_with(&format!("| `{name}` |")));
        let row = row.unwrap_or_else(|| panic!("{name} is not described"));
        if let Some((label, value)) =
            labels.split_once('}').and_then(|(all, _)| all.split_once('='))
        {
            assert!(row.contains(&format!("`{label}`")), "{line} in {row}");
            let value = value.trim_matches('"');
            let is_open_ended = ["le", "shard", "version"].contains(&label);
            assert!(is_open_ended || row.contains(&format!("`{value}`")), "{line} in {row}");
        }
    }
    let described = guide.lines().filter_map(|row| row.strip_prefix("| `")?.split_once("` |"));
    for (name, _) in described {
        let is_metric = name.starts_with("switchboard_") || name.starts_with("process_");
        assert!(!is_metric || told.contains(name), "{name} is described and does not exist");
    }
}
