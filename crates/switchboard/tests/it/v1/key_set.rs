//! A key set at a URL: fetched at the start, and again for a token whose key is not in it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::{Value, json};
use tungstenite::Message;

use super::client::V1;
use super::identity::Signer;
use crate::server::{PATIENCE, Server};

/// A web server that answers every request with the current key set.
struct Host {
    address: SocketAddr,
    keys: Arc<Mutex<Value>>,
    /// Receives a message for each request that was answered.
    answered: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

/// Sent instead of a request, it stops the host.
const END: &[u8] = b"END\r\n\r\n";

impl Host {
    fn new(keys: &[&Signer]) -> Host {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let keys = Arc::new(Mutex::new(set(keys)));
        let (say, answered) = channel();
        let answer = Arc::clone(&keys);
        let thread = std::thread::spawn(move || {
            for socket in listener.incoming() {
                let mut socket = socket.unwrap();
                if request(&mut socket) == END {
                    return;
                }
                let body = answer.lock().unwrap().to_string();
                let len = body.len();
                write!(socket, "HTTP/1.1 200 OK\r\ncontent-length: {len}\r\n\r\n{body}").unwrap();
                // Nobody listens any more once the test has failed.
                say.send(()).ok();
            }
        });
        Host { address, keys, answered, thread: Some(thread) }
    }

    fn rotate(&self, keys: &[&Signer]) {
        *self.keys.lock().unwrap() = set(keys);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        TcpStream::connect(self.address).unwrap().write_all(END).unwrap();
        self.thread.take().expect("it is taken once").join().unwrap();
    }
}

fn request(socket: &mut TcpStream) -> Vec<u8> {
    let (mut request, mut byte) = (Vec::new(), [0]);
    while !request.ends_with(b"\r\n\r\n") {
        socket.read_exact(&mut byte).unwrap();
        request.extend(byte);
    }
    request
}

fn set(keys: &[&Signer]) -> Value {
    json!({"keys": keys.iter().map(|key| key.jwk()).collect::<Vec<_>>()})
}

/// Returns a welcomed device, or the close code.
fn try_hello(server: &Server, key: &Signer) -> Result<V1, u16> {
    let mut device = V1::open(server);
    device.say_hello(json!({"token": key.sign(&json!({"sub": "a"}))}));
    match device.read() {
        Ok(Message::Text(_)) => Ok(device),
        Ok(Message::Close(Some(frame))) => Err(frame.code.into()),
        other => panic!("{other:?}"),
    }
}

/// Retries until the set that was just fetched is in force.
fn hello(server: &Server, key: &Signer) -> V1 {
    loop {
        match try_hello(server, key) {
            Ok(device) => return device,
            Err(code) => assert_eq!(code, TRY_AGAIN_LATER),
        }
    }
}

/// Close code for a device whose key may come with the next fetch.
const TRY_AGAIN_LATER: u16 = 1013;

#[test]
fn a_rotated_key_set_is_fetched_when_somebody_comes_with_the_new_key() {
    let (old, new) = (Signer::new("old", 1), Signer::new("new", 2));
    let host = Host::new(&[&old]);
    let url = format!("auth_jwks=http://{}/keys", host.address);
    let server = Server::with(&["auth=token", &url]);
    host.answered.recv_timeout(PATIENCE).unwrap();
    hello(&server, &old);
    host.rotate(&[&new]);
    assert_eq!(try_hello(&server, &new).map(drop).unwrap_err(), TRY_AGAIN_LATER);
    host.answered.recv_timeout(PATIENCE).unwrap();
    hello(&server, &new);
    // The next fetch decides, unless the token came so early that this one already could.
    let refused = try_hello(&server, &old).map(drop).unwrap_err();
    assert!([TRY_AGAIN_LATER, 4401].contains(&refused), "{refused}");
    let closed = "switchboard_connections_closed_total{code=\"1013\"}";
    assert!(server.metric(closed) >= 1.0);
}
