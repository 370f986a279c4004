//! Presence: devices that watch another are told that it comes and goes.

use switchboard_broker::Limits;

use crate::rig::{Done, Rig};

fn told(done: &Done, conn: u32) -> Vec<String> {
    let frames = done.frames.iter().filter(|(to, _)| *to == conn);
    let presences = frames.filter(|(_, frame)| frame.contains("\"presence\""));
    let device = |frame: &str| frame.split('"').nth(7).unwrap_or_default().to_owned();
    presences.map(|(_, frame)| device(frame)).collect()
}

fn watch(rig: &mut Rig, verb: &str, devices: &str) -> Vec<String> {
    let done = rig.say(0, &format!(r#"{{"type":"{verb}","id":"w","devices":{devices}}}"#));
    told(&done, 0)
}

#[test]
fn a_device_is_watched_once_however_often_it_is_named() {
    let mut rig = Rig::new(Limits::default(), false);
    rig.hello(0, "ann", None);
    assert_eq!(watch(&mut rig, "watch", r#"["cleo","bob","cleo","5"]"#), ["cleo", "bob", "5"]);
    assert_eq!(watch(&mut rig, "watch", r#"["bob","5","dora"]"#), ["dora"]);
    assert_eq!(told(&rig.hello(1, "bob", None), 0), ["bob"]);
    assert_eq!(watch(&mut rig, "unwatch", r#"["bob","bob","nobody"]"#), [""; 0]);
    assert_eq!(told(&rig.leave(1), 0), [""; 0]);
    assert_eq!(told(&rig.hello(2, "cleo", None), 0), ["cleo"]);
    rig.say(0, r#"{"type":"unwatch","id":"w"}"#);
    assert_eq!(told(&rig.leave(2), 0), [""; 0]);
}

/// It took comparisons by the square of the number of devices named.
#[test]
fn watching_as_many_as_may_be_again_tells_nothing() {
    let mut rig = Rig::new(Limits::default(), false);
    rig.hello(0, "ann", None);
    let devices: Vec<String> = (0..1_000).map(|at| format!("\"{at}\"")).collect();
    let devices = format!("[{}]", devices.join(","));
    assert_eq!(watch(&mut rig, "watch", &devices).len(), 1_000);
    assert_eq!(watch(&mut rig, "watch", &devices), [""; 0]);
    let done = rig.say(0, r#"{"type":"watch","id":"w","devices":["1000"]}"#);
    assert!(done.told(0).contains("\"bad_request\""), "{done:?}");
}
