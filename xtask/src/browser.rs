//! Chromium and its driver, which the page is tested with: found, or installed, or asked for.

use std::env;
use std::path::PathBuf;

use crate::command::{Program, find};
use crate::step::Failure;

/// The variables that name the programs, for the tests and for whoever has them elsewhere.
pub(crate) const CHROMIUM_VARIABLE: &str = "CHROMIUM";
pub(crate) const CHROMEDRIVER_VARIABLE: &str = "CHROMEDRIVER";

const CHROMIUM_NAMES: [&str; 4] =
    ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
const CHROMEDRIVER_NAMES: [&str; 2] = ["chromedriver", "chromium.chromedriver"];

/// Where the two programs are.
#[derive(Debug)]
pub(crate) struct Browser {
    pub(crate) chromium: PathBuf,
    pub(crate) chromedriver: PathBuf,
}

impl Browser {
    /// Finds the programs, installing them first where that can be done without asking.
    pub(crate) fn ensure() -> Result<Browser, Failure> {
        if let Some(browser) = Browser::find() {
            return Ok(browser);
        }
        if !may_install() {
            return Err(Failure::new(missing()));
        }
        install()?;
        Browser::find().ok_or_else(|| Failure::new(missing()))
    }

    /// The programs named by the variables, else those on `PATH`.
    fn find() -> Option<Browser> {
        let chromium = named(CHROMIUM_VARIABLE).or_else(|| find(&CHROMIUM_NAMES))?;
        let chromedriver = named(CHROMEDRIVER_VARIABLE).or_else(|| find(&CHROMEDRIVER_NAMES))?;
        Some(Browser { chromium, chromedriver })
    }

    /// Prints both versions: a driver that is too old or too new for its browser is a
    /// common reason for tests that cannot start.
    pub(crate) fn print_versions(&self) {
        for program in [&self.chromium, &self.chromedriver] {
            let version = Program::new(program).args("--version").output();
            let version = version.unwrap_or_else(|| "tells no version".to_owned());
            println!("    {}: {version}", program.display());
        }
    }
}

fn named(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn may_install() -> bool {
    let root = Program::new("id").args("-u").output().is_some_and(|uid| uid == "0");
    root && find(&["apt-get"]).is_some()
}

fn install() -> Result<(), Failure> {
    let apt = || Program::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive");
    apt().args("--quiet update").run()?;
    apt().args("--quiet --yes --no-install-recommends install chromium chromium-driver").run()
}

fn missing() -> String {
    format!(
        "the page is tested in Chromium, and chromium or chromedriver is not on PATH.\n\
         Install both (Debian: `apt-get install chromium chromium-driver`), or name them in\n\
         {CHROMIUM_VARIABLE} and {CHROMEDRIVER_VARIABLE},\n\
         or leave the page out with `cargo xtask test --no-browser`"
    )
}
