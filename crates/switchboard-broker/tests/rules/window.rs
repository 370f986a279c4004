//! The window in which an id is known as a retry: what it may hold.

use switchboard_broker::Limits;

use crate::rig::Rig;

/// Sends from one of two devices to the other; gives whether the answer says that it is a retry.
fn send(rig: &mut Rig, from: u32, id: u32) -> bool {
    let to = ["ann", "bob"][1 - from as usize];
    let frame = format!(r#"{{"type":"send","id":"m-{id}","to":"{to}","body":{id}}}"#);
    let done = rig.say(from, &frame);
    let (_, answer) = done.frames.iter().find(|(conn, _)| *conn == from).expect("an answer");
    assert!(answer.contains("\"accepted\""), "{answer}");
    answer.contains("\"duplicate\":true")
}

/// It once held as many as were sent between two ticks, and a server without deadlines never ticks.
#[test]
fn no_more_ids_are_kept_than_may_be_also_when_no_time_passes() {
    let mut rig = Rig::new(Limits { dedup_ids_max: 10, ..Limits::default() }, false);
    rig.hello(0, "ann", None);
    rig.hello(1, "bob", None);
    for id in 0..100 {
        assert!(!send(&mut rig, id % 2, id));
        assert!(rig.broker.stats().sent_ids <= 10);
    }
    assert!(send(&mut rig, 1, 99), "the newest are kept");
    assert!(send(&mut rig, 1, 93));
    assert!(!send(&mut rig, 0, 88), "the oldest are not");
}
