//! Configuration of a world, drawn at random.

use std::time::Duration;

use switchboard_broker::Limits;

use crate::ledger::Window;
use crate::random::Random;

#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) shards_max: usize,
    pub(crate) named: usize,
    pub(crate) anonymous: usize,
    /// Ephemeral devices, which have names, too.
    pub(crate) ephemeral: usize,
    pub(crate) texts: usize,
    pub(crate) is_durable: bool,
    /// Number of steps in the schedule.
    pub(crate) steps: usize,
    /// True if the wall clock jumps.
    pub(crate) has_jumps: bool,
    /// True if devices end within the schedule.
    pub(crate) has_ends: bool,
    pub(crate) has_failures: bool,
    pub(crate) has_restores: bool,
    /// True if one device sends far more than the others.
    pub(crate) has_floods: bool,
    /// True if a sync may take long, while everything else goes on.
    pub(crate) has_hangs: bool,
    /// Most unknown devices that connect, each once.
    pub(crate) strangers_max: usize,
    pub(crate) crash_weight: usize,
    pub(crate) stop_weight: usize,
    pub(crate) refuse_weight: usize,
    /// Weights of the steps that carry envelopes, submit, sync and tell appends, tell the time, and
    /// compact the log: where one is slow, others overtake it.
    pub(crate) paces: [usize; 6],
    pub(crate) limits: Limits,
}

impl Config {
    pub(crate) fn drawn(random: &mut Random) -> Config {
        let has_ends = random.percent(30);
        let device_ttl = if has_ends { 100 } else { 1_000_000_000 };
        let device_ttl = Duration::from_secs(device_ttl);
        let has_floods = random.percent(20);
        Config {
            shards_max: 1 + random.below(4),
            named: 1 + usize::from(has_floods) + random.below(2),
            anonymous: random.below(3),
            ephemeral: random.pick(&[0, 0, 1, 2]),
            texts: usize::from(has_floods) + random.below(2),
            is_durable: random.percent(92),
            steps: 50 + random.below(350),
            has_jumps: random.percent(20),
            has_ends,
            has_failures: random.percent(40),
            has_restores: random.percent(15),
            has_floods,
            has_hangs: random.percent(20),
            strangers_max: random.pick(&[0, 0, 0, 3, 8]),
            crash_weight: random.pick(&[0, 1, 4]),
            stop_weight: random.pick(&[0, 1, 3]),
            refuse_weight: random.pick(&[1, 2, 10]),
            paces: [25, 14, 12, 12, 10, 12].map(|pace| {
                let factor = random.pick(&[5, 30, 100, 300]);
                1 + pace * factor / 100
            }),
            limits: Limits {
                in_flight_max: random.pick(&[1, 3, 100]),
                mailbox_messages_max: random.pick(&[2, 6, 24, 50]),
                mailbox_bytes_max: random.pick(&[200, 100_000]),
                mailbox_sender_share: random.pick(&[50, 50, 10, 100]),
                outcomes_max: random.pick(&[2, 6, 50]),
                dedup_window: Duration::from_secs(40),
                dedup_ids_per_device_max: random.pick(&[5, 1_000]),
                dedup_ids_max: if has_floods { 40 } else { random.pick(&[12, 5_000]) },
                devices_max: random.pick(&[2, 3, 1_000, 1_000]),
                device_ttl,
                named_device_ttl: random.percent(50).then_some(device_ttl),
                push_bytes_max: random.pick(&[1, 300, 100_000]),
                memory_messages_max_bytes: random.pick(&[1 << 30, 1 << 30, 2_000]),
                store_bytes_max: random.pick(&[10 << 30, 10 << 30, 2_000]),
                endings_at_once: random.pick(&[1, 2, 2_048]),
                ..Limits::default()
            },
        }
    }

    /// Returns the window on which a retry can rely.
    pub(crate) fn window(&self) -> Window {
        let limits = &self.limits;
        Window {
            ms: limits.dedup_window.as_millis() as u64,
            ids_of_one: limits.dedup_ids_per_device_max,
            few: self.few(),
            ids: limits.dedup_ids_max,
        }
    }

    /// Ids of a device that others cannot push out, however many they send.
    ///
    /// One of those that must give way has at least its part of half of all, and loses ids only
    /// while it is in the highest class: while it has more than three eighths of what the
    /// fullest has.
    fn few(&self) -> usize {
        3 * self.limits.dedup_ids_max / (16 * (self.named + self.anonymous + self.ephemeral))
    }
}
