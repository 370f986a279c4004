//! Finds the commit that the binary is built from, for `--version`.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let built_from = commit(&root).map_or(String::new(), |commit| format!(" ({commit})"));
    println!("cargo::rustc-env=BUILT_FROM={built_from}");
}

/// The commit that is checked out; `None` without git, and where the sources are not a clone of their
/// own, as an unpacked release within somebody's repository is.
fn commit(root: &Path) -> Option<String> {
    let toplevel = PathBuf::from(git(root, &["rev-parse", "--show-toplevel"])?);
    if toplevel.canonicalize().ok()? != root.canonicalize().ok()? {
        return None;
    }
    watch(root);
    git(root, &["rev-parse", "--short=12", "HEAD"])
}

/// Has cargo run this again when another commit is checked out, and only then. Each such change adds
/// a line to the log of HEAD; in a repository that keeps none, HEAD or what it names changes. Cargo
/// takes a file that is not there for one that has changed, so those are left out.
fn watch(root: &Path) {
    let head = git(root, &["symbolic-ref", "--quiet", "HEAD"]);
    let fallback = ["HEAD", "packed-refs", head.as_deref().unwrap_or("HEAD")];
    let path =
        |name: &str| git(root, &["rev-parse", "--git-path", name]).map(|path| root.join(path));
    let is_there = |path: &PathBuf| path.exists();
    let watched = match path("logs/HEAD").filter(is_there) {
        Some(log) => vec![log],
        None => fallback.iter().filter_map(|name| path(name).filter(is_there)).collect(),
    };
    for path in watched {
        println!("cargo::rerun-if-changed={}", path.display());
    }
}

fn git(root: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}
