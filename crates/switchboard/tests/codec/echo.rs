//! `examples/echo.rs`, which the Autobahn test suite is run against, with a client of another
//! implementation.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;

use tungstenite::Message;

/// The example itself; cargo builds no binary of it for tests.
#[path = "../../examples/echo.rs"]
#[expect(dead_code, reason = "its main is called by nobody here")]
mod example;

#[test]
fn the_example_says_back_what_it_hears() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has free ports");
    let address = listener.local_addr().expect("it is bound");
    let options = example::Options {
        listen: address,
        max_message_bytes: 1 << 20,
        compression: false,
        context_takeover: false,
    };
    let server = thread::spawn(move || example::serve(listener.accept()?.0, options));
    let socket = TcpStream::connect(address).expect("the example listens");
    let (mut client, _) =
        tungstenite::client(format!("ws://{address}/"), socket).expect("it opens");
    for message in [Message::text("größer"), Message::binary(vec![7; 100_000])] {
        client.send(message.clone()).expect("it reads");
        assert_eq!(client.read().expect("it answers"), message);
    }
    client.send(Message::Ping("ping".into())).expect("it reads");
    assert_eq!(client.read().expect("it answers"), Message::Pong("ping".into()));
    client.close(None).expect("it reads");
    assert_eq!(client.read().expect("it answers"), Message::Close(None));
    drop(client);
    server.join().expect("it does not panic").expect("the connection ends well");
}
