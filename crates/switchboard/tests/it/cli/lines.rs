//! `send --lines`: a message for each line, and a result for each.

use super::durable::Listening;
use super::{Ran, Server, Shell, Value, away, json};
use crate::device::Device;

fn results(ran: &Ran) -> Vec<Value> {
    ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn numbered(count: usize) -> String {
    (0..count).map(|n| format!("{n}\n")).collect()
}

#[test]
fn each_line_is_a_message_in_order() {
    const COUNT: usize = 700;
    let (server, shell) = (Server::with(&["shards=2"]), Shell::new());
    let mut listener = Listening::start(&shell, &server, "");
    let to = listener.welcome["id"].as_str().unwrap().to_owned();
    let line = format!("send --lines --json --wait 20s --url {} {to}", server.url());
    let sending = std::thread::spawn(move || shell.feed(&line, &numbered(COUNT)));
    // Output that is not read would not be acked.
    let heard: Vec<_> = (0..COUNT).map(|_| listener.event()).collect();
    let ran = sending.join().unwrap();
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let results = results(&ran);
    assert_eq!(results.len(), COUNT);
    for (n, (result, heard)) in results.iter().zip(&heard).enumerate() {
        assert_eq!((&heard["body"], &heard["id"]), (&json!(n.to_string()), &result["id"]));
        assert_eq!(result["result"], "delivered", "{result}");
    }
}

/// Only 1,000 outcomes may be requested at once, and nobody wants to wait a second for each
/// line.
#[test]
fn to_a_device_that_is_away_all_are_stored_and_none_is_waited_for_long() {
    const COUNT: usize = 1_500;
    let (server, shell) = (Server::with(&["mailbox_max_messages=10000"]), Shell::new());
    away(&shell, &server, "bob");
    let line = format!("send --lines --json --wait 100ms --url {} bob", server.url());
    let ran = shell.feed(&line, &numbered(COUNT));
    assert_eq!(ran.code, Some(7), "{}", ran.err);
    let results = results(&ran);
    assert_eq!(results.len(), COUNT);
    assert!(results.iter().all(|result| result["result"] == "stored"), "{results:?}");
    let mut bob = Listening::start(&shell, &server, "--token-file bob");
    for n in 0..COUNT {
        assert_eq!(bob.event()["body"], json!(n.to_string()));
    }
}

#[test]
fn a_text_device_gets_them_in_order_too() {
    let (server, shell) = (Server::start(), Shell::new());
    let mut device = Device::connect(&server);
    let line = format!("send --lines --json --url {} {}", server.url(), device.id);
    let ran = shell.feed(&line, &numbered(300));
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(results(&ran).iter().all(|result| result["durability"] == "none"));
    for n in 0..300 {
        let heard = device.hear();
        assert_eq!(heard.split_once(':').unwrap().1, n.to_string());
    }
}

/// A device that answers every message must not fill the sender's mailbox, in which the outcomes
/// wait.
#[test]
fn answers_to_the_sender_are_refused_and_stop_nothing() {
    const COUNT: usize = 600;
    let (server, shell) = (Server::start(), Shell::new());
    let mut echo = crate::v1::client::V1::named(&server, "echo");
    let line = format!("send --lines --json --wait 20s --url {} echo", server.url());
    let sending = std::thread::spawn(move || shell.feed(&line, &numbered(COUNT)));
    let (mut heard, mut ended) = (0, 0);
    while heard < COUNT || ended < COUNT {
        let event = echo.hear();
        match event["type"].as_str().unwrap() {
            "message" => {
                heard += 1;
                echo.say(&json!({
                    "type": "send", "id": format!("a{heard}"), "to": event["from"], "body": "?",
                    "receipt": true,
                }));
                echo.say(&json!({"type": "ack", "seq": event["seq"]}));
            }
            "outcome" => {
                ended += 1;
                // At the end the sender may be gone before it has refused the last ones.
                assert!(event["outcome"] == "refused" || heard == COUNT, "{event}");
                assert_ne!(event["outcome"], "delivered");
                echo.say(&json!({"type": "ack", "seq": event["seq"]}));
            }
            "rejected" => {
                ended += 1;
                assert_eq!(event["code"], "no_such_device");
            }
            _ => {}
        }
    }
    let ran = sending.join().unwrap();
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(results(&ran).iter().all(|result| result["result"] == "delivered"));
}

#[test]
fn the_worst_result_is_the_exit_code() {
    let (server, shell) = (Server::start(), Shell::new());
    let listener = Listening::start(&shell, &server, "");
    let to = listener.welcome["id"].as_str().unwrap().to_owned();
    let url = server.url();
    let line = format!("send --lines --body-json --wait 20s --url {url} {to}");
    let ran = shell.feed(&line, "1\n{\n[2]\n");
    assert_eq!((ran.code, ran.err.as_str()), (Some(8), ""));
    let lines: Vec<_> = ran.out.lines().collect();
    assert!(lines[0].starts_with("delivered to ") && lines[2].starts_with("delivered to "));
    let wrong = format!("rejected for {to}: bad_request: the message is not JSON: ");
    assert!(lines[1].starts_with(&wrong), "{}", lines[1]);
    let ran = shell.feed(&format!("send --lines --json --url {url} nobody"), "1\n2\n");
    assert_eq!((ran.code, results(&ran).len()), (Some(4), 2), "{}", ran.err);
    let ran = shell.feed(&format!("send --lines --url {url} {to}"), "");
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), ""), "{}", ran.err);
}
