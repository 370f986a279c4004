//! Memory per idle connection.

use std::fs;

use switchboard::bench::idle::{self, Options};
use switchboard::bench::throughput::Protocol;

use crate::Contest;
use crate::server::Contender;
use crate::table;

/// Prints a row per server, and one for Switchboard over TLS.
pub(crate) fn compare(contest: &Contest) -> anyhow::Result<()> {
    let columns = ["server", "KiB at 1,000", "KiB at 10,000", "bytes/connection", "at most"];
    table::head("Idle connections", &columns);
    measure(contest, "reference", &contest.reference, "")?;
    measure(contest, "Switchboard", &contest.switchboard, "512")?;
    let folder = tempfile::tempdir()?;
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    fs::write(&cert, pair.cert.pem())?;
    fs::write(&key, pair.signing_key.serialize_pem())?;
    let over_tls = contest.switchboard.with_tls(&cert, &key);
    measure(contest, "Switchboard, TLS", &over_tls, "24,576")
}

fn measure(
    contest: &Contest,
    name: &str,
    contender: &Contender,
    bound: &str,
) -> anyhow::Result<()> {
    let options = Options { from: 1_000, connections: 10_000 };
    let server = contest.placement.on_server_core(|| contender.start())??;
    let idle = idle::measure(server.target(), Some(server.process()?), &options, Protocol::Text)?;
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
