//! `allow_send` of a token is obeyed in every way in which a device of the text protocol can send.

use std::sync::Arc;

use switchboard_broker::{Conn, Effect, Hello, Input, Limits, Refusal, SendFilter};
use switchboard_proto::v1::DeviceRef;

use crate::rig::Rig;

/// Lets a device send to these only.
#[derive(Debug)]
struct Only(Vec<String>);

impl SendFilter for Only {
    fn allows(&self, to: &str) -> bool {
        self.0.iter().any(|allowed| allowed == to)
    }
}

/// Result of one command of a text device.
#[derive(Debug, PartialEq)]
enum Came {
    Refused(Refusal),
    Sent,
    Informed,
}

fn say(rig: &mut Rig, conn: u32, command: &str) -> Came {
    let mut came = None;
    rig.broker.said(rig.now, Conn(conn), command.as_bytes(), &mut |effect| match effect {
        Effect::Refuse { conn: told, refusal } if told == Conn(conn) => {
            came = Some(Came::Refused(refusal));
        }
        Effect::Inform { .. } => came = Some(Came::Informed),
        Effect::Deliver { .. } | Effect::TextAccepted { .. } => came = Some(Came::Sent),
        _ => {}
    });
    came.unwrap_or_else(|| panic!("nothing came of {command}"))
}

/// Connects a text device that showed a token with a name.
fn text_with_token(rig: &mut Rig, conn: u32, name: &str, filter: Option<Only>) {
    let device = rig.directory.names().intern(DeviceRef::Name(name));
    rig.handle(Input::Hello(Hello {
        conn: Conn(conn),
        device,
        is_text: true,
        mailbox: None,
        last_seq: 0,
        token: None,
        token_ends_ms: None,
        filter: filter.map(|filter| Arc::new(filter) as Arc<dyn SendFilter>),
        nonce: 1,
        is_ephemeral: false,
    }));
}

/// Connects an anonymous text device; returns its number.
fn anonymous(rig: &mut Rig, conn: u32) -> u64 {
    rig.handle(Input::Connected(Conn(conn)));
    rig.broker.device(Conn(conn)).expect("it is connected").get()
}

/// Only v1 asked the filter, so a token could be used with another protocol to get around it.
#[test]
fn a_text_device_sends_only_to_whom_its_token_allows() {
    let mut rig = Rig::new(Limits::default(), false);
    let (a, b) = (anonymous(&mut rig, 0), anonymous(&mut rig, 1));
    // With a mailbox and a number, by v1: one that is there and one that is away.
    let number = rig.directory.new_id();
    rig.hello_as(2, DeviceRef::Number(number), None);
    rig.hello(3, "here", None);
    rig.hello(4, "away", None);
    rig.leave(4);
    rig.hello(5, "friend", None);
    let allowed = Only(vec![b.to_string(), "friend".to_owned(), "nobody".to_owned()]);
    text_with_token(&mut rig, 6, "mallory", Some(allowed));

    let forbidden = Came::Refused(Refusal::NoSuchDevice);
    let number = number.get().to_string();
    let mut n = 0;
    // The last two do not exist: the answer is the same.
    for to in [&a.to_string(), &number, "here", "away", "mallory", "stranger", "1"] {
        n += 1;
        assert_eq!(say(&mut rig, 6, &format!("send,{to},{n}")), forbidden, "to {to}");
    }
    let unread = Came::Refused(Refusal::Unreadable);
    for name in ["here", "stranger"] {
        assert_eq!(say(&mut rig, 6, &format!("tell,{name},x")), unread, "{name}");
    }
    // A refused text does not count for the duplicate window.
    assert_eq!(say(&mut rig, 6, &format!("send,{b},{n}")), Came::Sent);
    assert_eq!(say(&mut rig, 6, "send,friend,hi"), Came::Sent);
    assert_eq!(say(&mut rig, 6, "send,nobody,hi"), unread);
    assert_eq!(say(&mut rig, 6, "help"), Came::Informed);

    // Tokens without `allow_send`, and connections without a token, send to all devices.
    text_with_token(&mut rig, 7, "trusted", None);
    for (conn, text) in [(7, "x"), (0, "y")] {
        for (n, to) in [&b.to_string(), &number, "here", "away"].into_iter().enumerate() {
            let command = format!("send,{to},{text}{n}");
            assert_eq!(say(&mut rig, conn, &command), Came::Sent, "{command}");
        }
    }
    // The number of the connection is another device's later.
    rig.leave(6);
    anonymous(&mut rig, 6);
    assert_eq!(say(&mut rig, 6, "send,here,z"), Came::Sent);
}
