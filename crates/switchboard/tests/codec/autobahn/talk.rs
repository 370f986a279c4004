//! One conversation with the echo server, from the handshake to the end of the TCP connection.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use switchboard::ws::Role;

use super::{close, echo};
use crate::stream::{Said, decode};

/// Nothing here takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// A port of the system's choice; messages up to 16 MiB; no compression.
pub(crate) const OPTIONS: echo::Options = echo::Options {
    listen: SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
    max_message_bytes: 16 << 20,
    compression: false,
    context_takeover: false,
};

/// What the echo server said until it ended the connection.
pub(crate) struct Talk {
    /// Its answer to the handshake.
    pub(crate) head: String,
    /// All its frames, as bytes.
    pub(crate) stream: Vec<u8>,
    /// The same, understood; without compression only.
    pub(crate) said: Vec<Said>,
}

impl Talk {
    /// Says it all at once.
    pub(crate) fn plain(input: &[u8]) -> Talk {
        Talk::chopped(input, usize::MAX)
    }

    /// Says it in writes of this many bytes.
    pub(crate) fn chopped(input: &[u8], write_len: usize) -> Talk {
        let mut talk = Talk::with(OPTIONS, "", input, write_len);
        let outcome = decode(Role::Client, OPTIONS.max_message_bytes, &talk.stream);
        assert_eq!(outcome.violation, None, "the server broke a rule");
        assert_eq!(outcome.consumed, talk.stream.len(), "the server spoke after its close");
        talk.said = outcome.said;
        talk
    }

    /// Offers extensions, too; what was said is left as bytes.
    pub(crate) fn with(
        options: echo::Options,
        extensions: &str,
        input: &[u8],
        write_len: usize,
    ) -> Talk {
        serve_with(options, |mut socket| {
            socket.write_all(request(extensions).as_bytes()).expect("the server reads");
            let head = read_head(&mut socket);
            let mut reading = socket.try_clone().expect("a socket can be shared");
            // Read beside writing: an echo that nobody reads would hold up the server.
            let reader = thread::spawn(move || {
                let mut stream = Vec::new();
                reading.read_to_end(&mut stream).expect("the server ends the connection in time");
                stream
            });
            for write in input.chunks(write_len.min(input.len().max(1))) {
                socket.write_all(write).expect("the server reads to the end");
            }
            let stream = reader.join().expect("reading does not panic");
            Talk { head, stream, said: Vec::new() }
        })
    }
}

/// Serves one client; the server's end is awaited and must be clean.
pub(crate) fn serve_with<T>(options: echo::Options, client: impl FnOnce(TcpStream) -> T) -> T {
    let listener = TcpListener::bind(options.listen).expect("loopback has free ports");
    let address = listener.local_addr().expect("it is bound");
    thread::scope(|scope| {
        let server = scope.spawn(move || echo::serve(listener.accept()?.0, options));
        let socket = TcpStream::connect(address).expect("the server listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("the time is not zero");
        socket.set_nodelay(true).expect("it is a TCP socket");
        let outcome = client(socket);
        server.join().expect("the server does not panic").expect("the connection ends well");
        outcome
    })
}

fn request(extensions: &str) -> String {
    let extensions = match extensions {
        "" => String::new(),
        offers => format!("Sec-WebSocket-Extensions: {offers}\r\n"),
    };
    format!(
        "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
         {extensions}\r\n"
    )
}

fn read_head(socket: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        socket.read_exact(&mut byte).expect("the server answers the handshake");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("the answer is text");
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    head
}

/// The whole answer to a request that is no acceptable handshake.
pub(crate) fn refused(request: &str) -> String {
    serve_with(OPTIONS, |mut socket| {
        socket.write_all(request.as_bytes()).expect("the server reads");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).expect("the server answers and ends");
        answer
    })
}

/// The frames are answered by these, and a close frame after them by its like.
pub(crate) fn says_back(frames: &[Vec<u8>], expected: &[Said]) {
    check(frames, expected, usize::MAX);
}

/// As [`says_back`], also when the frames come in small pieces.
pub(crate) fn says_back_chopped(frames: &[Vec<u8>], expected: &[Said]) {
    check(frames, expected, usize::MAX);
    let len: usize = frames.iter().map(Vec::len).sum();
    check(frames, expected, if len < 500 { 1 } else { 997 });
}

fn check(frames: &[Vec<u8>], expected: &[Said], write_len: usize) {
    let input = [frames.concat(), close(1000)].concat();
    let talk = Talk::chopped(&input, write_len);
    let (last, echoed) = talk.said.split_last().expect("the close is answered");
    assert_eq!(*last, Said::close(1000));
    // Not `assert_eq`, which would print megabytes.
    assert!(echoed == expected, "{} events, not {}", echoed.len(), expected.len());
}

/// The frames are answered by these, then by a close frame with this code, though the client says
/// no more.
pub(crate) fn fails(frames: &[Vec<u8>], expected: &[Said], code: u16) {
    let talk = Talk::plain(&frames.concat());
    let (last, echoed) = talk.said.split_last().expect("a failure is told");
    assert_eq!(echoed, expected);
    match last {
        Said::Close(Some(frame)) => assert_eq!(frame.code.0, code, "{}", frame.reason),
        other => panic!("{other:?} is no close with a code"),
    }
}
