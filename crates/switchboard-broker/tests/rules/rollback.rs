//! A log that was rolled back under devices that remember more.

use switchboard_proto::DeviceId;
use switchboard_proto::v1::DeviceRef;

use crate::records::{BOB, MAILBOX, device, message};
use crate::rig::Rig;

/// A backup was restored over a log that had gone on: bob had acked up to 50, the backup knew of
/// pushes up to 2. His next messages were numbered from 3, and he skipped them as seen; 48 senders
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
        // Its `last_seq` is about messages that this store does not know, and acks nothing.
        let pending = if is_resumed { 2 - seen } else { 2 };
        assert!(welcome.contains(&format!("\"pending\":{pending},")), "{seen}: {welcome}");
    }
}

/// A directory that was rolled back in place cannot be told from the one that it was. A device
/// that had got its id in between came back with its token, and the next stranger was given the
/// same id: it took the device over and read its messages.
#[test]
fn a_device_whose_id_was_never_given_shows_that_ids_were_lost() {
    let (mut rig, _) = Rig::replayed(&[]);
    let lost = DeviceId::new(rig.directory.next_id() + 1);
    rig.hello_as(1, DeviceRef::Number(lost), None);
    assert!(rig.directory.new_id() > lost);
    assert!(rig.directory.next_id() < 1 << 53, "JavaScript reads it as a number");
}
