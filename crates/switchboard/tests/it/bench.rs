//! `switchboard bench` against the real server: it measures, and it checks what it measures.

use std::process::Output;

use serde_json::Value;

use crate::server::{Server, binary};

fn bench(server: &Server, line: &str) -> Output {
    let pid = server.pid().as_raw_nonzero().to_string();
    binary()
        .args(["bench", "--json", "--url", &server.url(), "--pid", &pid])
        .args(line.split_whitespace())
        .output()
        .unwrap()
}

fn report(output: &Output) -> Value {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{error}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn every_message_comes_once_and_in_order_across_shards() {
    let server = Server::with(&["shards=2"]);
    let line =
        "throughput --pairs 8 --window 16 --messages 20000 --pairing cross --server-shards 2";
    let report = report(&bench(&server, line));
    assert_eq!(report["tally"]["delivered"], 20_000, "{report}");
    for fault in ["lost", "repeated", "foreign", "refused"] {
        assert_eq!(report["tally"][fault], 0, "{report}");
    }
    assert!(report["server_cpu_us_per_message"].as_f64().unwrap() > 0.0, "{report}");
    let forwarded = server.metric("switchboard_messages_total{result=\"forwarded\"}");
    assert!(forwarded >= 20_000.0, "the pairs were not across shards: {forwarded}");
    // Each delivery is timed once, including forwarded ones.
    let delivered = server.metric("switchboard_messages_total{result=\"delivered\"}");
    assert_eq!(server.metric("switchboard_delivery_latency_seconds_count"), delivered);
}

#[test]
fn a_server_that_is_not_on_this_machine_is_left_alone() {
    let output =
        binary().args(["bench", "--url", "ws://192.0.2.1:8080", "throughput"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("192.0.2.1"), "{error}");
}
