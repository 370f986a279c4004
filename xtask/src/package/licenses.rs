//! Licences of the libraries in the binary, which require to be distributed with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::TARGET;
use crate::command::Program;
use crate::step::Failure;

const HEADING: &str = "\
Switchboard contains the libraries named below, under their own licences. A library that is offered
under several licences is used under any of them, at your option.
";

/// A library: its name, its version, and its licence as an SPDX expression.
type Library = (String, String, String);

/// Writes each licence text once, after the names of all libraries that have it.
pub(super) fn write(file: &Path) -> Result<(), Failure> {
    let places = places()?;
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut names = String::new();
    for (name, version, license) in libraries()? {
        let library = format!("{name} {version}");
        names.push_str(&format!("\n{library}: {license}"));
        let place = places.get(&(name, version));
        for text in place.map(|place| license_texts(place)).unwrap_or_default() {
            texts.entry(text).or_default().insert(library.clone());
        }
    }
    for text in standard_library() {
        texts.entry(text).or_default().insert("the Rust standard library".to_owned());
    }
    let mut all = format!("{HEADING}{names}\n");
    for (text, libraries) in texts {
        let libraries = libraries.into_iter().collect::<Vec<_>>().join(", ");
        all.push_str(&format!("\n{}\n{libraries}\n\n{text}\n", "-".repeat(80)));
    }
    super::write(file, &all)
}

/// Returns the libraries that cargo links into the binary, without the project's own crates.
fn libraries() -> Result<BTreeSet<Library>, Failure> {
    let tree = Program::cargo()
        .args("tree --locked --package switchboard --edges normal,no-proc-macro --prefix none")
        .args(&format!("--no-dedupe --target {TARGET}"))
        .arg("--format={p}|{l}")
        .output()
        .ok_or_else(|| Failure::new("`cargo tree` failed"))?;
    Ok(tree.lines().filter_map(library).collect())
}

/// Parses `name v1.2.3|MIT`; a crate of the project has a path after its version.
fn library(line: &str) -> Option<Library> {
    let (package, license) = line.split_once('|')?;
    let (name, version) = package.split_once(" v")?;
    let is_own = version.contains('(');
    (!is_own).then(|| (name.to_owned(), version.to_owned(), license.to_owned()))
}

/// Returns the directory in which cargo keeps the sources of each name and version.
fn places() -> Result<BTreeMap<(String, String), PathBuf>, Failure> {
    let failed = || Failure::new("`cargo metadata` failed");
    let text = Program::cargo().args("metadata --locked --format-version 1").output();
    let metadata: Value = serde_json::from_str(&text.ok_or_else(failed)?).map_err(|_| failed())?;
    let packages = metadata["packages"].as_array().ok_or_else(failed)?;
    let place = |package: &Value| {
        let manifest = Path::new(package["manifest_path"].as_str()?);
        let word = |key: &str| package[key].as_str().map(str::to_owned);
        Some(((word("name")?, word("version")?), manifest.parent()?.to_owned()))
    };
    Ok(packages.iter().filter_map(place).collect())
}

/// Returns the licence texts beside a library's manifest, sorted.
fn license_texts(folder: &Path) -> BTreeSet<String> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let read = |path: PathBuf| fs::read_to_string(path).ok();
    files.filter(|path| is_license(path)).filter_map(read).map(|text| tidy(&text)).collect()
}

fn is_license(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
    ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"]
        .iter()
        .any(|known| name.starts_with(known))
}

/// Normalizes white space, so that texts which differ only in that are written once.
fn tidy(text: &str) -> String {
    text.trim().lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// Returns the licences of Rust's standard library, which is linked in, too: the compiler brings
/// them.
fn standard_library() -> Vec<String> {
    let sysroot = Program::new("rustc").args("--print sysroot").output().unwrap_or_default();
    let folder = Path::new(&sysroot).join("share/doc/rust/licenses");
    let texts = ["MIT.txt", "Apache-2.0.txt"].map(|file| fs::read_to_string(folder.join(file)));
    texts.into_iter().flatten().map(|text| tidy(&text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_told_from_the_projects_own_crates() {
        let serde = ["serde", "1.0.229", "MIT OR Apache-2.0"].map(str::to_owned);
        assert_eq!(library("serde v1.0.229|MIT OR Apache-2.0"), Some(serde.into()));
        assert_eq!(library("switchboard v0.1.0 (/src/crates/switchboard)|MIT"), None);
    }
}
