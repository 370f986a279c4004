//! The reference: a bare relay that shows the minimum cost of the job. It is a yardstick for
//! Switchboard, not a server to use.
//!
//! It does only what no relay can leave out (handshake, frames, routing by id), on one thread
//! with one epoll loop: no limits, no timers, no metrics, no deduplication window, no UTF-8
//! check, no fragments. A peer can make it use any amount of memory.

mod frame;
mod handshake;
mod relay;

use std::net::SocketAddr;

use clap::Parser;

use crate::relay::Relay;

/// A bare WebSocket relay: a yardstick for Switchboard, not a server to use.
#[derive(Parser)]
struct Args {
    /// Address and port to listen on; port 0 takes a free one, which is printed
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
}

fn main() -> anyhow::Result<()> {
    let mut relay = Relay::bind(Args::parse().listen)?;
    println!("listening on {}", relay.address()?);
    relay.run()?;
    Ok(())
}
