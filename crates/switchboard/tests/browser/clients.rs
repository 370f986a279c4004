//! The JavaScript client of `docs/clients` in its natural place: in web pages.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::browser::Browser;
use crate::page::Page;
use crate::server::Server;

/// The file that readers copy.
const CLIENT: &str = include_str!("../../../../docs/clients/device.mjs");

/// The steps for pages, as described at the head of the file.
const START: &str = "
    const [source, url] = arguments;
    window.heard = [];
    const module = URL.createObjectURL(new Blob([source], { type: 'text/javascript' }));
    import(module).then(({ Device }) => {
        const state = JSON.parse(localStorage.getItem('device')) ?? undefined;
        const save = (state) => localStorage.setItem('device', JSON.stringify(state));
        window.device = new Device(url, { state, save, heard: (frame) => heard.push(frame) });
    });";

/// Number of messages between two crashes.
const BURST: usize = 20;

/// Starts the client in a page that has the server's origin and no script of its own; returns
/// its id.
async fn start(page: &Page, server: &Server) -> String {
    page.load(&format!("{}healthz", server.page())).await;
    page.run(START, vec![json!(CLIENT), json!(server.socket())]).await;
    hears(page, "welcome", 1).await;
    let id = page.run("return heard[0].device;", vec![]).await;
    id.as_str().expect("an id").to_owned()
}

async fn send(page: &Page, to: &str, texts: &[String]) {
    let script =
        "for (const text of arguments[1]) device.send(arguments[0], text, { receipt: true });";
    page.run(script, vec![json!(to), json!(texts)]).await;
}

/// Waits until the client has received `count` frames of a type.
async fn hears(page: &Page, kind: &str, count: usize) {
    let script =
        "return heard.filter((frame) => frame.type === arguments[0]).length >= arguments[1];";
    page.until(&format!("{count} of {kind} came"), script, vec![json!(kind), json!(count)]).await;
}

/// Returns one field of all frames of a type that the client has received since it was loaded.
async fn heard(page: &Page, kind: &str, field: &str) -> Vec<Value> {
    let script = "return heard.filter((frame) => frame.type === arguments[0])
        .map((frame) => frame[arguments[1]]);";
    let fields = page.run(script, vec![json!(kind), json!(field)]).await;
    fields.as_array().expect("a list").clone()
}

#[tokio::test]
async fn in_pages_the_javascript_client_loses_and_doubles_nothing_over_crashes() {
    let mut server = Server::start();
    let browser = Browser::start();
    let (a, b) = (browser.open(&server.page()).await, browser.open(&server.page()).await);
    let (a_id, b_id) = (start(&a, &server).await, start(&b, &server).await);
    let texts: Vec<String> = (0..3 * BURST).map(|n| format!("text {n}")).collect();
    let (while_there, while_away) = texts.split_at(2 * BURST);
    for (n, burst) in while_there.chunks(BURST).enumerate() {
        send(&a, &b_id, burst).await;
        send(&b, &a_id, burst).await;
        hears(&b, "message", n * BURST + 1).await;
        server.stop();
        server.start_again();
    }
    for page in [&a, &b] {
        hears(page, "message", 2 * BURST).await;
        hears(page, "outcome", 2 * BURST).await;
        assert_eq!(heard(page, "message", "body").await, while_there);
        assert!(heard(page, "welcome", "resumed").await[1..].iter().all(|resumed| resumed == true));
    }
    b.leave().await;
    send(&a, &b_id, while_away).await;
    hears(&a, "accepted", texts.len()).await;
    assert_eq!(start(&b, &server).await, b_id);
    assert_eq!(heard(&b, "welcome", "resumed").await, [true]);
    hears(&b, "message", BURST).await;
    hears(&a, "outcome", texts.len()).await;
    assert_eq!(heard(&b, "message", "body").await, while_away);
    let (ids, outcomes) = (heard(&a, "outcome", "id").await, heard(&a, "outcome", "outcome").await);
    let ids: HashSet<String> = ids.iter().map(Value::to_string).collect();
    assert_eq!((ids.len(), outcomes.len()), (texts.len(), texts.len()));
    assert!(outcomes.iter().all(|outcome| outcome == "delivered"));
}
