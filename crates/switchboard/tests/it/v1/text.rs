//! Messages between the two protocols, and devices of the text protocol with a token.

use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest;

use super::client::{V1, send, token, with};
use crate::device::Device;
use crate::server::{Server, binary};

/// Connects a device of the text protocol with a token; its welcome is not read.
pub(super) fn bearer(server: &Server, token: &str) -> Device {
    let mut request = server.url().into_client_request().unwrap();
    let value = format!("Bearer {token}").parse().unwrap();
    request.headers_mut().insert("Authorization", value);
    let (socket, _) = tungstenite::client(request, server.socket()).unwrap();
    Device { id: 0, welcome: String::new(), socket }
}

#[test]
fn a_text_device_is_shown_strings_bare_and_all_else_as_json() {
    let server = Server::with(&["shards=3"]);
    let (mut a, mut text) = (V1::named(&server, "a"), Device::connect(&server));
    let to = text.id.to_string();
    for (n, (body, shown)) in [
        (r#""hello, \"you\"""#, r#"a:hello, "you""#),
        (r#"{ "x" : [1, 2.0] }"#, r#"a:{"x":[1,2.0]}"#),
        ("null", "a:null"),
        ("-0.0", "a:-0.0"),
    ]
    .iter()
    .enumerate()
    {
        a.say_text(&format!(r#"{{"type":"send","id":"{n}","to":"{to}","body":{body}}}"#));
        a.expect(json!({"type": "accepted", "id": n.to_string(), "durability": "none"}));
        assert_eq!(text.hear(), *shown);
    }
    let away = text.id.to_string();
    text.close();
    a.ask(send(&away, "9"), json!({"type": "rejected", "code": "no_such_device"}));
}

#[test]
fn a_text_device_sends_by_number_and_by_name_also_to_who_is_away() {
    for shards in ["shards=1", "shards=3"] {
        let mut server = Server::with(&[shards]);
        let (mut b, c) = (V1::named(&server, "b"), V1::anonymous(&server).leave());
        let mut text = Device::connect(&server);
        text.say("send,b,say \"hi\", you\\");
        let body = json!("say \"hi\", you\\");
        let from = text.id.to_string();
        let message = b.expect(json!({"type": "message", "from": from, "body": body}));
        assert!(!message["id"].as_str().unwrap().is_empty());
        text.say(&format!("send,{},later", c.device));
        text.hears_nothing();
        for nobody in ["send,nobody,x", "send,no body,x"] {
            assert_eq!(text.ask(nobody), "Error reading the command");
        }
        assert_eq!(text.ask("send,1,x"), "Invalid destinationId");
        // A retry within the window is a duplicate, to a mailbox too.
        assert_eq!(text.ask(&format!("send,{},later", c.device)), "Duplicate message");
        // Messages sent to a v1 device are synced before it answers, and so is everything before
        // them.
        V1::named(&server, "d").send(&c.device, "synced");
        server.restart();
        let mut c = c.back(&server, 0);
        c.expect(json!({"type": "message", "body": "later"}));
        c.take("synced");
    }
}

/// `allow_send` was once checked only in v1.
#[test]
fn a_text_device_sends_only_to_whom_its_token_allows() {
    for shards in ["shards=1", "shards=3"] {
        let server = Server::with(&[shards]);
        let mint = "token --device s1 --allow-send hub.* --allow-send gone";
        let minted = binary().args(mint.split(' ')).current_dir(server.directory.path()).output();
        let mut bounded =
            bearer(&server, String::from_utf8(minted.unwrap().stdout).unwrap().trim());
        assert!(bounded.hear().starts_with("Your ID: s1\n"));
        let (mut hub, mut other) = (V1::named(&server, "hub.1"), V1::named(&server, "other"));
        let (mut text, away) = (Device::connect(&server), V1::anonymous(&server).leave());
        for to in ["other", "s1", "nobody", "1", &away.device, &text.id.to_string()] {
            let answer = bounded.ask(&format!("send,{to},for {to}"));
            assert_eq!(answer, "Invalid destinationId", "{to}");
        }
        assert_eq!(bounded.ask("send,gone,x"), "Error reading the command");
        bounded.say("send,hub.1,hi");
        hub.expect(json!({"type": "message", "from": "s1", "body": "hi"}));
        // None of it arrived.
        bounded.hears_nothing();
        text.hears_nothing();
        other.hears_nothing();
        V1::named(&server, "d").send(&away.device, "only");
        away.back(&server, 0).take("only");
    }
}

#[test]
fn a_full_mailbox_is_told_in_its_place_among_the_answers() {
    for shards in ["shards=1", "shards=3"] {
        let server = Server::with(&[shards, "mailbox_max_messages=2"]);
        // One of them is on another shard than the text device, if there is more than one.
        let away: Vec<_> = (0..6).map(|_| V1::anonymous(&server).leave()).collect();
        let mut text = Device::connect(&server);
        for to in away.iter().map(|away| &away.device) {
            for command in [
                format!("send,{to},1"),
                format!("send,{to},2"),
                format!("send,{to},3"),
                "send,1,x".to_owned(),
                format!("send,{to},3"),
                "help".to_owned(),
            ] {
                text.say(&command);
            }
            // A rejected message is not a duplicate when it is sent again.
            let answers = ["Mailbox full", "Invalid destinationId", "Mailbox full"];
            assert_eq!(answers.map(|_| text.hear()), answers);
            assert!(text.hear().starts_with("Your ID: "));
        }
    }
}

#[test]
fn the_list_of_the_text_protocol_shows_all_that_are_connected() {
    let server = Server::with(&["shards=3"]);
    let (a, b) = (V1::anonymous(&server), V1::named(&server, "b"));
    let gone = V1::named(&server, "gone").leave();
    let text = Device::connect(&server);
    let list = text.welcome.lines().nth(2).unwrap();
    for (id, is_shown) in
        [(a.device(), true), (b.device(), true), (text.id.to_string(), true), (gone.device, false)]
    {
        let listed = list.trim_matches(['[', ']']).split(", ").any(|shown| shown == id);
        assert_eq!(listed, is_shown, "{id} in {list}");
    }
}

#[test]
fn a_text_device_with_a_token_has_a_mailbox_that_writing_empties() {
    for shards in ["shards=1", "shards=3"] {
        let mut server = Server::with(&[shards]);
        let mut a = V1::anonymous(&server);
        let token = token(&server, "b", None);
        let mut b = bearer(&server, &token);
        assert!(b.hear().starts_with("Your ID: b\n"));
        b.close();
        let receipt = json!({"receipt": true});
        let accepted = json!({"type": "accepted", "id": "1", "durability": "disk"});
        a.ask(with(send("b", "1"), &receipt), accepted);
        let away = a.away();
        server.restart();
        a = away.back(&server, 0);
        let mut b = bearer(&server, &token);
        assert!(b.hear().starts_with("Your ID: b\n"));
        assert_eq!(b.hear(), format!("{}:1", a.device()));
        a.expect(json!({"type": "outcome", "id": "1", "to": "b", "outcome": "delivered"}));
        // It sends under its name.
        b.say(&format!("send,{},back", a.device()));
        a.expect(json!({"type": "message", "from": "b", "body": "back"}));
        // Text devices and v1 devices can both send to it.
        let mut text = Device::connect(&server);
        text.say("send,b,x");
        assert_eq!(b.hear(), format!("{}:x", text.id));
        // The newest connection has the device, whatever its protocol.
        let v1 = V1::hello(&server, json!({"token": token}));
        assert_eq!(v1.welcome["pending"], 0);
        assert_eq!(b.close_code(), 4409);
    }
}

#[test]
fn a_text_device_with_a_bad_token_is_told_so() {
    let server = Server::start();
    let mut device = bearer(&server, "what");
    let frame = device.close_frame().expect("a close frame");
    assert_eq!(u16::from(frame.code), 4401);
    assert!(frame.reason.as_str().contains("JWT"));
}

#[test]
fn an_outcome_waits_for_a_device_that_came_by_text() {
    let server = Server::with(&["shards=3"]);
    let mut b = V1::named(&server, "b");
    let a = V1::named(&server, "a");
    let token = a.away().token;
    let mut a = a;
    a.send_with("b", "1", &json!({"receipt": true}));
    a.leave();
    let seq = b.take("1");
    let mut text = bearer(&server, &token);
    assert!(text.hear().starts_with("Your ID: a\n"));
    b.ack(seq);
    b.hears_nothing();
    let answer: Value = json!(text.ask("help").starts_with("Your ID: a\n"));
    assert_eq!(answer, true);
    text.close();
    let mut a = V1::hello(&server, json!({"token": token}));
    a.expect(json!({"type": "outcome", "id": "1", "outcome": "delivered"}));
}
