//! Presence: the list, watches, and a server on which devices do not see each other.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::client::V1;
use crate::device::Device;
use crate::server::Server;

fn presence(device: &str, online: bool) -> Value {
    json!({"type": "presence", "device": device, "online": online})
}

fn watch(devices: &[&str]) -> Value {
    json!({"type": "watch", "id": "w", "devices": devices})
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    since.as_millis().try_into().unwrap()
}

fn watching() -> Value {
    json!({"type": "watching", "id": "w"})
}

#[test]
fn who_watches_is_told_now_and_at_each_change() {
    for shards in ["shards=1", "shards=3"] {
        let server = Server::with(&[shards]);
        let mut watcher = V1::anonymous(&server);
        let b = V1::named(&server, "b");
        let text = Device::connect(&server);
        let text_id = text.id.to_string();
        watcher.ask(watch(&["b", &text_id, "nobody"]), watching());
        watcher.expect(presence("b", true));
        watcher.expect(presence(&text_id, true));
        watcher.expect(presence("nobody", false));
        let b = b.leave();
        let gone = watcher.expect(presence("b", false));
        assert!(gone["at_ms"].is_u64());
        text.close();
        watcher.expect(presence(&text_id, false));
        let back = b.back(&server, 0);
        watcher.expect(presence("b", true));
        // A device that is taken over stays online.
        let _again = b.back(&server, 0);
        let _nobody = V1::named(&server, "nobody");
        loop {
            let told = watcher.hear();
            assert_eq!(told["online"], true, "{told}");
            if told["device"] == "nobody" {
                break;
            }
        }
        drop(back);
        watcher.ask(json!({"type": "unwatch", "id": "w", "devices": ["b"]}), watching());
        b.back(&server, 0).leave();
        watcher.ask(json!({"type": "unwatch", "id": "w"}), watching());
        V1::named(&server, "nobody").leave();
        watcher.hears_nothing();
    }
}

#[test]
fn a_device_that_does_not_exist_is_offline_since_it_was_asked_about() {
    let server = Server::start();
    let mut watcher = V1::anonymous(&server);
    let text = Device::connect(&server);
    let ended = text.id.to_string();
    text.close();
    let before_ms = now_ms();
    watcher.ask(watch(&["nobody", "7", &ended]), watching());
    for unknown in ["nobody", "7", &ended] {
        let at_ms = watcher.expect(presence(unknown, false))["at_ms"].as_u64().unwrap();
        // Both clocks are truncated to milliseconds.
        assert!((before_ms - 2..=now_ms() + 2).contains(&at_ms), "{at_ms} {before_ms}");
    }
}

#[test]
fn the_list_comes_in_pages_and_holds_who_is_away() {
    let server = Server::with(&["shards=3"]);
    let mut device = V1::named(&server, "d0");
    let text = Device::connect(&server);
    V1::named(&server, "d1").leave();
    let _others: Vec<V1> = (2..7).map(|n| V1::named(&server, &format!("d{n}"))).collect();
    let mut all = Vec::new();
    let mut ask = json!({"type": "devices", "id": "l", "limit": 3});
    loop {
        let page = device.ask(ask.clone(), json!({"type": "devices", "id": "l"}));
        let devices = page["devices"].as_array().unwrap().clone();
        assert!(devices.len() <= 3);
        all.extend(devices);
        match page.get("next") {
            Some(next) => ask["after"] = next.clone(),
            None => break,
        }
    }
    let shown = |status: &Value| {
        assert!(status["since_ms"].is_u64(), "{status}");
        (status["device"].as_str().unwrap().to_owned(), status["online"] == true)
    };
    let mut shown: Vec<_> = all.iter().map(shown).collect();
    shown.sort();
    let named = (0..7).map(|n| (format!("d{n}"), n != 1));
    let expected: Vec<_> = [(text.id.to_string(), true)].into_iter().chain(named).collect();
    assert_eq!(shown, expected);
}

#[test]
fn where_devices_may_not_see_each_other_nothing_shows_them() {
    let server = Server::with(&["list_devices=none"]);
    let mut device = V1::anonymous(&server);
    for frame in [json!({"type": "devices", "id": "w"}), watch(&["1"])] {
        device.ask(frame, json!({"type": "rejected", "id": "w", "code": "not_allowed"}));
    }
    let text = Device::connect(&server);
    assert!(!text.welcome.contains(&device.device()), "{}", text.welcome);
}
