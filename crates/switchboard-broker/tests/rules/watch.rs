//! Presence: devices that watch another are told that it comes and goes.

use std::collections::BTreeMap;
use std::time::Duration;

use switchboard_broker::{Input, Limits};

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

/// The presence frames of a device that each connection got, the last one and how many.
fn count(done: &Done, device: &str, told: &mut BTreeMap<u32, (bool, usize)>) -> usize {
    let named = format!("\"device\":\"{device}\"");
    let frames = done
        .frames
        .iter()
        .filter(|(_, frame)| frame.contains("\"presence\"") && frame.contains(&named));
    let mut count = 0;
    for (conn, frame) in frames {
        let (online, times) = told.entry(*conn).or_default();
        (*online, *times) = (frame.contains("\"online\":true"), *times + 1);
        count += 1;
    }
    count
}

/// Lets a millisecond pass.
fn tick(rig: &mut Rig) -> Done {
    rig.now.at = rig.now.at.after(Duration::from_millis(1));
    assert!(rig.broker.is_due(rig.now.at));
    rig.handle(Input::Tick { may_end: true })
}

fn watched_by(watchers: u32, limits: Limits) -> Rig {
    let mut rig = Rig::new(limits, false);
    for conn in 0..watchers {
        rig.hello(conn, &format!("w{conn}"), None);
        rig.say(conn, r#"{"type":"watch","id":"w","devices":["bob"]}"#);
    }
    rig
}

/// One device that came and went ten times a second with 5,000 watchers took all of two shards.
#[test]
fn many_watchers_are_told_at_a_rate_and_the_latest_state_alone() {
    let (watchers, bob) = (1_000, 5_000);
    let mut rig = watched_by(watchers, Limits::default());
    let mut told = BTreeMap::new();
    assert_eq!(count(&rig.hello(bob, "bob", None), "bob", &mut told), 256);
    for _ in 0..10 {
        assert_eq!(count(&tick(&mut rig), "bob", &mut told), 16);
    }
    // It goes when 416 of them have heard that it came.
    assert_eq!(count(&rig.leave(bob), "bob", &mut told), 0);
    while rig.broker.next_tick().is_some_and(|at| at <= rig.now.at.after(Duration::from_millis(1)))
    {
        assert!(count(&tick(&mut rig), "bob", &mut told) <= 16);
    }
    assert_eq!(told.len(), watchers as usize);
    assert!(told.values().all(|&(online, _)| !online));
    let times = told.values().map(|&(_, times)| times);
    assert!(times.sum::<usize>() <= 1_416 + 16, "nobody is told what is over");
    rig.broker.audit(2_000, 2_000).unwrap();
}

#[test]
fn a_device_that_comes_and_goes_all_the_time_delays_neither_its_last_watcher_nor_another_device() {
    let (watchers, bob, ann) = (1_000, 5_000, 5_001);
    let mut rig = watched_by(watchers, Limits::default());
    rig.say(999, r#"{"type":"watch","id":"w","devices":["ann"]}"#);
    let (mut of_bob, mut of_ann) = (BTreeMap::new(), BTreeMap::new());
    for _ in 0..100 {
        count(&rig.hello(bob, "bob", None), "bob", &mut of_bob);
        count(&rig.leave(bob), "bob", &mut of_bob);
        count(&tick(&mut rig), "bob", &mut of_bob);
    }
    assert_eq!(of_bob.len(), watchers as usize, "all have heard of it");
    let times: Vec<usize> = of_bob.values().map(|&(_, times)| times).collect();
    assert!(times.iter().max() <= Some(&(times.iter().min().unwrap() + 2)), "in turn");
    rig.hello(ann, "ann", None);
    let mut waited = 0;
    while of_ann.is_empty() {
        count(&tick(&mut rig), "ann", &mut of_ann);
        waited += 1;
    }
    assert!(waited <= 3, "{waited} ms");
    rig.broker.audit(2_000, 2_000).unwrap();
}
