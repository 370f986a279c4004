//! Many mailboxes: what a start costs, what an idle device costs, and everybody back at once.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::Contest;
use crate::crowd::Crowd;
use crate::server::{Contender, Server};
use crate::statistics::{Spread, spread};
use crate::table;

const MAILBOXES: usize = 100_000;
const DEVICES: usize = 10_000;
const IDLE_FROM: usize = 1_000;
/// Messages of 256 bytes in each mailbox.
const WAITING: u64 = 10;
/// So many come for their messages after a start, to see that they are there.
const ASKED: usize = 1_000;
const STARTS: usize = 3;
const MIB: f64 = (1 << 20) as f64;
/// The server is at rest when it used less CPU than this in [`REST`].
const REST_CPU_NS: u64 = 1_000_000;
const REST: Duration = Duration::from_millis(200);
const REST_TRIES: usize = 100;

/// Prints the tables.
pub(crate) fn compare(contest: &Contest) -> anyhow::Result<()> {
    starting(contest)?;
    idle(contest)?;
    back_at_once(contest)
}

fn start(contest: &Contest, contender: &Contender) -> anyhow::Result<Server> {
    contest.placement.on_all_cores(|| contender.start())?
}

/// Fills mailboxes, then starts a server on them.
fn starting(contest: &Contest) -> anyhow::Result<()> {
    let folder = contest.folder()?;
    let contender = contest.switchboard.with_data_dir(folder.path());
    let server = start(contest, &contender)?;
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
    table::row(&["the log, MiB".into(), table::thousands(log_mib), String::new()]);
    print_start(contest, &contender, "", &mut crowd)?;
    // What a server costs whose last messages are older than the window in which ids are known.
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
        let server = start(contest, contender)?;
        seconds.push(begun.elapsed().as_secs_f64());
        wait_for_rest(&server)?;
        mib.push(server.process()?.resident_bytes()? as f64 / MIB);
        if turn == STARTS - 1 && name.is_empty() {
            crowd.move_to(&server);
            // Every hundredth, from the first to the last.
            crowd.come_back((0..MAILBOXES).step_by(MAILBOXES / ASKED), WAITING)?;
            crowd.leave();
        }
    }
    let [seconds, mib] = [seconds, mib].map(|values| spread(values.into_iter()));
    let row = |what: &str, value: Spread, bound: &str| {
        table::row(&[format!("{what}{name}"), table::ranged(value), bound.into()]);
    };
    row("start, s", seconds, "< 5");
    row("resident memory, MiB", mib, "< 200");
    Ok(())
}

/// Memory of a connected v1 device, as the slope between two counts.
fn idle(contest: &Contest) -> anyhow::Result<()> {
    let columns = ["v1", "KiB at 1,000", "KiB at 10,000", "bytes/device", "at most"];
    table::head("Idle devices with mailboxes", &columns);
    let folder = contest.folder()?;
    let kept = contest.switchboard.with_data_dir(folder.path());
    for (name, contender) in [("disk", &kept), ("memory", &contest.switchboard)] {
        let server = start(contest, contender)?;
        // Once before, so that what is allocated but once is there.
        let mut early = Crowd::new(&server)?;
        early.grow_to(IDLE_FROM)?;
        early.leave();
        let mut crowd = Crowd::new(&server)?;
        let [from, to] = [IDLE_FROM, DEVICES].map(|count| {
            crowd.grow_to(count)?;
            wait_for_rest(&server)?;
            Ok::<_, anyhow::Error>(server.process()?.resident_bytes()? as f64)
        });
        let (from, to) = (from?, to?);
        let slope = (to - from) / (DEVICES - IDLE_FROM) as f64;
        let kib = |bytes: f64| table::thousands(bytes / 1024.0);
        let cells = [name.into(), kib(from), kib(to), table::thousands(slope), "1,536".into()];
        table::row(&cells);
    }
    Ok(())
}

/// Cuts all connections at once; everybody comes back at once for what was sent meanwhile.
fn back_at_once(contest: &Contest) -> anyhow::Result<()> {
    let (mut seconds, mut peaks, mut before) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let folder = contest.folder()?;
        let server = start(contest, &contest.switchboard.with_data_dir(folder.path()))?;
        let mut crowd = Crowd::new(&server)?;
        crowd.grow_to(DEVICES)?;
        crowd.leave();
        crowd.fill(WAITING)?;
        wait_for_rest(&server)?;
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

/// Waits until the server has done what it had to do.
fn wait_for_rest(server: &Server) -> anyhow::Result<()> {
    let process = server.process()?;
    for _ in 0..REST_TRIES {
        let before = process.cpu_ns()?;
        thread::sleep(REST);
        if process.cpu_ns()? - before < REST_CPU_NS {
            return Ok(());
        }
    }
    anyhow::bail!("the server does not come to rest; is there other load on it?")
}

fn folder_bytes(folder: &Path) -> anyhow::Result<u64> {
    let files = fs::read_dir(folder).with_context(|| format!("no {}", folder.display()))?;
    files.map(|file| Ok(file?.metadata()?.len())).sum()
}
