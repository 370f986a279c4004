//! The Rust client's session over the real binary: the parts that no command uses.

use std::time::Duration;

use serde_json::json;
use switchboard_client::Ending;
use switchboard_client::v1::{
    Ack, AskError, Device, Event, Message, Outcome, Outgoing, RejectCode, Session, SessionOptions,
    State, Word,
};

use super::client::{V1, now_s, token};
use crate::server::{PATIENCE, Server};

async fn open(server: &Server, token: String) -> Session {
    let options = SessionOptions { ack: Ack::ByHand, ..SessionOptions::default() };
    let state = State { token: Some(token), ..State::default() };
    Session::open(&server.url(), options, state).await.unwrap()
}

async fn named(server: &Server, name: &str) -> Session {
    open(server, token(server, name, None)).await
}

/// Returns the next event that is not about the connection.
async fn next(session: &mut Session) -> Event {
    let next = async {
        loop {
            match session.next().await.expect("an event") {
                Event::Online(_) => {}
                event => return event,
            }
        }
    };
    tokio::time::timeout(PATIENCE, next).await.unwrap()
}

async fn message(session: &mut Session) -> Message {
    match next(session).await {
        Event::Message(message) => message,
        other => panic!("{other:?}"),
    }
}

async fn send(device: &Device, to: &str, id: &str) {
    let outgoing = Outgoing { id: id.to_owned(), receipt: true, ..Outgoing::text(to, id) };
    device.send(outgoing).await.unwrap();
}

/// Returns the outcome of a message of this device: its id, the outcome, the reason.
async fn outcome(session: &mut Session) -> (String, Word<Outcome>, Option<String>) {
    let Event::Outcome(receipt) = next(session).await else { panic!("no outcome") };
    session.device().ack(receipt.cursor);
    (receipt.id, receipt.outcome, receipt.reason)
}

#[tokio::test]
async fn the_list_of_devices_comes_in_pages() {
    let server = Server::with(&["shards=3"]);
    let session = named(&server, "d0").await;
    V1::named(&server, "d1").leave();
    let _others = ["d2", "d3", "d4"].map(|name| V1::named(&server, name));
    let (mut shown, mut after) = (Vec::new(), None);
    loop {
        let page = session.device().devices(after.as_deref(), Some(2)).await.unwrap();
        assert!(page.devices.len() <= 2);
        shown.extend(page.devices.into_iter().map(|device| (device.device, device.online)));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let expected = [0, 1, 2, 3, 4].map(|n| (format!("d{n}"), n != 1));
    assert_eq!(shown, expected);
    let hidden = Server::with(&["list_devices=none"]);
    let session = named(&hidden, "d0").await;
    let Err(AskError::Rejected(why)) = session.device().devices(None, None).await else {
        panic!("they are shown")
    };
    assert_eq!(why.code, Word::Known(RejectCode::NotAllowed));
}

#[tokio::test]
async fn a_refusal_takes_one_message_and_tells_its_sender_why() {
    let server = Server::with(&["shards=3"]);
    let (mut a, mut b) = (named(&server, "a").await, named(&server, "b").await);
    for id in ["1", "2", "3"] {
        send(a.device(), "b", id).await;
    }
    let (one, two) = (message(&mut b).await, message(&mut b).await);
    b.device().refuse(two.cursor, Some("no")).await.unwrap();
    let refused = Word::Known(Outcome::Refused);
    assert_eq!(outcome(&mut a).await, ("2".to_owned(), refused.clone(), Some("no".to_owned())));
    b.device().ack(one.cursor);
    assert_eq!(outcome(&mut a).await, ("1".to_owned(), Word::Known(Outcome::Delivered), None));
    // Messages that are neither acked nor refused come again; the others do not.
    let state = b.close().await;
    assert_eq!(state.last_seq, one.cursor.seq());
    let mut b = Session::open(&server.url(), SessionOptions::default(), state).await.unwrap();
    let three = message(&mut b).await;
    assert_eq!((three.id.as_str(), three.text().as_str()), ("3", "3"));
    b.device().refuse(three.cursor, None).await.unwrap();
    assert_eq!(outcome(&mut a).await, ("3".to_owned(), refused, None));
    let state = b.close().await;
    V1::hello(&server, json!({"token": state.token, "mailbox": state.mailbox})).hears_nothing();
}

#[tokio::test]
async fn a_token_that_was_refreshed_in_time_ends_nothing() {
    let server = Server::with(&["shards=3"]);
    let minted = |name: &str, ttl_s| token(&server, name, Some(Duration::from_secs(ttl_s)));
    let mut session = open(&server, minted("a", 3)).await;
    let mut late = open(&server, minted("late", 3)).await;
    assert!(matches!(next(&mut session).await, Event::Expiring { .. }));
    let newer = minted("a", 300);
    let ends_ms = session.device().refresh(&newer).await.unwrap().expect("it ends");
    assert!((ends_ms / 1_000).abs_diff(now_s() + 300) <= 2, "{ends_ms}");
    assert_eq!(session.state().token, Some(newer));
    // The second token, which was made later, shows that the time of the first is over.
    assert!(matches!(next(&mut late).await, Event::Expiring { .. }));
    let Event::Closed(Ending { code: 4401, .. }) = next(&mut late).await else { panic!() };
    send(session.device(), "a", "1").await;
    assert_eq!(message(&mut session).await.id, "1");
    let forever = token(&server, "a", None);
    assert_eq!(session.device().refresh(&forever).await, Ok(None));
}

#[tokio::test]
async fn a_token_of_another_device_ends_the_session() {
    let server = Server::with(&["shards=3"]);
    let mut session = named(&server, "a").await;
    let refreshed = session.device().refresh(&token(&server, "b", None)).await;
    let Err(AskError::Ended(ending)) = refreshed else { panic!("{refreshed:?}") };
    assert_eq!(ending.code, 4401);
    assert_eq!(next(&mut session).await, Event::Closed(ending));
}
