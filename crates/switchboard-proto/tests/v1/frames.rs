//! Frames that one side writes, and the other reads.

use std::borrow::Cow;

use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::Value;
use switchboard_proto::v1::{
    self, ClientFrame, DeviceEvent, Durability, FrameErrorCode, INTEGER_MAX, Outcome, RejectCode,
    Send, ServerEvent, WelcomeEvent, Word,
};

use crate::shown;

/// Texts of 1 to 64 bytes, with characters that are escaped and others.
fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z0-9-]{1,64}", "[\u{0}-\u{7f}]{1,64}", "[\"\\\\/\u{1}-\u{1f}é😀\u{2028}]{1,16}"]
}

fn cow() -> impl Strategy<Value = Cow<'static, str>> {
    text().prop_map(Cow::Owned)
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..=INTEGER_MAX, 0..10u64, Just(INTEGER_MAX)]
}

fn device() -> impl Strategy<Value = String> {
    prop_oneof!["[a-zA-Z][a-zA-Z0-9._:@-]{0,127}", (0..1u64 << 63).prop_map(|id| id.to_string())]
}

fn any_device() -> impl Strategy<Value = Cow<'static, str>> {
    prop_oneof![4 => device(), 1 => text()].prop_map(Cow::Owned)
}

fn any_devices() -> impl Strategy<Value = Vec<Cow<'static, str>>> {
    proptest::collection::vec(any_device(), 0..4)
}

fn body() -> impl Strategy<Value = &'static str> {
    select(&["null", "1e400", "\"\\u00e9\"", "{ \"a\": [1, {}] }", "[]", "\"hi\""][..])
}

fn send() -> impl Strategy<Value = Send<'static>> {
    let durability = option::of(select(&Durability::ALL[1..]));
    let options = (option::of(number()), option::of(cow()), durability, any::<bool>());
    (cow(), any_device(), body(), options).prop_map(
        |(id, to, body, (ttl_ms, re, durability, receipt))| Send {
            id,
            to,
            body: body.as_bytes(),
            ttl_ms,
            re,
            durability,
            receipt,
        },
    )
}

fn client_frame() -> impl Strategy<Value = ClientFrame<'static>> {
    let hello = (option::of(cow()), option::of(cow()), option::of(number()), any::<bool>());
    let devices = (cow(), option::of(any_device()), option::of(1..=1000u32));
    prop_oneof![
        hello.prop_map(|(token, mailbox, last_seq, ephemeral)| ClientFrame::Hello {
            ephemeral,
            token,
            mailbox,
            last_seq
        }),
        send().prop_map(ClientFrame::Send),
        number().prop_map(|seq| ClientFrame::Ack { seq }),
        (number(), option::of(cow())).prop_map(|(seq, reason)| ClientFrame::Refuse { seq, reason }),
        (cow(), any_device()).prop_map(|(id, to)| ClientFrame::Cancel { id, to }),
        devices.prop_map(|(id, after, limit)| ClientFrame::Devices { id, after, limit }),
        (cow(), any_devices()).prop_map(|(id, devices)| ClientFrame::Watch { id, devices }),
        (cow(), option::of(any_devices()))
            .prop_map(|(id, devices)| ClientFrame::Unwatch { id, devices }),
        cow().prop_map(|token| ClientFrame::Refresh { token }),
        option::of(cow()).prop_map(|id| ClientFrame::Ping { id }),
    ]
}

fn welcome() -> impl Strategy<Value = ServerEvent> {
    let device = (device(), option::of(text()), text(), any::<bool>());
    let numbers = (number(), number(), number(), number());
    (device, numbers, select(Durability::ALL), text()).prop_map(
        |((device, token, mailbox, resumed), numbers, durability, server)| {
            let (pending, last_seq, ping_every_ms, max_message_bytes) = numbers;
            ServerEvent::Welcome(WelcomeEvent {
                device,
                token,
                mailbox,
                resumed,
                pending,
                last_seq,
                ping_every_ms,
                max_message_bytes,
                durability: Word::Known(durability),
                server,
            })
        },
    )
}

/// Frames about messages.
fn message_event() -> impl Strategy<Value = ServerEvent> {
    let outcome = (device(), select(Outcome::ALL), any::<bool>(), option::of(text()));
    prop_oneof![
        (number(), device(), text(), body(), number(), option::of(text())).prop_map(
            |(seq, from, id, body, sent_at_ms, re)| ServerEvent::Message {
                seq,
                from,
                id,
                body: body.to_owned(),
                sent_at_ms,
                re
            }
        ),
        (text(), select(Durability::ALL), any::<bool>()).prop_map(|(id, durability, duplicate)| {
            ServerEvent::Accepted { id, durability: Word::Known(durability), duplicate }
        }),
        (text(), option::of(text()), select(RejectCode::ALL), text(), option::of(number()))
            .prop_map(|(id, to, code, message, retry_after_ms)| ServerEvent::Rejected {
                id,
                to,
                code: Word::Known(code),
                message,
                retry_after_ms
            }),
        (text(), device()).prop_map(|(id, to)| ServerEvent::Cancelled { id, to }),
        (number(), text(), number(), outcome).prop_map(
            |(seq, id, at_ms, (to, outcome, maybe_seen, reason))| {
                let outcome = Word::Known(outcome);
                ServerEvent::Outcome { seq, id, to, outcome, at_ms, maybe_seen, reason }
            }
        ),
    ]
}

fn device_event() -> impl Strategy<Value = DeviceEvent> {
    (device(), any::<bool>(), number()).prop_map(|(device, online, since_ms)| DeviceEvent {
        device,
        online,
        since_ms,
    })
}

/// Frames about devices and connections.
fn device_frame() -> impl Strategy<Value = ServerEvent> {
    let devices = proptest::collection::vec(device_event(), 0..5);
    prop_oneof![
        (text(), devices, option::of(device()))
            .prop_map(|(id, devices, next)| ServerEvent::Devices { id, devices, next }),
        text().prop_map(|id| ServerEvent::Watching { id }),
        (device(), any::<bool>(), number())
            .prop_map(|(device, online, at_ms)| ServerEvent::Presence { device, online, at_ms }),
        option::of(number()).prop_map(|expires_at_ms| ServerEvent::Refreshed { expires_at_ms }),
        number().prop_map(|at_ms| ServerEvent::Expiring { at_ms }),
        option::of(text()).prop_map(|id| ServerEvent::Pong { id }),
        (number(), text())
            .prop_map(|(reconnect_in_ms, reason)| ServerEvent::Bye { reconnect_in_ms, reason }),
        (select(FrameErrorCode::ALL), text(), option::of(text())).prop_map(
            |(code, message, id)| ServerEvent::Error { code: Word::Known(code), message, id }
        ),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_server_reads_what_a_client_wrote(frame in client_frame()) {
        let mut written = Vec::new();
        frame.write(&mut written);
        prop_assert_eq!(v1::parse_client(&written).unwrap(), frame);
    }

    /// A plain frame is read on the fast path; a space in front leads past it.
    #[test]
    fn a_plain_frame_is_read_as_any_other(
        frame in prop_oneof![
            4 => send().prop_map(ClientFrame::Send),
            1 => number().prop_map(|seq| ClientFrame::Ack { seq }),
        ],
        damage in option::of((any::<Index>(), any::<u8>())),
        cut in option::weighted(0.1, any::<Index>()),
    ) {
        let mut written = vec![b' '];
        frame.write(&mut written);
        if let Some((at, byte)) = damage {
            let at = at.index(written.len() - 1) + 1;
            written[at] = byte;
        }
        if let Some(at) = cut {
            written.truncate(at.index(written.len()) + 1);
        }
        let (plainly, spaced) = (v1::parse_client(&written[1..]), v1::parse_client(&written));
        prop_assert_eq!(plainly.as_ref().ok(), spaced.as_ref().ok());
        let id = |read: Result<ClientFrame<'_>, v1::FrameError>| read.err().and_then(|error| error.id);
        prop_assert_eq!(id(plainly), id(spaced));
    }

    #[test]
    fn a_client_reads_what_a_server_wrote(
        event in prop_oneof![welcome(), message_event(), device_frame()],
    ) {
        let mut devices = Vec::new();
        let frame = shown::as_frame(&event, &mut devices).unwrap();
        let mut written = b"before".to_vec();
        frame.write(&mut written);
        let written = written.strip_prefix(b"before").unwrap();
        prop_assert_eq!(v1::parse_server(written).unwrap(), event.clone());
        if !String::from_utf8_lossy(written).contains("1e400") {
            prop_assert!(serde_json::from_slice::<Value>(written).is_ok());
        }
    }
}

/// A device takes the most bytes of a page when it is offline and its number is at its longest.
#[test]
fn the_bound_on_a_device_in_a_page_holds_for_the_longest() {
    use switchboard_proto::v1::{DeviceRef, DeviceStatus, ServerFrame};

    let device = DeviceRef::Name("d");
    let status = DeviceStatus { device, online: false, since_ms: u64::MAX };
    let len = |devices: &[DeviceStatus<'_>]| {
        let mut written = Vec::new();
        ServerFrame::Devices { id: "i", devices, next: None }.write(&mut written);
        written.len()
    };
    // The comma between two of them counts.
    assert_eq!(len(&[status; 3]) - len(&[status; 2]), status.len_max());
}

/// A message is accepted or not by its length when it is pushed, which is computed exactly for
/// numbers at their longest.
#[test]
fn the_length_of_a_message_is_known_before_it_is_written() {
    use switchboard_proto::v1::{DeviceRef, INTEGER_MAX, ServerFrame};

    let names = ["a".repeat(128), "b".to_owned()];
    let strings = ["i", "\u{1}\"\\\n\u{7f}é", &"\u{1}".repeat(64)];
    for name in &names {
        for id in strings {
            for re in strings.map(Some).into_iter().chain([None]) {
                let (from, body) = (DeviceRef::Name(name), b"\"body\"");
                let (seq, sent_at_ms) = (INTEGER_MAX, INTEGER_MAX);
                let mut written = Vec::new();
                ServerFrame::Message { seq, from, id, body, sent_at_ms, re }.write(&mut written);
                let len = v1::message_len(from, id, body.len(), re);
                assert_eq!(len, written.len());
                let strings = id.len() + re.map_or(0, str::len);
                assert!(!v1::is_short_message(body.len(), strings, len - 1));
            }
        }
    }
    assert!(v1::is_short_message(1_000, 10, 2_000));
}
