//! The files for Prometheus and Grafana, and `/metrics` itself, checked against a real server
//! and by promtool.

mod alerts;
mod dashboard;
mod formats;
mod guide;
mod process;
mod promql;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

use self::promql::{Expression, Selector};
use crate::server::Server;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/prometheus");

/// Labels that Prometheus adds to everything it scrapes.
const OF_THE_TARGET: [&str; 2] = ["job", "instance"];

/// Labels of a sample's name, each with all its values.
type Labels = BTreeMap<String, BTreeSet<String>>;

/// The metrics of a server, by the samples' names.
struct Shown(BTreeMap<String, Labels>);

impl Shown {
    fn start() -> Shown {
        Shown::by(&Server::with(&["shards=2"]).get("/metrics"))
    }

    fn by(text: &str) -> Shown {
        let mut shown = BTreeMap::from([("up".to_owned(), Labels::new())]);
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let sample = line.rsplit_once(' ').expect("a sample has a value").0;
            for Selector { name, matchers } in promql::read(sample).selectors {
                let labels = shown.entry(name).or_default();
                for (label, value) in matchers {
                    labels.entry(label).or_default().insert(value);
                }
            }
        }
        Shown(shown)
    }

    /// Checks that every name, label and value in an expression exists, and every label used in
    /// a text beside it.
    fn has_all_of(&self, expression: &str, labels_of_texts: &[&str]) {
        let Expression { selectors, labels } = promql::read(expression);
        assert!(!selectors.is_empty(), "no metric in {expression}");
        let mut known: BTreeSet<&str> = OF_THE_TARGET.into();
        for Selector { name, matchers } in &selectors {
            let shown = self.0.get(name);
            let shown = shown.unwrap_or_else(|| panic!("{name} of {expression} does not exist"));
            known.extend(shown.keys().map(String::as_str));
            for (label, value) in matchers.iter().filter(|(label, _)| !is_of_the_target(label)) {
                let has_it = shown.get(label).is_some_and(|values| values.contains(value));
                assert!(has_it, "{name} of {expression} has no {label} {value:?}");
            }
        }
        for label in labels.iter().map(String::as_str).chain(labels_of_texts.iter().copied()) {
            assert!(known.contains(label), "nothing in {expression} has a label {label}");
        }
    }
}

fn is_of_the_target(label: &str) -> bool {
    OF_THE_TARGET.contains(&label)
}

/// Returns the words after `before` in a text, such as `instance` in `{{ $labels.instance }}`.
fn words_behind<'a>(text: &'a str, before: &str) -> Vec<&'a str> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let rests = text.split(before).skip(1);
    rests.map(|rest| rest.split(|c| !is_word(c)).next().unwrap_or_default()).collect()
}

/// Runs promtool beside the files with this standard input; it must report nothing.
fn promtool(arguments: &str, input: &str) {
    let mut promtool = Command::new("promtool")
        .args(arguments.split_whitespace())
        .current_dir(FOLDER)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect(
            "`promtool` checks metrics and alerts: install it (Debian: apt-get install prometheus)",
        );
    let mut stdin = promtool.stdin.take().expect("it is piped");
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8(said).unwrap());
    assert!(output.status.success(), "promtool {arguments}: {}\n{}", said.concat(), output.status);
}
