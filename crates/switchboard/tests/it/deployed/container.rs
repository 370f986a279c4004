//! The Containerfile: nothing here can run it, so everything that it names is checked for
//! existence.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

use switchboard::config::Config;

use super::{ROOT, lint};
use crate::server::binary;

const CONTAINERFILE: &str = include_str!("../../../../../packaging/container/Containerfile");
const IGNORED: &str = include_str!("../../../../../.dockerignore");

/// Returns the arguments of each instruction of this name, with continuation lines joined.
fn instructions(name: &str) -> Vec<Vec<String>> {
    let joined = CONTAINERFILE.replace("\\\n", " ");
    let lines = joined.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    lines.map(|words| words.split_whitespace().map(str::to_owned).collect()).collect()
}

/// Returns the only instruction of this name.
fn instruction(name: &str) -> Vec<String> {
    let mut all = instructions(name);
    assert_eq!(all.len(), 1, "{name}");
    all.remove(0)
}

/// Returns the paths that are copied from the project.
fn copied() -> Vec<String> {
    let from_project = |words: &Vec<String>| !words[0].starts_with("--from=");
    let copies = instructions("COPY").into_iter().filter(from_project);
    copies.flat_map(|mut words| words.drain(..words.len() - 1).collect::<Vec<_>>()).collect()
}

#[test]
fn hadolint_finds_nothing_to_say() {
    lint("hadolint", &[], "packaging/container/Containerfile");
}

#[test]
fn all_that_is_copied_is_there_and_nothing_else_is_sent_to_the_build() {
    let let_in: Vec<&str> = IGNORED.lines().filter_map(|line| line.strip_prefix('!')).collect();
    for path in copied() {
        assert!(Path::new(ROOT).join(&path).exists(), "{path}");
        let is_let_in = let_in.iter().any(|name| match name.strip_suffix('*') {
            Some(prefix) => path.starts_with(prefix),
            None => path == *name,
        });
        assert!(is_let_in, "{path} is not in .dockerignore");
    }
}

/// A member or file that the Containerfile does not copy would break every build of the image.
#[test]
fn cargo_finds_the_whole_workspace_in_what_is_copied() {
    let directory = tempfile::tempdir().unwrap();
    for path in copied() {
        copy_manifests(&Path::new(ROOT).join(&path), &directory.path().join(&path));
    }
    // This build fetched what this platform needs; a new machine has nothing of other platforms' crates.
    let platform = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--offline", "--format-version", "1"])
        .args(["--filter-platform", &platform])
        .current_dir(&directory)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Copies what cargo reads before it builds: manifests, and the sources by which it finds
/// targets.
fn copy_manifests(from: &Path, to: &Path) {
    if from.is_file() {
        fs::copy(from, to).unwrap();
        return;
    }
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
        let name = entry.file_name().expect("an entry has a name");
        let is_source = entry.extension().is_some_and(|end| end == "rs" || end == "toml");
        if is_source || (entry.is_dir() && name != "target" && name != "node_modules") {
            copy_manifests(&entry, &to.join(name));
        }
    }
}

#[test]
fn every_file_of_the_project_that_the_binary_holds_is_copied() {
    let copied = copied();
    for file in ["switchboard.toml", "console"] {
        assert!(copied.iter().any(|path| path == file), "{file}");
    }
}

#[test]
fn its_variables_are_settings_and_its_port_and_volume_are_theirs() {
    let variables = instructions("ENV").concat();
    let variables: Vec<(&str, &str)> =
        variables.iter().map(|pair| pair.split_once('=').expect("NAME=value")).collect();
    let directory = tempfile::tempdir().unwrap();
    let output = binary()
        .args(["config", "print"])
        .envs(variables.iter().copied())
        .current_dir(&directory)
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{printed}");
    let volume = &instruction("VOLUME")[0];
    assert!(printed.contains(&format!("data_dir = {volume:?}")), "{printed}");
    let port = instruction("EXPOSE")[0].parse();
    assert_eq!(port, Ok(Config::default().listen.port()));
}

#[test]
fn it_runs_the_binary_that_it_holds_as_nobody_special_and_ends_it_by_sigterm() {
    let entry = instruction("ENTRYPOINT").concat();
    let binary = entry.trim_matches(|c| "[]\"".contains(c));
    let holds_it = |words: &Vec<String>| words.last().is_some_and(|to| to == binary);
    assert!(instructions("COPY").iter().any(holds_it), "{binary}");
    let health = instruction("HEALTHCHECK").join(" ");
    assert!(health.ends_with(&format!("CMD [{binary:?}, \"health\"]")), "{health}");
    let user = instruction("USER").concat();
    let id: u32 = user.split(':').next().unwrap().parse().expect("a number, for runAsNonRoot");
    assert_ne!(id, 0);
    assert!(CONTAINERFILE.contains(&format!("--chown={user} /out/data /data")));
    assert_eq!(instruction("STOPSIGNAL"), ["SIGTERM"]);
}

#[test]
fn it_is_built_by_a_rust_that_is_new_enough() {
    let manifest = fs::read_to_string(Path::new(ROOT).join("Cargo.toml")).unwrap();
    let rest = manifest.split_once("rust-version = \"").expect("it says which Rust").1;
    let version = rest.split_once('"').unwrap().0;
    assert!(CONTAINERFILE.contains(&format!("/rust:{version}-slim-")), "{version}");
}
