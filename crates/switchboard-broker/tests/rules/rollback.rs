//! A log that was rolled back under devices that remember more.

use crate::records::{BOB, MAILBOX, device, message};
use crate::rig::Rig;

/// A backup was restored over a log that had gone on: bob had acked up to 50, the backup knew of a
/// push up to 2. His next messages were numbered from 3, and he skipped them as seen; 48 senders
/// were told `delivered`.
#[test]
fn a_device_that_has_seen_what_was_never_pushed_gets_a_new_mailbox() {
    for (seen, is_resumed) in [(0, true), (1, true), (2, true), (3, false), (50, false)] {
        let records = [device(BOB, 2), message(1, "a", false), message(2, "b", false)];
        let (mut rig, _) = Rig::replayed(&records);
        let mut done = rig.hello(2, "bob", Some((MAILBOX, seen)));
        let synced = rig.sync();
        done.frames.extend(synced.frames);
        let (_, welcome) = &done.frames[0];
        assert!(welcome.contains(&format!("\"resumed\":{is_resumed}")), "{seen}: {welcome}");
        let has_name = welcome.contains(&format!("{MAILBOX:016x}"));
        assert_eq!(has_name, is_resumed, "{seen}: {welcome}");
        // What it says it has seen is about another history, and acks nothing.
        let pending = if is_resumed { 2 - seen } else { 2 };
        assert!(welcome.contains(&format!("\"pending\":{pending},")), "{seen}: {welcome}");
    }
}
