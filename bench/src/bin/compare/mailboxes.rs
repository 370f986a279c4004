//! Many mailboxes: cost of a start, cost of an idle device, and everybody back at once.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use switchboard::bench::idle::wait_for_rest;

use crate::Contest;
use crate::crowd::Crowd;
use crate::placement::Cores;
use crate::server::Contender;
use crate::statistics::spread;
use crate::{idle, table};

const MAILBOXES: usize = 100_000;
const DEVICES: usize = 10_000;
/// Messages of 256 bytes in each mailbox.
const WAITING: u64 = 10;
/// Number of devices that come for their messages after a start, to check that they are there.
const ASKED: usize = 1_000;
const STARTS: usize = 3;
const MIB: f64 = (1 << 20) as f64;

/// Prints the tables.
pub(crate) fn compare(contest: &Contest) -> anyhow::Result<()> {
    starting(contest)?;
    idle::compare_v1(contest)?;
    back_at_once(contest)
}

/// Fills mailboxes, then measures starts of a server on them.
fn starting(contest: &Contest) -> anyhow::Result<()> {
    let folder = contest.folder()?;
    let contender = contest.switchboard.with_data_dir(folder.path());
    let server = contest.start(Cores::All, &contender)?;
    let mut crowd = Crowd::new(&server)?;
    while crowd.members.len() < MAILBOXES {
        crowd.grow_to(MAILBOXES.min(crowd.members.len() + DEVICES))?;
        crowd.leave();
    }
    crowd.fill(WAITING)?;
    server.terminate()?;
    let columns = ["100,000 mailboxes x 10 messages x 256 B", "", "bound"];
    table::head("Starting with full mailboxes", &columns);
    let log_mib = folder_bytes(&folder.path().join("log"))? as f64 / MIB;
    table::bounded("the log, MiB", table::thousands(log_mib), "");
    print_start(contest, &contender, "", &mut crowd)?;
    // Once more with the last messages older than the window in which ids are remembered.
    let later = contender.with("SWITCHBOARD_DEDUP_WINDOW", "1s");
    print_start(contest, &later, ", their ids forgotten", &mut crowd)
}

fn print_start(
    contest: &Contest,
    contender: &Contender,
    name: &str,
    crowd: &mut Crowd,
) -> anyhow::Result<()> {
    let (mut seconds, mut mib) = (Vec::new(), Vec::new());
    for turn in 0..STARTS {
        let begun = Instant::now();
        let server = contest.start(Cores::All, contender)?;
        seconds.push(begun.elapsed().as_secs_f64());
        wait_for_rest(server.process()?)?;
        mib.push(server.process()?.resident_bytes()? as f64 / MIB);
        if turn == STARTS - 1 && name.is_empty() {
            crowd.move_to(&server);
            // Every hundredth, from the first to the last.
            crowd.come_back((0..MAILBOXES).step_by(MAILBOXES / ASKED), WAITING)?;
            crowd.leave();
        }
    }
    let [seconds, mib] = [seconds, mib].map(|values| spread(values.into_iter()));
    table::bounded(&format!("start, s{name}"), table::ranged(seconds), "< 5");
    table::bounded(&format!("resident memory, MiB{name}"), table::ranged(mib), "< 200");
    Ok(())
}

/// Closes all connections at once; then all devices come back at once for messages sent
/// meanwhile.
fn back_at_once(contest: &Contest) -> anyhow::Result<()> {
    let (mut seconds, mut peaks, mut before) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let folder = contest.folder()?;
        let server =
            contest.start(Cores::All, &contest.switchboard.with_data_dir(folder.path()))?;
        let mut crowd = Crowd::new(&server)?;
        crowd.grow_to(DEVICES)?;
        crowd.leave();
        crowd.fill(WAITING)?;
        wait_for_rest(server.process()?)?;
        before.push(server.process()?.resident_bytes()? as f64 / MIB);
        server.forget_peak()?;
        seconds.push(crowd.come_back(0..DEVICES, WAITING)?.as_secs_f64());
        peaks.push(server.peak_bytes()? as f64 / MIB);
    }
    let columns = ["10,000 devices cut at once, each with 10 messages x 256 B waiting", ""];
    table::head("Everybody back at once", &columns);
    let row = |name: &str, values: Vec<f64>| {
        table::row(&[name.into(), table::ranged(spread(values.into_iter()))]);
    };
    row("from the first connect until all have all, s", seconds);
    row("resident memory before, MiB", before);
    row("at its peak, MiB", peaks);
    Ok(())
}

fn folder_bytes(folder: &Path) -> anyhow::Result<u64> {
    let files = fs::read_dir(folder).with_context(|| format!("no {}", folder.display()))?;
    files.map(|file| Ok(file?.metadata()?.len())).sum()
}
