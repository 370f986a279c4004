//! One open page and a user's actions on it; every check waits until it holds, or fails.

use std::time::{Duration, Instant};

use fantoccini::wd::{WebDriverCompatibleCommand, WindowHandle};
use fantoccini::{Client, Locator};
use hyper::Method;
use serde_json::{Value, json};
use url::{ParseError, Url};

const WAIT_MAX: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// One of several tabs of a browser.
pub(crate) struct Tab(WindowHandle);

/// A page in a browser of its own.
pub(crate) struct Page {
    client: Client,
}

impl Page {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// Returns the id that the page shows as its own.
    pub(crate) async fn id(&self) -> String {
        self.text("#my-id-digits").await
    }

    /// Fills the form and presses its button.
    pub(crate) async fn send(&self, to: &str, text: &str) {
        self.fill("#to", to).await;
        self.fill("#text", text).await;
        self.click("#send").await;
    }

    /// Fills and submits the form for each destination and text, without waiting in between.
    pub(crate) async fn send_at_once(&self, messages: &[(&str, &str)]) {
        let script = "for (const [to, text] of arguments[0]) {
            document.getElementById('to').value = to;
            document.getElementById('text').value = text;
            document.getElementById('composer').requestSubmit();
        }";
        self.run(script, vec![json!(messages)]).await;
    }

    /// Waits until an element that matches `css` has exactly the text `text`.
    pub(crate) async fn shows(&self, css: &str, text: &str) {
        self.until(
            &format!("{css} shows {text:?}"),
            "return [...document.querySelectorAll(arguments[0])].some((e) => e.checkVisibility() && e.textContent === arguments[1]);",
            vec![json!(css), json!(text)],
        )
        .await;
    }

    /// Waits until `script` returns true; the failure names `what`.
    pub(crate) async fn until(&self, what: &str, script: &str, arguments: Vec<Value>) {
        let deadline = Instant::now() + WAIT_MAX;
        while self.run(script, arguments.clone()).await != Value::Bool(true) {
            if Instant::now() > deadline {
                let shown = self.run("return document.body.innerText;", vec![]).await;
                panic!("waited in vain until {what}; the page shows:\n{shown:#}");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Returns the number of elements that match `css`.
    pub(crate) async fn count(&self, css: &str) -> u64 {
        let script = "return document.querySelectorAll(arguments[0]).length;";
        let count = self.run(script, vec![json!(css)]).await;
        count.as_u64().expect("a length is a number")
    }

    /// Returns the value of the field `css`.
    pub(crate) async fn value(&self, css: &str) -> String {
        let script = "return document.querySelector(arguments[0]).value;";
        string(self.run(script, vec![json!(css)]).await)
    }

    /// Returns the texts of all elements that match `css`, in order.
    pub(crate) async fn texts(&self, css: &str) -> Vec<String> {
        let script =
            "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent);";
        let texts = self.run(script, vec![json!(css)]).await;
        texts.as_array().expect("a list").iter().cloned().map(string).collect()
    }

    /// Waits until exactly `count` elements match `css`.
    pub(crate) async fn shows_count(&self, css: &str, count: usize) {
        self.until(
            &format!("{count} elements match {css}"),
            "return document.querySelectorAll(arguments[0]).length === arguments[1];",
            vec![json!(css), json!(count)],
        )
        .await;
    }

    /// Waits until the page is connected, as another device than `before`; returns its id.
    pub(crate) async fn connected_as_other_than(&self, before: &str) -> String {
        self.until(
            &format!("the page is connected, not as {before}"),
            "return document.body.dataset.connected === 'true'
                 && document.getElementById('my-id-digits').textContent !== arguments[0];",
            vec![json!(before)],
        )
        .await;
        self.id().await
    }

    /// Switches to the text protocol and waits until the page has its new id.
    pub(crate) async fn speak_text(&self) {
        let before = self.id().await;
        self.choose("text").await;
        self.connected_as_other_than(&before).await;
    }

    /// Chooses a protocol as a click on its name does.
    pub(crate) async fn choose(&self, protocol: &str) {
        self.click(&format!("#protocol label:has([value={protocol}])")).await;
    }

    /// Leaves the page for an empty one; the tab keeps what the page stored for it.
    pub(crate) async fn leave(&self) {
        self.load("about:blank").await;
    }

    /// Opens `url` in this tab and waits until the page is connected.
    pub(crate) async fn go(&self, url: &str) {
        self.load(url).await;
        self.shows("#status-text", "Connected").await;
    }

    /// Opens `url` in this tab.
    pub(crate) async fn load(&self, url: &str) {
        self.client.goto(url).await.expect("the page loads");
    }

    /// Loads the page again.
    pub(crate) async fn reload(&self) {
        self.client.refresh().await.expect("the page loads");
    }

    /// Stores a value where the page keeps those of this tab.
    pub(crate) async fn store(&self, name: &str, value: Value) {
        let script = "sessionStorage.setItem(`switchboard / ${arguments[0]}`, arguments[1]);";
        self.run(script, vec![json!(name), json!(value.to_string())]).await;
    }

    /// Opens this page in a second tab that has a copy of this one's storage, as a browser's
    /// "duplicate tab" does, and switches to it. Returns the first tab.
    pub(crate) async fn duplicate(&self) -> Tab {
        let this = self.tab().await;
        self.run("open(location.href);", vec![]).await;
        let windows = self.client.windows().await.expect("the windows");
        let other = windows.into_iter().find(|window| *window != this.0).expect("a second window");
        self.turn_to(&Tab(other)).await;
        self.shows("#status-text", "Connected").await;
        this
    }

    /// Returns the tab that the page's methods act on.
    pub(crate) async fn tab(&self) -> Tab {
        Tab(self.client.window().await.expect("a window"))
    }

    /// Makes `tab` the one that the page's methods act on.
    pub(crate) async fn turn_to(&self, tab: &Tab) {
        self.client.switch_to_window(tab.0.clone()).await.expect("the tab is there");
    }

    async fn text(&self, css: &str) -> String {
        let script = "return document.querySelector(arguments[0]).textContent;";
        string(self.run(script, vec![json!(css)]).await)
    }

    /// Clicks the first element that matches `css`, as soon as there is one.
    pub(crate) async fn click(&self, css: &str) {
        let element = self.client.wait().at_most(WAIT_MAX);
        let element = element.for_element(Locator::Css(css)).await;
        let element = element.unwrap_or_else(|error| panic!("no {css}: {error}"));
        element.click().await.expect("the element can be clicked");
    }

    /// Types `text` into the field `css`, replacing its content.
    pub(crate) async fn fill(&self, css: &str, text: &str) {
        let field = self.client.find(Locator::Css(css)).await.expect("a field");
        field.clear().await.expect("the field can be emptied");
        field.send_keys(text).await.expect("the field takes keys");
    }

    /// Presses keys wherever the focus is.
    pub(crate) async fn keys(&self, keys: &str) {
        let focused = self.client.active_element().await.expect("a focus");
        focused.send_keys(keys).await.expect("the focus takes keys");
    }

    /// Closes the browser; fails if the page left a warning or an error in its console.
    pub(crate) async fn close_without_console_errors(self) {
        let log = self.client.issue_cmd(ConsoleLog).await.expect("a log");
        let entries = log.as_array().expect("a log is a list");
        let bad: Vec<_> = entries
            .iter()
            .filter(|entry| entry["level"] == "SEVERE" || entry["level"] == "WARNING")
            .collect();
        assert!(bad.is_empty(), "the console holds {bad:#?}");
        self.client.close().await.expect("the browser closes");
    }

    /// Runs a script in the page; returns its result.
    pub(crate) async fn run(&self, script: &str, arguments: Vec<Value>) -> Value {
        self.client.execute(script, arguments).await.expect("the script runs")
    }
}

fn string(value: Value) -> String {
    value.as_str().expect("a string").to_owned()
}

/// The driver's own command for the messages in the page's console.
#[derive(Debug)]
struct ConsoleLog;

impl WebDriverCompatibleCommand for ConsoleLog {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, ParseError> {
        base.join(&format!("session/{}/se/log", session.expect("a session is open")))
    }

    fn method_and_body(&self, _: &Url) -> (Method, Option<String>) {
        (Method::POST, Some(json!({ "type": "browser" }).to_string()))
    }
}
