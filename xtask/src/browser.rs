//! Chromium and its driver, needed for the tests of the page.

use std::env;
use std::path::PathBuf;

use crate::command::find;
use crate::machine::{ensure, print_version};
use crate::step::Failure;

/// The variables that name the programs, for the tests and for users who have them elsewhere.
pub(crate) const CHROMIUM_VARIABLE: &str = "CHROMIUM";
pub(crate) const CHROMEDRIVER_VARIABLE: &str = "CHROMEDRIVER";

const CHROMIUM_NAMES: [&str; 4] =
    ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
const CHROMEDRIVER_NAMES: [&str; 2] = ["chromedriver", "chromium.chromedriver"];

/// Paths of the two programs.
#[derive(Debug)]
pub(crate) struct Browser {
    pub(crate) chromium: PathBuf,
    pub(crate) chromedriver: PathBuf,
}

impl Browser {
    /// Finds the programs, and first installs them if possible without asking.
    pub(crate) fn ensure() -> Result<Browser, Failure> {
        ensure(Browser::find, "chromium chromium-driver", &missing())
    }

    /// Returns the programs named by the variables, otherwise those on `PATH`.
    fn find() -> Option<Browser> {
        let chromium = named(CHROMIUM_VARIABLE).or_else(|| find(&CHROMIUM_NAMES))?;
        let chromedriver = named(CHROMEDRIVER_VARIABLE).or_else(|| find(&CHROMEDRIVER_NAMES))?;
        Some(Browser { chromium, chromedriver })
    }

    /// Prints both versions: a driver that is too old or too new for its browser is a common
    /// reason why tests cannot start.
    pub(crate) fn print_versions(&self) {
        print_version(&self.chromium);
        print_version(&self.chromedriver);
    }
}

fn named(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn missing() -> String {
    format!(
        "the page is tested in Chromium, and chromium or chromedriver is not on PATH.\n\
         Install both (Debian: `apt-get install chromium chromium-driver`), or name them in\n\
         {CHROMIUM_VARIABLE} and {CHROMEDRIVER_VARIABLE},\n\
         or leave the page out with `cargo xtask test --no-browser`"
    )
}
