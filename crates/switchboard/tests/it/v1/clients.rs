//! The clients in `docs/clients`, run as a reader would run them, over crashes of the real
//! server.
//!
//! Needs a `python3` in `PATH` that has `websockets`; without it the test fails. Not every
//! Debian has a Node with `WebSocket`: without one, `device.mjs` is tested in Chromium only
//! (`tests/browser/clients.rs`).

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::server::{PATIENCE, Server};

/// Number of messages between two crashes.
const BURST: usize = 25;

/// Makes the command that runs a client's program, without its arguments.
type Run<'a> = &'a dyn Fn() -> Command;

/// A device on the command line, and its output so far.
struct Program {
    child: Child,
    input: Option<ChildStdin>,
    output: Receiver<Value>,
    reader: Option<JoinHandle<()>>,
}

impl Program {
    /// Starts the program and waits for its welcome; returns its id, too.
    fn start(run: Run<'_>, server: &Server, state: &str) -> (Program, String) {
        Program::start_at(&server.url(), run, server, state)
    }

    /// Like [`Program::start`], with another address.
    fn start_at(url: &str, run: Run<'_>, server: &Server, state: &str) -> (Program, String) {
        let state = server.directory.path().join(state);
        let mut child =
            run().arg(url).arg(state).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (said, output) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            for line in lines {
                // Nobody listens to the end of a program that is being stopped.
                let _ = said.send(serde_json::from_str(&line.unwrap()).unwrap());
            }
        });
        let input = child.stdin.take();
        let program = Program { child, input, output, reader: Some(reader) };
        let welcome = program.next();
        assert_eq!(welcome["type"], "welcome", "{welcome}");
        (program, welcome["device"].as_str().unwrap().to_owned())
    }

    fn next(&self) -> Value {
        self.output.recv_timeout(PATIENCE).expect("the client says more")
    }

    fn send(&mut self, to: &str, texts: &[String]) {
        let lines: String = texts.iter().map(|text| format!("{to} {text}\n")).collect();
        self.input.as_mut().unwrap().write_all(lines.as_bytes()).unwrap();
    }

    /// Stops the program by closing its input; returns its output until then.
    fn end(mut self) -> Vec<Value> {
        drop(self.input.take());
        let mut said = Vec::new();
        loop {
            match self.output.recv_timeout(PATIENCE) {
                Ok(frame) => said.push(frame),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("the client does not end"),
            }
        }
        assert!(self.child.wait().unwrap().success());
        self.reader.take().unwrap().join().unwrap();
        said
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Both fail only if the child has already exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Everything that one device received, over all its runs.
#[derive(Default)]
struct Heard {
    texts: Vec<String>,
    outcomes: HashMap<String, String>,
    accepted: usize,
}

impl Heard {
    fn take(&mut self, frame: &Value) {
        let field = |name: &str| frame[name].as_str().unwrap().to_owned();
        match frame["type"].as_str().unwrap() {
            "welcome" => assert_eq!(frame["resumed"], true, "{frame}"),
            "message" => self.texts.push(field("body")),
            "accepted" => self.accepted += 1,
            "outcome" => {
                let before = self.outcomes.insert(field("id"), field("outcome"));
                assert_eq!(before, None, "{frame}");
            }
            _ => panic!("{frame}"),
        }
    }

    /// Reads until `texts` messages and `outcomes` outcomes have arrived.
    fn until(&mut self, program: &Program, texts: usize, outcomes: usize) {
        while self.texts.len() < texts || self.outcomes.len() < outcomes {
            self.take(&program.next());
        }
    }
}

/// Lets two devices send to each other while the server is killed twice; then one leaves and
/// comes back.
fn nothing_is_lost_or_doubled(mut server: Server, one: Run<'_>, other: Run<'_>) {
    let (mut a, a_id) = Program::start(one, &server, "a.json");
    let (mut b, b_id) = Program::start(other, &server, "b.json");
    let texts: Vec<String> = (0..5 * BURST).map(|n| format!("text {n}")).collect();
    let mut bursts = texts.chunks(BURST);
    let (mut heard_by_a, mut heard_by_b) = (Heard::default(), Heard::default());
    for _ in 0..2 {
        for _ in 0..2 {
            let burst = bursts.next().unwrap();
            a.send(&b_id, burst);
            b.send(&a_id, burst);
        }
        // Some messages have arrived without their acks on disk, some are under way, and some
        // are not sent yet.
        let heard = heard_by_b.texts.len() + BURST / 2;
        heard_by_b.until(&b, heard, 0);
        server.restart_in_place();
    }
    heard_by_a.until(&a, 4 * BURST, 4 * BURST);
    heard_by_b.until(&b, 4 * BURST, 4 * BURST);
    b.end().iter().for_each(|frame| heard_by_b.take(frame));
    a.send(&b_id, bursts.next().unwrap());
    let (b, back) = Program::start(other, &server, "b.json");
    assert_eq!(back, b_id);
    heard_by_b.until(&b, texts.len(), 4 * BURST);
    heard_by_a.until(&a, 4 * BURST, texts.len());
    b.end().iter().for_each(|frame| heard_by_b.take(frame));
    a.end().iter().for_each(|frame| heard_by_a.take(frame));
    assert_eq!(heard_by_b.texts, texts);
    assert_eq!(heard_by_a.texts, texts[..4 * BURST]);
    for (heard, sent) in [(heard_by_a, texts.len()), (heard_by_b, 4 * BURST)] {
        assert_eq!((heard.accepted, heard.outcomes.len()), (sent, sent));
        assert!(heard.outcomes.values().all(|outcome| outcome == "delivered"));
    }
}

fn file(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/clients")).join(name)
}

/// Returns the first of these programs in `PATH` that runs this line of its language without an
/// error.
fn find(name: &str, arguments: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|program| {
        let mut command = Command::new(program);
        let ran = command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
        ran.is_ok_and(|status| status.success())
    })
}

#[test]
fn the_python_client_loses_and_doubles_nothing_over_crashes() {
    let python = find("python3", &["-c", "import websockets; websockets.connect"]).expect(
        "a `python3` in PATH that has `websockets` 10.4 or later runs docs/clients: install it \
         (Debian: apt-get install python3-websockets)",
    );
    let run = || {
        let mut command = Command::new(&python);
        // No bytecode beside the sources.
        command.args(["-B".as_ref(), file("cli.py").as_os_str()]);
        // The library obeys the machine's proxy settings.
        command.env("no_proxy", "*");
        command
    };
    nothing_is_lost_or_doubled(Server::alone_on("127.0.0.2"), &run, &run);
}

/// Returns the command for `cli.mjs`, if there is a Node that can run it.
fn javascript() -> Option<impl Fn() -> Command> {
    // Node 20 has `WebSocket` behind a flag, later versions without one, and these may drop the
    // flag.
    let flags: [&[&str]; 2] = [&[], &["--experimental-websocket"]];
    let node = |flags: &[&str]| find("node", &[flags, &["--eval", "WebSocket"]].concat());
    let found = flags.into_iter().find_map(|flags| Some((node(flags)?, flags)));
    if found.is_none() {
        println!("no `node` in PATH has WebSocket (20.10 or later has): Chromium alone tests it");
    }
    found.map(|(node, flags)| {
        move || {
            let mut command = Command::new(&node);
            command.args(flags).arg(file("cli.mjs"));
            command
        }
    })
}

#[test]
fn the_javascript_client_loses_and_doubles_nothing_over_crashes() {
    let Some(run) = javascript() else { return };
    nothing_is_lost_or_doubled(Server::alone_on("127.0.0.3"), &run, &run);
}

/// Relays two connections to a server; reports each, and forwards the bytes of both sides.
fn two_connections(front: TcpListener, server: SocketAddr, taken: &Sender<()>) {
    let copy = |mut from: TcpStream, mut to: TcpStream| {
        // Either side may end the connection in any way; the other is told.
        move || drop((std::io::copy(&mut from, &mut to), to.shutdown(Shutdown::Write)))
    };
    std::thread::scope(|scope| {
        for client in front.incoming().take(2) {
            let (client, server) = (client.unwrap(), TcpStream::connect(server).unwrap());
            scope.spawn(copy(client.try_clone().unwrap(), server.try_clone().unwrap()));
            scope.spawn(copy(server, client));
            taken.send(()).unwrap();
        }
    });
}

/// A page sees no pings. The first `ping_every_ms` once counted only from the second frame on.
#[test]
fn the_javascript_client_leaves_a_server_that_is_silent() {
    let Some(run) = javascript() else { return };
    let server = Server::with(&["ping_interval=100ms"]);
    let front = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/", front.local_addr().unwrap());
    let (taken, connections) = mpsc::channel();
    let address = server.address;
    let relay = std::thread::spawn(move || two_connections(front, address, &taken));
    let (program, id) = Program::start_at(&url, &run, &server, "state.json");
    connections.recv_timeout(PATIENCE).unwrap();
    server.freeze();
    connections.recv_timeout(PATIENCE).expect("it gives the connection up");
    server.signal(Signal::CONT);
    let welcome = program.next();
    assert_eq!((&welcome["device"], &welcome["resumed"]), (&json!(id), &json!(true)));
    program.end();
    drop(server);
    relay.join().unwrap();
}
