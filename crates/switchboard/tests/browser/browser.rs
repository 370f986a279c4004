//! Chromium behind `chromedriver`, a child process that ends every browser with it when dropped.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use fantoccini::ClientBuilder;
use fantoccini::wd::Capabilities;
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::json;
use tempfile::TempDir;

use crate::page::Page;

/// The screen that the page is shown on.
pub(crate) enum Screen {
    /// 1280 x 800 with a mouse.
    Desk,
    /// 360 x 640 with a touch screen: the smallest phone that the page supports.
    Phone,
}

/// The running driver; every page that it opens is a Chromium of its own.
pub(crate) struct Browser {
    driver: Child,
    url: String,
    chromium: PathBuf,
    profiles: TempDir,
}

impl Browser {
    /// Starts the driver on a port that the system picks.
    ///
    /// Panics if the driver or Chromium is missing.
    pub(crate) fn start() -> Self {
        let chromium = find("CHROMIUM", &["chromium", "chromium-browser", "google-chrome"]);
        let mut driver = Command::new(find("CHROMEDRIVER", &["chromedriver"]))
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("ChromeDriver starts");
        let output = driver.stdout.take().expect("the output is piped");
        let mut browser = Self {
            driver,
            url: String::new(),
            chromium,
            profiles: tempfile::tempdir().expect("a temporary directory"),
        };
        let port = BufReader::new(output)
            .lines()
            .map_while(Result::ok)
            .find_map(|line| {
                Some(line.split_once("successfully on port ")?.1.trim_end_matches('.').to_owned())
            })
            .expect("ChromeDriver says where it listens");
        browser.url = format!("http://127.0.0.1:{port}");
        browser
    }

    /// Opens `url` on a desktop screen and waits until the page has its id.
    pub(crate) async fn open(&self, url: &str) -> Page {
        self.open_on(Screen::Desk, url).await
    }

    /// Opens `url` on `screen` and waits until the page has its id.
    pub(crate) async fn open_on(&self, screen: Screen, url: &str) -> Page {
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(self.capabilities(screen))
            .connect(&self.url)
            .await
            .expect("Chromium starts");
        client.goto(url).await.expect("the page loads");
        let page = Page::new(client);
        page.shows("#status-text", "Connected").await;
        page
    }

    fn capabilities(&self, screen: Screen) -> Capabilities {
        let profile =
            tempfile::tempdir_in(self.profiles.path()).expect("a temporary directory").keep();
        let mut options = json!({
            "binary": self.chromium,
            "args": [
                "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                "--disable-dev-shm-usage", "--window-size=1280,800", "--lang=en",
                format!("--user-data-dir={}", profile.display()),
                // Chromium ends when the driver's end of the pipe closes, however the driver
                // ended.
                "--remote-debugging-pipe",
            ],
        });
        if let Screen::Phone = screen {
            options["mobileEmulation"] = json!({
                "deviceMetrics": { "width": 360, "height": 640, "pixelRatio": 2, "touch": true },
            });
        }
        let all = json!({
            "goog:chromeOptions": options,
            "goog:loggingPrefs": { "browser": "ALL" },
        });
        all.as_object().expect("an object was written").clone()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Both fail only if the child has already exited.
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// Returns the program named by `variable` or, without it, the first of `names` in `PATH`.
fn find(variable: &str, names: &[&str]) -> PathBuf {
    let named = std::env::var_os(variable).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    named
        .or_else(|| names.iter().find_map(|name| in_path(&path, name)))
        .filter(|program| program.is_file())
        .unwrap_or_else(|| {
            panic!("the browser tests need {}: install it or name it in {variable}", names[0])
        })
}

fn in_path(path: &OsString, name: &str) -> Option<PathBuf> {
    std::env::split_paths(path)
        .map(|directory| directory.join(name))
        .find(|program| Path::is_file(program))
}
