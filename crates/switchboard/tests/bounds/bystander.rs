//! A well-behaved pair: one device sends to another, and measures the delivery times.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::Client;
use crate::server::{Server, token};

const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 9, 1));
/// Pause between two messages.
const PAUSE: Duration = Duration::from_millis(5);

/// Two connected devices.
pub(crate) struct Bystander {
    sender: Client,
    receiver: Client,
    sent: u64,
}

/// Delivery times of the messages.
pub(crate) struct Latencies(Vec<Duration>);

impl Bystander {
    pub(crate) fn new(server: &Server) -> Bystander {
        let [sender, receiver] = ["bystander-a", "bystander-b"].map(|name| {
            let hello = json!({"token": token(server, name, None)});
            Client::v1(server, ADDRESS, hello).expect("a bystander is let in").0
        });
        Bystander { sender, receiver, sent: 0 }
    }

    /// Sends messages in memory, one after the other, until `ends_at`; each must arrive.
    pub(crate) fn measure(&mut self, ends_at: Instant) -> Latencies {
        let mut took = Vec::new();
        while Instant::now() < ends_at {
            self.sent += 1;
            let id = self.sent.to_string();
            let began = Instant::now();
            let frame = json!({"type": "send", "id": id, "to": "bystander-b", "body": id, "durability": "memory"});
            self.sender.say(&frame).expect("a bystander stays connected");
            let came = self.receiver.hear().expect("a bystander stays connected");
            took.push(began.elapsed());
            assert_eq!(came["id"], id);
            self.receiver.say(&json!({"type": "ack", "seq": came["seq"]})).expect("connected");
            let accepted = self.sender.hear().expect("a bystander stays connected");
            assert_eq!((&accepted["type"], &accepted["id"]), (&json!("accepted"), &json!(id)));
            thread::sleep(PAUSE);
        }
        took.sort();
        Latencies(took)
    }
}

impl Latencies {
    fn percentile(&self, percent: usize) -> Duration {
        self.0[(self.0.len() - 1) * percent / 100]
    }

    /// Compares the times for the reader of the output; they are not asserted, as other load on
    /// the machine affects them.
    pub(crate) fn ratio_to(&self, other: &Latencies) -> String {
        let ratio = |percent| {
            self.percentile(percent).as_secs_f64() / other.percentile(percent).as_secs_f64()
        };
        format!("p50 x {:.2}, p99 x {:.2}", ratio(50), ratio(99))
    }
}

impl fmt::Debug for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99] = [50, 99].map(|percent| self.percentile(percent));
        write!(f, "{} messages, p50 {p50:?}, p99 {p99:?}", self.0.len())
    }
}
