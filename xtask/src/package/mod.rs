//! `cargo xtask package`: makes the packages that users install, in `target/package`.

mod glibc;
mod licenses;
mod tools;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::command::{Program, root};
use crate::step::{Failure, Step, run_all};

/// The target of the packages. Another one needs a package of its own in `packaging/npm`.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// The target's name in npm's packages.
const NPM_PLATFORM: &str = "linux-x64-gnu";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The cargo profile: a release without symbols.
const PROFILE: &str = "dist";
/// maturin's name for the oldest glibc that [`glibc::NEWEST`] allows; zig links against it.
const MANYLINUX: &str = "manylinux_2_28";

const LICENSES: [&str; 2] = ["LICENSE-APACHE", "LICENSE-MIT"];
const THIRD_PARTY: &str = "THIRD-PARTY-LICENSES.txt";

/// Folders of `packaging` that the guide refers to. The `.deb` lists them in
/// `crates/switchboard/Cargo.toml`.
const EXAMPLES: [&str; 6] = ["nginx", "caddy", "prometheus", "systemd", "container", "kubernetes"];

/// Makes all packages.
pub(crate) fn run() -> ExitCode {
    let mut all = vec![tools()];
    all.extend(steps());
    run_all(all)
}

/// Returns the step that finds or installs the tools of the other steps.
pub(crate) fn tools() -> Step {
    Step::new("packaging tools", tools::ensure)
}

/// Returns the steps that make all packages with the tools.
pub(crate) fn steps() -> Vec<Step> {
    vec![
        Step::new("folders", folders),
        Step::new("licences", || licenses::write(&parts().join(THIRD_PARTY))),
        Step::new("binary and wheel", wheel),
        Step::new("glibc", || glibc::check(&binary())),
        Step::new("man pages and completions", generated),
        Step::new("archive", archive),
        Step::new("deb", deb),
        Step::new("npm packages", npm),
        Step::new("checksums", checksums),
    ]
}

/// Returns the folder of the finished packages.
fn made() -> PathBuf {
    root().join("target/package")
}

/// Returns the folder of generated files that go into packages.
fn parts() -> PathBuf {
    root().join("target/package-parts")
}

fn binary() -> PathBuf {
    root().join("target").join(TARGET).join(PROFILE).join("switchboard")
}

/// Empties the folders, so that nothing of the last run gets into the packages of this one.
fn folders() -> Result<(), Failure> {
    for folder in [made(), parts()] {
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(|error| cannot("remove", &folder, &error))?;
        }
        make(&folder)?;
    }
    Ok(())
}

/// Makes the wheel, and with it the binary: maturin calls cargo with zig as the linker, which
/// links against an old glibc on a machine with a new one. All other packages take the same
/// binary.
fn wheel() -> Result<(), Failure> {
    // `pyproject.toml` names the crate by a relative path, so this folder has the same depth as
    // the original.
    let folder = root().join("target/package-python");
    make(&folder)?;
    for file in ["pyproject.toml", "README.md"] {
        copy(&root().join("packaging/python").join(file), &folder)?;
    }
    copy_licenses(&folder)?;
    copy(&parts().join(THIRD_PARTY), &folder)?;
    dated(Program::new(tools::venv().join("bin/maturin")))
        .dir(&folder)
        .args(&format!("build --locked --zig --profile {PROFILE} --target {TARGET}"))
        .args(&format!("--compatibility {MANYLINUX} --out"))
        .arg(made())
        .env("CARGO_TARGET_DIR", root().join("target"))
        .env("PATH", tools::path_with_venv())
        .run()
}

/// Makes the man pages and completions, which the binary prints.
fn generated() -> Result<(), Failure> {
    let completions = parts().join("completions");
    make(&completions)?;
    for (shell, file) in
        [("bash", "switchboard.bash"), ("zsh", "_switchboard"), ("fish", "switchboard.fish")]
    {
        let script = Program::new(binary()).args("completions").arg(shell).output();
        let script =
            script.ok_or_else(|| Failure::new(format!("there are no completions for {shell}")))?;
        write(&completions.join(file), &format!("{script}\n"))?;
    }
    Program::new(binary()).arg("man").arg(parts().join("man")).run()
}

fn archive() -> Result<(), Failure> {
    let name = format!("switchboard-{VERSION}-{TARGET}");
    let folder = parts().join(&name);
    make(&folder.join("systemd"))?;
    copy(&binary(), &folder)?;
    for file in
        ["README.md", "CHANGELOG.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "switchboard.toml"]
    {
        copy(&root().join(file), &folder)?;
    }
    copy_folder(&root().join("docs"), &folder.join("docs"))?;
    make(&folder.join("packaging"))?;
    for example in EXAMPLES {
        copy_folder(
            &root().join("packaging").join(example),
            &folder.join("packaging").join(example),
        )?;
    }
    copy_licenses(&folder)?;
    copy(&parts().join(THIRD_PARTY), &folder)?;
    copy(&root().join("packaging/systemd/switchboard.service"), &folder.join("systemd"))?;
    for generated in ["man", "completions"] {
        copy_folder(&parts().join(generated), &folder.join(generated))?;
    }
    let date = commit_date().map_or(String::new(), |date| format!("--mtime=@{date}"));
    Program::new("tar")
        .args("--sort=name --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX")
        .args(&date)
        .args("--create --gzip --file")
        .arg(made().join(format!("{name}.tar.gz")))
        .arg("--directory")
        .arg(parts())
        .arg(name)
        .run()
}

/// Makes the Debian package, whose contents are listed in `crates/switchboard/Cargo.toml`.
fn deb() -> Result<(), Failure> {
    dated(Program::new(tools::cargo_deb()))
        // Otherwise it warns that it does not build the other binaries in `target`.
        .args("--quiet --package switchboard --locked --no-build --no-strip")
        .args(&format!("--profile {PROFILE} --target {TARGET} --output"))
        .arg(made())
        .env("CARGO_TARGET_DIR", root().join("target"))
        .run()
}

/// Makes one package for all platforms, and one with the binary for this platform.
fn npm() -> Result<(), Failure> {
    let main = npm_folder("switchboard-broker")?;
    let platform = npm_folder(NPM_PLATFORM)?;
    make(&platform.join("bin"))?;
    copy(&binary(), &platform.join("bin"))?;
    copy(&parts().join(THIRD_PARTY), &platform)?;
    for folder in [platform, main] {
        Program::new("npm")
            .dir(&folder)
            .args("pack --silent --ignore-scripts --pack-destination")
            .arg(made())
            .run()?;
    }
    Ok(())
}

/// Returns a copy of a folder of `packaging/npm` with the version and the licences.
fn npm_folder(name: &str) -> Result<PathBuf, Failure> {
    let folder = parts().join("npm").join(name);
    make(&parts().join("npm"))?;
    copy_folder(&root().join("packaging/npm").join(name), &folder)?;
    copy_licenses(&folder)?;
    let manifest = folder.join("package.json");
    let text = fs::read_to_string(&manifest).map_err(|error| cannot("read", &manifest, &error))?;
    write(&manifest, &text.replace("0.0.0", VERSION))?;
    Ok(folder)
}

fn checksums() -> Result<(), Failure> {
    let listed = fs::read_dir(made()).map_err(|error| cannot("list", &made(), &error))?;
    let mut names: Vec<_> = listed.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
    names.sort();
    let sums = names.iter().fold(Program::new("sha256sum").dir(&made()), Program::arg).output();
    let sums = sums.ok_or_else(|| Failure::new("`sha256sum` failed"))?;
    println!("{sums}\n    in target/package");
    write(&made().join("SHA256SUMS"), &format!("{sums}\n"))
}

/// Makes packages reproducible: the time of the commit replaces the current time.
fn dated(program: Program) -> Program {
    match commit_date() {
        Some(date) => program.env("SOURCE_DATE_EPOCH", date),
        None => program,
    }
}

fn commit_date() -> Option<String> {
    Program::new("git").args("log -1 --format=%ct").output()
}

fn make(folder: &Path) -> Result<(), Failure> {
    fs::create_dir_all(folder).map_err(|error| cannot("make", folder, &error))
}

fn write(file: &Path, text: &str) -> Result<(), Failure> {
    fs::write(file, text).map_err(|error| cannot("write", file, &error))
}

/// Copies a file into a folder.
fn copy(file: &Path, folder: &Path) -> Result<(), Failure> {
    let name = file.file_name().expect("only named files are copied");
    fs::copy(file, folder.join(name)).map_err(|error| cannot("copy", file, &error))?;
    Ok(())
}

/// Copies a folder to a path that does not exist.
fn copy_folder(folder: &Path, to: &Path) -> Result<(), Failure> {
    Program::new("cp").arg("--recursive").arg(folder).arg(to).run()
}

fn copy_licenses(folder: &Path) -> Result<(), Failure> {
    LICENSES.iter().try_for_each(|license| copy(&root().join(license), folder))
}

fn cannot(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("cannot {what} {}: {error}", path.display()))
}
