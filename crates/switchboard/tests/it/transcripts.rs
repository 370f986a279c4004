//! Recorded transcripts of the original server, replayed against this server.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;
use tungstenite::Message;

use crate::device::Device;
use crate::server::{PATIENCE, Server};

const TRANSCRIPTS: &str = include_str!("transcripts.jsonl");

#[test]
fn all_transcripts_of_the_original_hold() {
    replay(&[]);
}

#[test]
fn all_transcripts_hold_across_shards() {
    replay(&["shards=3"]);
}

/// Replays each transcript against a server of its own, all at the same time, since some of them
/// wait.
fn replay(settings: &[&str]) {
    let transcripts = TRANSCRIPTS.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    std::thread::scope(|scope| {
        let replays: Vec<_> = transcripts
            .map(|transcript| {
                scope.spawn(move || Replay::start(settings, &transcript).run(&transcript))
            })
            .collect();
        assert_eq!(replays.len(), 21, "transcripts were lost");
        for replay in replays {
            replay.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
}

struct Replay {
    server: Server,
    /// By the letter that the transcript gives them.
    devices: BTreeMap<String, Device>,
    /// Ids by letter, including devices that have left.
    ids: BTreeMap<String, u64>,
    name: String,
}

impl Replay {
    fn start(settings: &[&str], transcript: &Value) -> Replay {
        let server = Server::with(settings);
        let name = transcript["name"].as_str().unwrap().to_owned();
        let mut replay = Replay { server, devices: BTreeMap::new(), ids: BTreeMap::new(), name };
        for letter in transcript["devices"].as_array().unwrap() {
            let letter = letter.as_str().unwrap();
            let device = Device::connect(&replay.server);
            replay.ids.insert(letter.to_owned(), device.id);
            if let Some(welcome) = transcript["welcome"].as_str() {
                let expected = replay.fill(welcome).replace("{SELF}", &device.id.to_string());
                assert_eq!(device.welcome, expected, "{}", replay.name);
            }
            replay.devices.insert(letter.to_owned(), device);
        }
        replay
    }

    fn run(mut self, transcript: &Value) {
        for step in transcript["steps"].as_array().unwrap() {
            self.step(step);
        }
        for device in self.devices.values_mut() {
            if device.socket.can_read() {
                device.hears_nothing();
            }
        }
    }

    fn step(&mut self, step: &Value) {
        if let Some(seconds) = step["wait"].as_f64() {
            // The transcript's own time: the original's window is measured in real seconds.
            return self.pass(seconds);
        }
        if let Some(letter) = step["close"].as_str() {
            return self.devices.remove(letter).unwrap().close();
        }
        // A step with only a note happens when the devices connect.
        let Some(from) = step["from"].as_str() else {
            return assert!(step["note"].is_string(), "{}: unknown step {step}", self.name);
        };
        if let Some(text) = step["send"].as_str() {
            let text = self.fill(text);
            self.devices.get_mut(from).unwrap().say(&text);
        } else if let Some(text) = step["send_binary"].as_str() {
            let text = self.fill(text);
            self.devices.get_mut(from).unwrap().socket.send(Message::binary(text)).unwrap();
        } else if let Some(hex) = step["send_hex"].as_str() {
            self.send_bytes(from, hex);
        } else {
            panic!("{}: unknown step {step}", self.name);
        }
        self.expect(step);
    }

    fn expect(&mut self, step: &Value) {
        for (letter, texts) in step["expect"].as_object().into_iter().flatten() {
            for text in texts.as_array().unwrap() {
                let expected = self.fill(text.as_str().unwrap());
                assert_eq!(self.devices.get_mut(letter).unwrap().hear(), expected, "{}", self.name);
            }
        }
        for (letter, code) in step["expect_close"].as_object().into_iter().flatten() {
            let code = code.as_u64().unwrap();
            assert_eq!(u64::from(self.devices.get_mut(letter).unwrap().close_code()), code);
        }
    }

    fn send_bytes(&mut self, from: &str, hex: &str) {
        let bytes: Vec<u8> = (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect();
        self.devices.get_mut(from).unwrap().socket.send(Message::binary(bytes)).unwrap();
    }

    /// Lets time pass; by then a device that left is gone.
    fn pass(&self, seconds: f64) {
        let began = Instant::now();
        let connected = self.devices.len() as f64;
        self.server.await_metric("switchboard_connections", |now| now == connected);
        assert!(began.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_secs_f64(seconds).saturating_sub(began.elapsed()));
    }

    /// Inserts ids for `{A}`, `{B}`, and all connected ones for `{ALL}`.
    fn fill(&self, text: &str) -> String {
        let all: Vec<String> = self.ids.values().map(u64::to_string).collect();
        let mut text = text.replace("{ALL}", &all.join(", "));
        for (letter, id) in &self.ids {
            text = text.replace(&format!("{{{letter}}}"), &id.to_string());
        }
        text
    }
}
