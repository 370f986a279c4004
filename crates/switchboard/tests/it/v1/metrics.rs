//! The metrics of v1 change when they should; `abuse/metrics.rs` includes these cases.

use std::any::Any;
use std::fs;
use std::os::unix::fs::FileExt;

use serde_json::{Value, json};

use super::client::{V1, send, token, with};
use crate::device::Device;
use crate::server::Server;

macro_rules! closed {
    ($code:literal) => {
        concat!("switchboard_connections_closed_total{code=\"", $code, "\"}")
    };
}
macro_rules! accepted {
    ($durability:literal) => {
        concat!("switchboard_accepted_total{durability=\"", $durability, "\"}")
    };
}
macro_rules! rejected {
    ($code:literal) => {
        concat!("switchboard_rejected_total{code=\"", $code, "\"}")
    };
}
macro_rules! outcome {
    ($outcome:literal) => {
        concat!("switchboard_outcomes_total{outcome=\"", $outcome, "\"}")
    };
}

/// A sample, the settings under which it can change, and an action that changes it. The returned
/// value is kept until it has changed.
type Case = (&'static str, &'static [&'static str], fn(&Server) -> Box<dyn Any>);

pub(crate) const CASES: &[Case] = &[
    ("switchboard_handshakes_refused_total{status=\"401\"}", &["auth=token"], |server| {
        Box::new(Device::try_connect(server, server.url()).is_err())
    }),
    (closed!("4400"), &[], |server| {
        let mut device = V1::open(server);
        device.say(&json!({"type": "ping"}));
        Box::new(device)
    }),
    (closed!("4401"), &[], |server| {
        let mut device = V1::open(server);
        device.say_hello(json!({"token": "what"}));
        Box::new(device)
    }),
    (closed!("4408"), &[], |server| Box::new(V1::open(server))),
    (closed!("4409"), &[], |server| Box::new([V1::named(server, "a"), V1::named(server, "a")])),
    ("switchboard_messages_total{result=\"stored\"}", &[], |server| text_to_mailbox(server, 1)),
    (
        "switchboard_messages_total{result=\"mailbox_full\"}",
        &["mailbox_max_messages=1"],
        |server| text_to_mailbox(server, 2),
    ),
    ("switchboard_reader_pauses_total{reason=\"welcome\"}", &[], anonymous),
    ("switchboard_reader_pauses_total{reason=\"reply\"}", &["shards=2"], |server| {
        // One of them is on the other shard.
        let away = [(); 2].map(|()| V1::anonymous(server).leave());
        let mut text = [(); 2].map(|()| Device::connect(server));
        text.iter_mut().for_each(|text| {
            away.iter().for_each(|away| text.say(&format!("send,{},there?", away.device)));
        });
        Box::new(text)
    }),
    (accepted!("none"), &[], |server| {
        let (mut device, text) = (V1::anonymous(server), Device::connect(server));
        device.say(&send(&text.id.to_string(), "1"));
        Box::new((device, text))
    }),
    (accepted!("memory"), &[], |server| to_itself(server, json!({"durability": "memory"}))),
    (accepted!("disk"), &[], |server| to_itself(server, json!({}))),
    (rejected!("no_such_device"), &[], |server| to_itself(server, json!({"to": "nobody"}))),
    (rejected!("mailbox_full"), &["mailbox_max_messages=1"], |server| twice(server, json!({}))),
    (rejected!("outcomes_full"), &["outcomes_max=1"], |server| {
        twice(server, json!({"receipt": true}))
    }),
    (rejected!("too_large"), &["mailbox_max_bytes=1KiB"], |server| {
        to_itself(server, json!({"body": "x".repeat(2_000)}))
    }),
    (rejected!("not_allowed"), &["list_devices=none"], |server| {
        let mut device = V1::anonymous(server);
        device.say(&json!({"type": "devices", "id": "1"}));
        Box::new(device)
    }),
    (rejected!("id_reused"), &[], |server| twice(server, json!({"id": "1"}))),
    (rejected!("durability_unavailable"), &[], |server| {
        to_itself(server, json!({"durability": "replicated"}))
    }),
    (rejected!("bad_request"), &[], |server| to_itself(server, json!({"ttl_ms": 0}))),
    (rejected!("too_late"), &[], |server| {
        let mut device = V1::anonymous(server);
        device.say(&json!({"type": "cancel", "id": "1", "to": device.device()}));
        Box::new(device)
    }),
    (outcome!("delivered"), &[], |server| {
        let mut device = self_sent(server);
        device.ack(1);
        Box::new(device)
    }),
    (outcome!("refused"), &[], |server| {
        let mut device = self_sent(server);
        device.say(&json!({"type": "refuse", "seq": 1}));
        Box::new(device)
    }),
    (outcome!("expired"), &[], |server| to_itself(server, json!({"ttl_ms": 1}))),
    (outcome!("cancelled"), &[], |server| {
        let (mut device, away) = (V1::anonymous(server), V1::anonymous(server).leave());
        device.send(&away.device, "1");
        device.say(&json!({"type": "cancel", "id": "1", "to": away.device}));
        Box::new(device)
    }),
    (outcome!("evicted"), DEVICES_END, |server| Box::new(self_sent(server).leave())),
    ("switchboard_duplicates_total", &[], |server| {
        let mut device = self_sent(server);
        device.say(&send(&device.device(), "1"));
        Box::new(device)
    }),
    ("switchboard_takeovers_total", &[], |server| {
        Box::new([V1::named(server, "a"), V1::named(server, "a")])
    }),
    ("switchboard_takeovers_delayed_total", &[], |server| {
        let takeovers: Vec<V1> = (0..5).map(|_| V1::named(server, "a")).collect();
        let mut last = V1::open(server);
        last.say_hello(json!({"token": token(server, "a", None)}));
        Box::new((takeovers, last))
    }),
    ("switchboard_devices_ended_total", DEVICES_END, |server| {
        Box::new(V1::anonymous(server).leave())
    }),
    ("switchboard_bad_frames_total", &[], |server| {
        let mut device = V1::anonymous(server);
        device.say_text("what");
        Box::new(device)
    }),
    ("switchboard_mailboxes", &[], |server| Box::new(V1::anonymous(server).leave())),
    ("switchboard_sessions", &[], anonymous),
    ("switchboard_mailbox_messages", &[], |server| Box::new(self_sent(server))),
    ("switchboard_mailbox_bytes", &[], |server| Box::new(self_sent(server))),
    ("switchboard_mailbox_memory_bytes", &[], |server| {
        to_itself(server, json!({"durability": "memory"}))
    }),
    ("switchboard_dedup_ids", &[], |server| Box::new(self_sent(server))),
    ("switchboard_store_read_failures_total", &[], damage_a_record),
    ("switchboard_messages_quarantined_total", &[], damage_a_record),
    ("switchboard_store_records_total", &[], anonymous),
    ("switchboard_store_batches_total", &[], anonymous),
    ("switchboard_store_synced_bytes_total", &[], anonymous),
    ("switchboard_store_log_bytes", &[], anonymous),
    ("switchboard_store_segments", &[], anonymous),
    ("switchboard_store_sync_duration_seconds_sum", &[], anonymous),
    ("switchboard_store_sync_duration_seconds_count", &[], anonymous),
    ("switchboard_store_append_seconds_sum", &[], anonymous),
    ("switchboard_store_append_seconds_count", &[], anonymous),
];

/// Samples that no case here changes.
pub(crate) const ELSEWHERE: [&str; 17] = [
    // v1/key_set.rs
    closed!("1013"),
    // v1/faults.rs
    "switchboard_store_queue_bytes",
    "switchboard_store_queue_full_total",
    "switchboard_store_budget_used_bytes",
    "switchboard_reader_pauses_total{reason=\"store\"}",
    "switchboard_store_failing",
    "switchboard_store_full",
    "switchboard_store_full_for_anonymous",
    "switchboard_store_free_bytes",
    "switchboard_store_left_bytes",
    "switchboard_store_ballast_bytes",
    "switchboard_store_failures_total",
    rejected!("store_unavailable"),
    rejected!("store_full"),
    // There is no cluster yet.
    accepted!("replicated"),
    "switchboard_store_sync_duration_seconds_bucket",
    "switchboard_store_append_seconds_bucket",
];

const DEVICES_END: &[&str] = &["device_ttl=1s"];

fn anonymous(server: &Server) -> Box<dyn Any> {
    Box::new(V1::anonymous(server))
}

/// Returns a device to which a message of its own was pushed.
fn self_sent(server: &Server) -> V1 {
    let mut device = V1::anonymous(server);
    // The push may come before the answer.
    device.say(&send(&device.device(), "1"));
    device.hear();
    device.hear();
    device
}

/// Has a device send a message to itself, with additional fields.
fn to_itself(server: &Server, more: Value) -> Box<dyn Any> {
    let mut device = V1::anonymous(server);
    let frame = with(send(&device.device(), "1"), &more);
    device.say(&frame);
    Box::new(device)
}

/// Sends two messages at once, with additional fields.
fn twice(server: &Server, more: Value) -> Box<dyn Any> {
    let mut device = V1::anonymous(server);
    let to = V1::anonymous(server).leave().device;
    device.say_all(["1", "2"].map(|id| with(with(send(&to, id), &json!({"body": id})), &more)));
    Box::new(device)
}

fn text_to_mailbox(server: &Server, times: usize) -> Box<dyn Any> {
    let away = V1::anonymous(server).leave();
    let mut text = Device::connect(server);
    for n in 0..times {
        text.say(&format!("send,{},{n}", away.device));
    }
    Box::new(text)
}

/// Overwrites a waiting message.
fn damage_a_record(server: &Server) -> Box<dyn Any> {
    let mut device = V1::anonymous(server);
    let away = V1::anonymous(server).leave();
    let body = "a body that can be found";
    device.send_with(&away.device, "1", &json!({"body": body}));
    let log = server.directory.path().join("switchboard-data/log");
    for file in fs::read_dir(log).unwrap().map(|entry| entry.unwrap().path()) {
        let bytes = fs::read(&file).unwrap();
        if let Some(at) = bytes.windows(body.len()).position(|found| found == body.as_bytes()) {
            let file = fs::File::options().write(true).open(file).unwrap();
            file.write_all_at(b"?", at as u64).unwrap();
        }
    }
    Box::new(away.back(server, 0))
}

#[test]
fn every_metric_of_v1_moves_when_it_should() {
    for &(sample, settings, cause) in CASES {
        let server = Server::with(settings);
        let before = server.metric(sample);
        let kept = cause(&server);
        server.await_metric(sample, |now| now > before);
        drop(kept);
    }
}
