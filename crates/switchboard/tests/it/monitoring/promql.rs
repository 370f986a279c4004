//! Metrics and labels that a `PromQL` expression names.
//!
//! Anything that is neither a function, a keyword, a number nor a Grafana variable counts as a
//! metric, so a misspelt name is noticed. promtool checks whether the expression is `PromQL` at
//! all.

/// The names in an expression.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Expression {
    pub(super) selectors: Vec<Selector>,
    /// Labels that it groups or joins by.
    pub(super) labels: Vec<String>,
}

/// A metric and the values that its labels are compared with.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Selector {
    pub(super) name: String,
    /// Each alternative of a regular expression; those with a variable are left out.
    pub(super) matchers: Vec<(String, String)>,
}

const OPERATORS: [&str; 5] = ["and", "or", "unless", "bool", "offset"];
/// Followed by labels in parentheses.
const GROUPINGS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

/// Parses an expression; a line of `/metrics` without its value is one, too.
pub(super) fn read(expression: &str) -> Expression {
    let mut found = Expression::default();
    let tokens = tokens(expression);
    let mut rest = tokens.as_slice();
    while let [token, after @ ..] = rest {
        rest = after;
        let next = after.first().copied().unwrap_or_default();
        if GROUPINGS.contains(token) {
            let labels = upto(&mut rest, ")");
            found
                .labels
                .extend(labels.iter().filter(|label| is_name(label)).map(|&l| l.to_owned()));
        } else if is_metric(token, next) {
            let matchers = if next == "{" { matchers(upto(&mut rest, "}")) } else { vec![] };
            found.selectors.push(Selector { name: (*token).to_owned(), matchers });
        }
    }
    found
}

fn is_metric(token: &str, next: &str) -> bool {
    let is_called = next == "(" || ["by", "without"].contains(&next);
    is_name(token) && !is_called && !OPERATORS.contains(&token)
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
}

/// Takes the tokens up to `end`.
fn upto<'t, 'a>(rest: &mut &'t [&'a str], end: &str) -> &'t [&'a str] {
    let length = rest.iter().position(|token| *token == end).expect("what is opened is closed");
    let (taken, after) = rest.split_at(length);
    *rest = after;
    taken
}

fn matchers(tokens: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for matcher in tokens[1..].split(|token| *token == ",") {
        let [label, operator @ .., value] = matcher else { continue };
        let value = value.trim_matches('"');
        let values = if operator.contains(&"~") { value.split('|').collect() } else { vec![value] };
        let values = values.into_iter().filter(|value| !value.contains('$'));
        found.extend(values.map(|value| ((*label).to_owned(), value.to_owned())));
    }
    found
}

/// Splits into words with their digits and dots, strings, and single other characters, without
/// white space.
fn tokens(mut rest: &str) -> Vec<&str> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || "_:.$".contains(c);
    let mut tokens = Vec::new();
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '"' => rest[1..].find('"').expect("a string ends") + 2,
            _ if is_word(first) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            _ => first.len_utf8(),
        };
        let (token, after) = rest.split_at(length);
        tokens.push(token);
        rest = after;
    }
    tokens.retain(|token| !token.trim().is_empty());
    tokens
}

#[test]
fn names_and_labels_are_found_wherever_they_stand() {
    let read = read(
        "sum by (le, result) (rate(a_total{code=~\"x|y\", job=~\"$job\", s!=\"5\"}[$__rate_interval]))\n\
         / on (instance) group_left () b offset 5m > bool 1e3 or (c)",
    );
    let selector = |name: &str, matchers: &[(&str, &str)]| Selector {
        name: name.to_owned(),
        matchers: matchers.iter().map(|(l, v)| (l.to_string(), v.to_string())).collect(),
    };
    let a = selector("a_total", &[("code", "x"), ("code", "y"), ("s", "5")]);
    assert_eq!(read.selectors, [a, selector("b", &[]), selector("c", &[])]);
    assert_eq!(read.labels, ["le", "result", "instance"]);
}
