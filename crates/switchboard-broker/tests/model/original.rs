//! The original server's rules by its description: a dictionary of clients, the last text kept
//! whole, every check in the original's order. With two deviations, which its transcripts name:
//! commas in a text are kept, and the list of devices is bounded.

use std::collections::BTreeMap;

/// Time for which the same text counts as a duplicate.
const WINDOW_MS: u64 = 5_000;

#[derive(Debug)]
pub(crate) struct Original {
    current_id: u64,
    list_max: usize,
    clients: BTreeMap<u64, Client>,
}

#[derive(Debug, Default)]
struct Client {
    last: Option<Last>,
}

#[derive(Debug)]
struct Last {
    text: String,
    at_ms: u64,
}

/// Result of a message.
#[derive(Debug, PartialEq)]
pub(crate) enum Verdict {
    /// The sender is answered so.
    Tell(String),
    /// The text goes to this device.
    Forward { to: u64, text: String },
}

impl Original {
    pub(crate) fn new(list_max: usize) -> Original {
        Original { current_id: 100_000_000, list_max, clients: BTreeMap::new() }
    }

    pub(crate) fn register(&mut self) -> u64 {
        let id = self.current_id;
        self.current_id += 1;
        self.clients.insert(id, Client::default());
        id
    }

    pub(crate) fn unregister(&mut self, id: u64) {
        self.clients.remove(&id).expect("it was registered");
    }

    pub(crate) fn is_connected(&self, id: u64) -> bool {
        self.clients.contains_key(&id)
    }

    /// The next id, which no client was given.
    pub(crate) fn next_id(&self) -> u64 {
        self.current_id
    }

    pub(crate) fn info(&self, own: u64) -> String {
        let mut list: Vec<String> = match self.list_max {
            0 => vec![own.to_string()],
            max => self.clients.keys().take(max).map(u64::to_string).collect(),
        };
        if self.list_max > 0 && self.clients.len() > self.list_max {
            list.push(format!("... and {} more", self.clients.len() - self.list_max));
        }
        let list = list.join(", ");
        format!("Your ID: {own}\nConnected Devices: \n[{list}]\nChat usage: send,destinationId,msg")
    }

    pub(crate) fn communicate(&mut self, now_ms: u64, from: u64, payload: &str) -> Verdict {
        if payload == "help" {
            return Verdict::Tell(self.info(from));
        }
        let tell = |text: &str| Verdict::Tell(text.to_owned());
        let parts: Vec<&str> = payload.splitn(3, ',').collect();
        let &[command, id, text] = parts.as_slice() else {
            return tell("Error reading the command");
        };
        // All ids in these schedules are below 2^127.
        let Ok(id) = id.trim().parse::<i128>() else { return tell("Error reading the command") };
        if command.trim() != "send" {
            return tell("Invalid Command");
        }
        let to = u64::try_from(id).ok().filter(|id| self.clients.contains_key(id));
        let Some(to) = to else { return tell("Invalid destinationId") };
        let client = self.clients.get_mut(&from).expect("only clients speak");
        let is_duplicate = client
            .last
            .as_ref()
            .is_some_and(|last| last.text == text && now_ms - last.at_ms < WINDOW_MS);
        if is_duplicate {
            return tell("Duplicate message");
        }
        client.last = Some(Last { text: text.to_owned(), at_ms: now_ms });
        Verdict::Forward { to, text: text.to_owned() }
    }

    /// Takes back a text whose receiver was gone when it arrived, which cannot happen in the
    /// original with its one thread: the sender, if it is still connected, is answered as if the
    /// text had been refused at once, and the text does not count for the duplicate window.
    pub(crate) fn take_back(&mut self, from: u64, text: &str) -> Option<Verdict> {
        let client = self.clients.get_mut(&from)?;
        client.last.take_if(|last| last.text == text);
        Some(Verdict::Tell("Invalid destinationId".to_owned()))
    }
}
