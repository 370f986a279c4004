//! Memory per idle connection, as the slope between two counts.

use std::fs;

use switchboard::bench::idle::{self, IdleOptions};
use switchboard::bench::throughput::Protocol;

use crate::Contest;
use crate::placement::Cores;
use crate::server::Server;
use crate::table;

/// Prints one row per server, and one for Switchboard over TLS.
pub(crate) fn compare(contest: &Contest) -> anyhow::Result<()> {
    let columns = ["server", "KiB at 1,000", "KiB at 10,000", "bytes/connection", "at most"];
    table::head("Idle connections", &columns);
    let folder = tempfile::tempdir()?;
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    fs::write(&cert, pair.cert.pem())?;
    fs::write(&key, pair.signing_key.serialize_pem())?;
    let over_tls = contest.switchboard.with_tls(&cert, &key);
    for (name, contender, bound) in [
        ("reference", &contest.reference, ""),
        ("Switchboard", &contest.switchboard, "512"),
        ("Switchboard, TLS", &over_tls, "24,576"),
    ] {
        row(name, &contest.start(Cores::First, contender)?, Protocol::Text, bound)?;
    }
    Ok(())
}

/// Prints one row for v1 devices with mailboxes on disk, and one with mailboxes in memory.
pub(crate) fn compare_v1(contest: &Contest) -> anyhow::Result<()> {
    let columns = ["v1", "KiB at 1,000", "KiB at 10,000", "bytes/device", "at most"];
    table::head("Idle devices with mailboxes", &columns);
    let folder = contest.folder()?;
    let on_disk = contest.switchboard.with_data_dir(folder.path());
    for (name, contender) in [("disk", &on_disk), ("memory", &contest.switchboard)] {
        row(name, &contest.start(Cores::All, contender)?, Protocol::V1, "1,536")?;
    }
    Ok(())
}

fn row(name: &str, server: &Server, protocol: Protocol, bound: &str) -> anyhow::Result<()> {
    let options = IdleOptions { from: 1_000, connections: 10_000 };
    let idle = idle::measure(server.target(), Some(server.process()?), &options, protocol)?;
    let kib = |bytes: u64| table::thousands(bytes as f64 / 1024.0);
    table::row(&[
        name.into(),
        kib(idle.from_resident_bytes),
        kib(idle.resident_bytes),
        table::thousands(idle.bytes_per_connection),
        bound.into(),
    ]);
    Ok(())
}
