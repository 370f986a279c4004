//! Shares in a mailbox: of one sender, and of all senders without names together.

use std::time::Duration;

use switchboard_broker::{
    Conn, DeviceReplyTo, Envelope, Input, Limits, OutcomesFull, Reply, ShardId,
};
use switchboard_proto::DeviceId;
use switchboard_proto::v1::DeviceRef;

use crate::records::{ANN, BOB};
use crate::rig::Rig;

/// Sends from a connection to `bob` until a message is rejected; returns the number that were
/// accepted, and the rejection.
fn fill(rig: &mut Rig, conn: u32, body: &str) -> (usize, String) {
    for id in 0.. {
        let frame = format!(r#"{{"type":"send","id":"m-{id}","to":"bob","body":"{body}"}}"#);
        let done = rig.say(conn, &frame);
        let (_, answer) = done.frames.iter().find(|(to, _)| *to == conn).expect("an answer");
        if !answer.contains("\"accepted\"") {
            return (id, answer.clone());
        }
    }
    unreachable!("mailboxes have bounds")
}

/// Returns a rig in which `bob` has a mailbox and is away.
fn rig(limits: Limits) -> Rig {
    let mut rig = Rig::new(limits, false);
    rig.hello(99, "bob", None);
    rig.leave(99);
    rig
}

fn anonymous(rig: &mut Rig, conn: u32) {
    let device = DeviceRef::Number(DeviceId::new(DeviceId::FIRST.get() + u64::from(conn)));
    rig.hello_as(conn, device, None);
}

/// One stranger once filled 50 mailboxes in 0.3 s, so that nobody else could write to their owners.
#[test]
fn one_sender_fills_half_of_a_mailbox_and_then_half_of_what_others_leave() {
    let mut rig = rig(Limits { mailbox_messages_max: 100, ..Limits::default() });
    for (conn, name) in [(0, "ann"), (1, "cleo"), (2, "dora"), (3, "emma"), (4, "finn")] {
        rig.hello(conn, name, None);
    }
    let (sent, refusal) = fill(&mut rig, 0, "x");
    assert_eq!(sent, 50);
    assert!(refusal.contains("\"mailbox_full\"") && refusal.contains("your share"), "{refusal}");
    assert_eq!(fill(&mut rig, 1, "x").0, 25);
    assert_eq!(fill(&mut rig, 2, "x").0, 12);
    assert_eq!(fill(&mut rig, 3, "x").0, 10, "as many as anybody may have");
    let (sent, refusal) = fill(&mut rig, 4, "x");
    assert_eq!(sent, 3);
    assert!(refusal.contains("nothing in it is dropped"), "{refusal}");
    rig.broker.audit(100, 0).unwrap();
}

#[test]
fn bytes_are_shared_too_and_one_message_always_fits() {
    let mut rig = rig(Limits { mailbox_bytes_max: 10_000, ..Limits::default() });
    rig.hello(0, "ann", None);
    rig.hello(1, "cleo", None);
    assert_eq!(fill(&mut rig, 0, &"x".repeat(1_000)).0, 4);
    assert_eq!(fill(&mut rig, 1, &"x".repeat(5_000)).0, 1);
    rig.broker.audit(100, 0).unwrap();
}

#[test]
fn strangers_together_leave_a_quarter_to_those_with_names() {
    let mut rig = rig(Limits { mailbox_messages_max: 100, ..Limits::default() });
    for conn in 0..50 {
        anonymous(&mut rig, conn);
    }
    let sent: usize = (0..50).map(|conn| fill(&mut rig, conn, "x").0).sum();
    assert_eq!(sent, 75);
    rig.hello(60, "ann", None);
    assert_eq!(fill(&mut rig, 60, "x").0, 12);
}

/// The room that its messages took is free again, and they count in no share any more.
#[test]
fn a_share_is_free_again_when_the_receiver_has_dealt_with_it() {
    let mut rig = rig(Limits { mailbox_messages_max: 100, ..Limits::default() });
    rig.hello(0, "ann", None);
    assert_eq!(fill(&mut rig, 0, "x").0, 50);
    rig.hello(99, "bob", None);
    rig.say(99, r#"{"type":"ack","seq":30}"#);
    rig.broker.audit(100, 0).unwrap();
    rig.say(99, r#"{"type":"ack","seq":50}"#);
    rig.leave(99);
    rig.hello(1, "cleo", None);
    assert_eq!(fill(&mut rig, 1, "y").0, 50);
    rig.broker.audit(100, 0).unwrap();
}

/// Strangers that filled a device's mailbox once also took the room for the outcomes that it
/// asks for.
#[test]
fn a_full_mailbox_still_has_room_for_outcomes() {
    let limits = Limits { mailbox_messages_max: 20, outcomes_max: 2, ..Limits::default() };
    let mut rig = rig(limits);
    rig.hello(0, "ann", None);
    rig.hello(1, "cleo", None);
    fill(&mut rig, 0, "x");
    fill(&mut rig, 1, "x");
    rig.hello(99, "bob", None);
    for (id, answer) in [("a", "accepted"), ("b", "accepted"), ("c", "outcomes_full")] {
        let send = r#"{"type":"send","to":"ann","body":1,"receipt":true,"id":""#;
        let done = rig.say(99, &format!("{send}{id}\"}}"));
        assert!(done.told(99).contains(answer), "{done:?}");
    }
    rig.broker.audit(20, 2).unwrap();
}

/// One stranger that sent to its own devices once used up all the server's space for messages,
/// and no other device could send.
#[test]
fn strangers_together_leave_a_quarter_of_the_server_to_those_with_names() {
    for is_durable in [false, true] {
        let max = 8 * (128 + 5);
        let limits = Limits {
            memory_messages_max_bytes: max,
            store_bytes_max: max,
            mailbox_sender_share: 100,
            ..Limits::default()
        };
        let mut rig = Rig::new(limits, is_durable);
        (0..3).for_each(|conn| anonymous(&mut rig, conn));
        rig.sync();
        let mut next = 10;
        let mut accepted = |rig: &mut Rig, conn: u32, to: &str| {
            next += 1;
            let frame = r#"{"type":"send","id":"m-"#;
            let mut done = rig.say(conn, &format!("{frame}{next}\",\"to\":\"{to}\",\"body\":1}}"));
            done.frames.extend(rig.sync().frames);
            let (_, answer) = done.frames.iter().find(|(to, _)| *to == conn).expect("an answer");
            let is_accepted = answer.contains("\"accepted\"");
            assert!(is_accepted || answer.contains("store_full") && answer.contains("a name"));
            is_accepted
        };
        let stranger = "100000002";
        assert!((0..7).all(|_| accepted(&mut rig, 0, stranger)), "while nobody has a name");
        rig.hello(9, "ann", None);
        rig.sync();
        assert!(!accepted(&mut rig, 0, stranger));
        assert!(!accepted(&mut rig, 1, "ann"));
        assert!(accepted(&mut rig, 9, stranger), "the rest is for those with names");
        rig.broker.audit(100, 0).unwrap();
        rig.say(2, r#"{"type":"ack","seq":3}"#);
        rig.sync();
        assert!(accepted(&mut rig, 0, stranger), "what was taken is free again");
        assert!(accepted(&mut rig, 0, stranger));
        assert!(!accepted(&mut rig, 0, stranger));
        rig.broker.audit(100, 0).unwrap();
    }
}

/// Outcomes that a stranger asks for and does not ack count as its messages.
#[test]
fn outcomes_that_wait_for_strangers_count_as_what_they_sent() {
    // The longest outcome is set aside with each message: 448 bytes.
    let limits = Limits { memory_messages_max_bytes: 1_200, ..Limits::default() };
    let mut rig = rig(limits);
    anonymous(&mut rig, 0);
    rig.hello(99, "bob", None);
    let send =
        |id: u32| format!(r#"{{"type":"send","id":"{id}","to":"bob","body":1,"receipt":true}}"#);
    for id in 1..=3 {
        assert!(rig.say(0, &send(id)).frames.iter().any(|(_, frame)| frame.contains("accepted")));
        rig.say(99, &format!(r#"{{"type":"ack","seq":{id}}}"#));
    }
    assert!(rig.say(0, &send(7)).told(0).contains("store_full"));
    rig.broker.audit(100, 10).unwrap();
    rig.say(0, r#"{"type":"ack","seq":3}"#);
    assert!(rig.say(0, &send(7)).frames.iter().any(|(_, frame)| frame.contains("accepted")));
}

/// Nothing bounded the memory of all mailboxes together: a million devices could have 16 MiB each.
#[test]
fn messages_in_memory_have_one_bound_over_all_mailboxes() {
    let limits = Limits { memory_messages_max_bytes: 10 * (128 + 5), ..Limits::default() };
    let mut rig = rig(limits);
    rig.hello(0, "ann", None);
    // Each takes 128 bytes beside its id and its body.
    let (sent, refusal) = fill(&mut rig, 0, "");
    assert_eq!(sent, 10);
    assert!(refusal.contains("\"store_full\"") && refusal.contains("memory"), "{refusal}");
    rig.hello(99, "bob", None);
    rig.say(99, r#"{"type":"ack","seq":1}"#);
    rig.broker.audit(100, 0).unwrap();
    let done = rig.say(0, r#"{"type":"send","id":"m-a","to":"bob","body":""}"#);
    assert!(done.frames.iter().any(|(to, frame)| *to == 0 && frame.contains("accepted")));
}

/// The shortest messages take less space on disk than memory: 10 GiB of them took 13 GB.
#[test]
fn messages_on_disk_have_a_bound_by_the_memory_of_their_entries() {
    let limits = Limits { memory_messages_max_bytes: 8 * 128, ..Limits::default() };
    let mut rig = Rig::new(limits, true);
    (0..2).for_each(|conn| anonymous(&mut rig, conn));
    rig.hello(9, "ann", None);
    rig.hello(99, "bob", None);
    rig.sync();
    let mut next = 0;
    let mut send = |rig: &mut Rig, conn: u32| {
        next += 1;
        let frame = format!(r#"{{"type":"send","id":"{next}","to":"bob","body":1}}"#);
        let mut done = rig.say(conn, &frame);
        done.frames.extend(rig.sync().frames);
        let (_, answer) = done.frames.iter().find(|(to, _)| *to == conn).expect("an answer");
        answer.clone()
    };
    assert!((0..6).all(|_| send(&mut rig, 0).contains("accepted")));
    let refused = send(&mut rig, 1);
    assert!(refused.contains("store_full") && refused.contains("without a name"), "{refused}");
    assert!((0..2).all(|_| send(&mut rig, 9).contains("accepted")), "a quarter is for names");
    let refused = send(&mut rig, 9);
    assert!(refused.contains("store_full") && refused.contains("memory"), "{refused}");
    rig.say(99, r#"{"type":"ack","seq":1}"#);
    rig.sync();
    assert!(send(&mut rig, 9).contains("accepted"));
    rig.broker.audit(100, 0).unwrap();
}

/// Sends messages with a receipt to a device until one is rejected; returns the number that were
/// accepted, and the rejection.
fn ask_outcomes(rig: &mut Rig, conn: u32, to: &str) -> (usize, String) {
    let ids_before = rig.broker.stats().ids;
    for id in 0.. {
        let send = r#"{"type":"send","body":1,"receipt":true,"#;
        let name = ids_before as usize + id;
        let done = rig.say(conn, &format!("{send}\"id\":\"m-{name}\",\"to\":\"{to}\"}}"));
        let (_, answer) = done.frames.iter().find(|(to, _)| *to == conn).expect("an answer");
        if !answer.contains("\"accepted\"") {
            return (id, answer.clone());
        }
    }
    unreachable!("outcomes have bounds")
}

/// Two strangers that asked a bot and never acked its answers once took all room for its
/// outcomes until their devices ended; and it was told to ack what waits, although nothing
/// waited.
#[test]
fn receivers_who_do_not_ack_leave_room_for_the_outcomes_of_others() {
    let mut rig = Rig::new(Limits { outcomes_max: 100, ..Limits::default() }, false);
    rig.hello(99, "bot", None);
    rig.hello(98, "friend", None);
    (0..3).for_each(|conn| anonymous(&mut rig, conn));
    let (asked, refusal) = ask_outcomes(&mut rig, 99, "100000000");
    assert_eq!(asked, 50, "half of the room");
    let message =
        "outcomes of 50 messages to 100000000 are pending: cancel them or give them a ttl_ms";
    assert!(refusal.contains("\"outcomes_full\"") && refusal.contains(message), "{refusal}");
    assert_eq!(ask_outcomes(&mut rig, 99, "100000001").0, 25, "half of what is left");
    let (asked, refusal) = ask_outcomes(&mut rig, 99, "100000002");
    assert_eq!(asked, 0);
    assert!(refusal.contains("75 messages to devices without a name are pending"), "{refusal}");
    let (asked, refusal) = ask_outcomes(&mut rig, 99, "friend");
    assert_eq!(asked, 12, "half of what they leave to those with names");
    assert!(refusal.contains("outcomes of 12 messages to friend"), "{refusal}");
    rig.broker.audit(100, 100).unwrap();
    rig.say(98, r#"{"type":"ack","seq":12}"#);
    assert_eq!(ask_outcomes(&mut rig, 99, "friend").0, 10, "as many as anybody may have");
    rig.say(99, r#"{"type":"ack","seq":12}"#);
    rig.broker.audit(100, 100).unwrap();
    rig.say(0, r#"{"type":"ack","seq":50}"#);
    rig.say(99, r#"{"type":"ack","seq":62}"#);
    assert_eq!(ask_outcomes(&mut rig, 99, "100000002").0, 32);
    rig.broker.audit(100, 100).unwrap();
}

#[test]
fn where_all_room_is_in_use_the_sender_learns_what_uses_it() {
    let mut rig = Rig::new(Limits { outcomes_max: 4, ..Limits::default() }, false);
    rig.hello(99, "bot", None);
    rig.hello(98, "friend", None);
    let (asked, refusal) = ask_outcomes(&mut rig, 99, "friend");
    assert_eq!(asked, 4);
    assert!(refusal.contains("outcomes of 4 messages are pending and 0 wait"), "{refusal}");
    rig.say(98, r#"{"type":"ack","seq":3}"#);
    let (asked, refusal) = ask_outcomes(&mut rig, 99, "friend");
    assert_eq!(asked, 0);
    assert!(refusal.contains("outcomes of 1 messages are pending and 3 wait"), "{refusal}");
}

/// A message to another shard found no room for its outcome. It was sent again when there was some,
/// and the late reply to the first attempt once gave that room to a third message: all three were
/// accepted.
#[test]
fn a_late_refusal_of_one_attempt_leaves_the_room_to_the_next() {
    let limits = Limits { outcomes_max: 1, ..Limits::default() };
    let mut rig = Rig::new(limits, true);
    rig.hello(0, "ann", None);
    rig.hello(1, "bob", None);
    rig.sync();
    let send =
        |id: &str| format!(r#"{{"type":"send","id":"{id}","to":"bob","body":1,"receipt":true}}"#);
    assert_eq!(rig.say(0, &send("a")).appended, ["message"], "which waits for its sync");
    let [ann, bob] = [ANN, BOB].map(|device| rig.directory.names().intern(device));
    rig.handle(Input::Envelope(Envelope::Reply {
        reply_to: DeviceReplyTo {
            shard: ShardId(0),
            device: ann,
            conn: Conn(0),
            session: 1,
            is_told: true,
            incarnation: None,
            receipt: true,
        },
        of: bob,
        id: "a".into(),
        reply: Reply::OutcomesFull(OutcomesFull::All { pending: 1, waiting: 0 }),
    }));
    let refusal = rig.say(0, &send("b")).told(0).to_owned();
    assert!(refusal.contains("\"outcomes_full\""), "{refusal}");
}

/// Strangers that asked for outcomes and left before the replies came once left 40 bytes for each
/// message, for a minute or two: 1.4 GiB in 50 s.
#[test]
fn of_a_sender_that_left_nothing_is_kept_once_the_reply_comes() {
    let mut rig = Rig::new(Limits::default(), true);
    rig.hello(1, "bob", None);
    rig.sync();
    rig.is_ephemeral = true;
    rig.hello(0, "ann", None);
    let send = r#"{"type":"send","id":"a","to":"bob","body":1,"receipt":true}"#;
    assert_eq!(rig.say(0, send).appended, ["message"], "which waits for its sync");
    rig.leave(0);
    let in_two_minutes = rig.now.at.after(Duration::from_secs(120));
    assert!(rig.broker.is_due(in_two_minutes), "the reply is awaited");
    rig.sync();
    assert!(!rig.broker.is_due(in_two_minutes), "{:?}", rig.broker.next_tick());
}
