//! A log that was rolled back under devices that remember more.

use std::time::Duration;

use switchboard_broker::{Input, MessageRecord, Now, Record};
use switchboard_proto::DeviceId;
use switchboard_proto::v1::DeviceRef;

use crate::records::{ANN, BOB, MAILBOX, device, message};
use crate::rig::{NOW, Rig};

/// Returns a message from ann to bob with a receipt, which expires in a second.
fn expiring(seq: u64, id: &'static str) -> Record<'static> {
    let Record::Message(message) = message(seq, id, true) else { unreachable!() };
    Record::Message(MessageRecord { expires_at_ms: Some(NOW.wall_ms + 1_000), ..message })
}

/// Cancels message `m` for ann, and then lets everything expire; returns what she is told.
fn cancelled_and_expired(rig: &mut Rig) -> String {
    rig.hello(0, "ann", None);
    rig.sync();
    let mut frames = rig.say(0, r#"{"type":"cancel","id":"m","to":"bob"}"#).frames;
    frames.extend(rig.sync().frames);
    let Now { at, wall_ms } = rig.now;
    rig.now = Now { at: at.after(Duration::from_secs(1)), wall_ms: wall_ms + 1_000 };
    frames.extend(rig.handle(Input::Tick { may_end: true }).frames);
    (0..3).for_each(|_| frames.extend(rig.sync().frames));
    frames.into_iter().map(|(_, frame)| frame + "\n").collect()
}

/// Checks that both messages, `m` and another, count as pushed.
fn may_have_been_seen(rig: &mut Rig) {
    let told = cancelled_and_expired(rig);
    assert!(told.contains("\"too_late\""), "{told}");
    assert_eq!(told.matches("\"outcome\":\"expired\"").count(), 2, "{told}");
    assert_eq!(told.matches("\"maybe_seen\":true").count(), 2, "{told}");
}

/// After a backup was restored, and after a repair, a message that bob had read and acked since was
/// told as `expired` without `maybe_seen`, and `cancel` of it was answered `cancelled`: the records
/// that bob came were in the part that was missing.
#[test]
fn what_is_in_a_backup_may_have_been_seen_and_what_came_since_was_not() {
    let devices = [device(ANN, 0), device(BOB, 0)];
    let backup = [devices[0], devices[1], expiring(1, "m"), expiring(2, "n")];
    // The next start, and one after others have come; what is behind the backup then is a copy by
    // compaction as well.
    for since in [vec![], vec![message(3, "later", false)], vec![backup[2], backup[3]]] {
        let (mut rig, _) = Rig::restored(&backup, &since);
        may_have_been_seen(&mut rig);
    }
    let (mut rig, _) = Rig::restored(&devices, &backup[2..]);
    let told = cancelled_and_expired(&mut rig);
    assert!(told.contains("\"cancelled\"") && told.contains("\"expired\""), "{told}");
    assert!(!told.contains("maybe_seen"), "{told}");
}

/// Compaction may copy a message behind the end of the backup, and its device's record as well:
/// that one says then that the message counts as pushed.
#[test]
fn what_is_in_a_backup_may_have_been_seen_once_all_of_that_is_compacted() {
    let backup = [device(ANN, 0), device(BOB, 0), expiring(1, "m"), expiring(2, "n")];
    let (mut rig, _) = Rig::restored(&backup, &[]);
    let copied = rig.compact(&backup[1], 2);
    let [pushed_to] = copied.pushed_to[..] else { panic!("{copied:?}") };
    let copies = [backup[0], device(BOB, pushed_to), backup[2], backup[3]];
    let (mut rig, _) = Rig::replayed(&copies);
    may_have_been_seen(&mut rig);
}

/// Bob showed that the log was rolled back, and what waited was still certain not to be seen.
#[test]
fn a_device_that_has_seen_what_was_never_pushed_may_have_seen_what_waits() {
    let records = [device(ANN, 0), device(BOB, 0), expiring(1, "m"), expiring(2, "n")];
    let (mut rig, _) = Rig::replayed(&records);
    rig.hello(1, "bob", Some((MAILBOX, 9)));
    // Before its record is synced nothing is pushed.
    rig.leave(1);
    rig.sync();
    may_have_been_seen(&mut rig);
}

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
