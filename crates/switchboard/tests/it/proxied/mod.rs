//! The examples for nginx and Caddy in `packaging/`, run by these programs in front of a real
//! server.
//!
//! Needs nginx and caddy, on `PATH` or in `/usr/sbin`; without them the tests fail.

mod proxy;

use std::collections::BTreeSet;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use tungstenite::{Error, Message};

use std::io::{Read, Write};

use self::proxy::{ALICE, BOB, NGINX, NGINX_SUBPATH, Proxy};
use crate::server::{Server, binary};

const GUIDE: &str = include_str!("../../../../../docs/operations.md");

/// Returns the guide's switchboard.toml for a server behind a proxy.
fn settings_of_the_guide() -> &'static str {
    let section = GUIDE.split_once("\n## Behind a proxy\n").expect("the section is there").1;
    let block = section.split_once("```toml\n").expect("it has settings").1;
    block.split_once("```").expect("the block ends").0
}

/// Starts a server with the settings of the guide and these, on a free port that also serves its
/// metrics.
fn server(settings: &[&str]) -> Server {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("switchboard.toml"), settings_of_the_guide()).unwrap();
    Server::spawn(directory, &[&["metrics_listen="], settings].concat(), |_| {})
}

#[test]
fn the_settings_of_the_guide_are_valid() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("switchboard.toml"), settings_of_the_guide()).unwrap();
    let output = binary().args(["config", "check"]).current_dir(&directory).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn devices_connect_through_every_proxy_and_send_to_each_other() {
    let server = server(&[]);
    for proxy in Proxy::all(&server) {
        let mut alice = proxy.device(ALICE, "", &[]).unwrap();
        let mut bob = proxy.device(BOB, "any/path", &[]).unwrap();
        alice.send(bob.id, "hello");
        assert_eq!(bob.hear(), format!("{}:hello", alice.id));
    }
}

#[test]
fn the_command_line_sends_by_v1_through_every_proxy() {
    let server = server(&[]);
    for proxy in Proxy::all(&server) {
        let mut device = proxy.device(ALICE, "", &[]).unwrap();
        let url = format!("wss://{}{}", proxy.address, proxy.base);
        let output = binary()
            .args(["send", "--url", &url, "--wait", "0s", "--ca"])
            .arg(proxy.authority())
            .args([&device.id.to_string(), "hello"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{url}: {output:?}");
        assert!(device.hear().ends_with(":hello"));
    }
}

fn is_full(answer: Result<crate::device::Device<crate::abuse::tls::Stream>, Error>) -> bool {
    match answer {
        Ok(_) => false,
        Err(Error::Http(answer)) if answer.status() == 503 => true,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_client_counts_by_its_own_address_whatever_it_says() {
    let server = server(&["max_connections_per_ip=1"]);
    for proxy in Proxy::all(&server) {
        let alice = proxy.device(ALICE, "", &[]).unwrap();
        assert!(is_full(proxy.device(ALICE, "", &[])));
        let bob = proxy.device(BOB, "", &[]).expect("another address has its own place");
        for forged in [
            [("x-forwarded-for", "6.6.6.6")].as_slice(),
            &[("x-forwarded-for", "6.6.6.6, 127.0.0.1")],
            &[("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "127.0.0.1")],
            &[("forwarded", "for=6.6.6.6")],
            &[("x-forwarded-for", "6.6.6.6"), ("forwarded", "for=6.6.6.6")],
            &[("x-real-ip", "6.6.6.6")],
        ] {
            assert!(is_full(proxy.device(ALICE, "", forged)), "{}{forged:?}", proxy.base);
        }
        drop((alice, bob));
        server.await_metric("switchboard_connections", |connections| connections == 0.0);
    }
}

/// Returns the paths that a page names in attributes and imports, unchanged.
fn named_in(text: &str) -> BTreeSet<&str> {
    let behind = |mark: &'static str| {
        text.split(mark).skip(1).filter_map(|rest| rest.split_once('"').map(|(name, _)| name))
    };
    let names = behind(" href=\"").chain(behind(" src=\"")).chain(behind(" from \""));
    names.filter(|name| !name.starts_with('#')).collect()
}

#[test]
fn the_page_is_there_through_every_proxy_with_all_that_it_loads() {
    let server = server(&[]);
    for proxy in Proxy::all(&server) {
        let page = proxy.get(proxy.base);
        assert!(page.contains("<title>Switchboard</title>"), "{page}");
        let mut seen = BTreeSet::new();
        let mut texts = vec![page];
        while let Some(text) = texts.pop() {
            for name in named_in(&text) {
                let name = name.strip_prefix("./").unwrap_or(name);
                let is_relative = !name.starts_with('/') && !name.contains(':');
                assert!(is_relative, "{name} is not under the page");
                if seen.insert(name.to_owned()) {
                    let answer = proxy.get(&format!("{}{name}", proxy.base));
                    assert!(answer.starts_with("HTTP/1.1 200 "), "{name}: {answer}");
                    texts.push(answer);
                }
            }
        }
        assert!(seen.len() >= 10, "{seen:?}");
    }
}

#[test]
fn the_page_below_a_path_is_found_without_the_slash() {
    let server = server(&[]);
    for proxy in Proxy::all(&server).iter().filter(|proxy| proxy.base != "/") {
        let answer = proxy.get(proxy.base.trim_end_matches('/')).to_lowercase();
        assert!(answer.starts_with("http/1.1 30"), "{answer}");
        let location = answer.split_once("\r\nlocation: ").unwrap().1.lines().next().unwrap();
        assert!(location.ends_with(proxy.base), "{location}");
    }
}

#[test]
fn no_proxy_shows_the_metrics() {
    let server = server(&[]);
    assert!(server.get("/metrics").contains("\nswitchboard_connections "));
    for proxy in Proxy::all(&server) {
        assert!(proxy.get(&format!("{}readyz", proxy.base)).starts_with("HTTP/1.1 200 "));
        let tries = ["metrics", "/metrics", "./metrics", "x/../metrics", "%6Detrics", "%2Fmetrics"];
        for path in tries.map(|path| format!("{}{path}", proxy.base)) {
            for path in [path.clone(), format!("{path}?x"), format!("{path}/")] {
                let answer = proxy.get(&path);
                assert!(!answer.contains("switchboard_connections"), "{path}: {answer}");
                assert!(!answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
            }
        }
    }
}

#[test]
fn nginx_sends_plain_http_to_https() {
    let server = server(&[]);
    let proxy = Proxy::nginx(&server, NGINX, "/");
    let mut socket = TcpStream::connect(proxy.plain).unwrap();
    socket.write_all(b"GET /x HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("\r\nLocation: https://example.org/x\r\n"), "{answer}");
}

/// nginx closes silent connections; the server's pings keep them alive. The test is the example
/// with all times a hundredth as long.
#[test]
fn idle_devices_stay_behind_nginx_as_long_as_the_server_pings() {
    let example = NGINX.replace(" 75s;", " 750ms;");
    assert_ne!(example, NGINX);
    let server = server(&["ping_interval=100ms"]);
    let proxy = Proxy::nginx(&server, &example, "/");
    let mut device = proxy.device(ALICE, "", &[]).unwrap();
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(3 * 750) {
        let heard = device.socket.read().expect("it stays connected");
        assert!(matches!(heard, Message::Ping(_)), "{heard:?}");
    }
    device.hears_nothing();
}

#[test]
fn without_pings_nginx_cuts_idle_devices_off() {
    let server = server(&["ping_interval=1h", "idle_timeout=2h"]);
    let proxy = Proxy::nginx(&server, &NGINX.replace(" 75s;", " 750ms;"), "/");
    let mut device = proxy.device(ALICE, "", &[]).unwrap();
    device.socket.read().expect_err("nginx hears nothing");
}

#[test]
fn nginx_waits_longer_than_the_server_does() {
    let defaults = switchboard::config::Config::default();
    for example in [NGINX, NGINX_SUBPATH] {
        for name in ["proxy_read_timeout", "proxy_send_timeout"] {
            let rest = example.split_once(name).expect("it is set").1;
            let seconds = rest.trim_start().split_once("s;").expect("it is in seconds").0;
            let timeout = Duration::from_secs(seconds.parse().unwrap());
            assert!(timeout > defaults.ping_interval && timeout > defaults.idle_timeout, "{name}");
        }
    }
}
