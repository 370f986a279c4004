//! `/metrics` in the requested format, as the readers of each format need it.

use std::collections::BTreeSet;

use super::promtool;
use crate::server::Server;

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Returns the `Content-Type` and the body for this `Accept`.
fn ask(server: &Server, accept: Option<&str>) -> (String, String) {
    let accept = accept.map(|accept| format!("Accept: {accept}\r\n")).unwrap_or_default();
    let request = format!("GET /metrics HTTP/1.1\r\nHost: test\r\n{accept}\r\n");
    let answer = server.raw(request.as_bytes());
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let content_type = head.lines().find_map(|line| line.strip_prefix("content-type: "));
    (content_type.expect("it has a type").to_owned(), body.to_owned())
}

/// `OpenMetrics` was once sent to everybody, including tools that read only Prometheus' text.
#[test]
fn each_client_is_answered_in_the_format_that_it_reads() {
    let server = Server::start();
    for (accept, content_type) in [
        (None, TEXT),
        (Some("*/*"), TEXT),
        (Some("text/plain"), TEXT),
        (Some("text/plain;version=0.0.4;q=0.9, application/openmetrics-text;q=0.1"), TEXT),
        (Some("application/openmetrics-text"), OPEN_METRICS),
        (Some("application/openmetrics-text; version=1.0.0, */*;q=0.1"), OPEN_METRICS),
        (Some("application/json"), TEXT),
    ] {
        let (found, body) = ask(&server, accept);
        assert_eq!(found, content_type, "{accept:?}");
        let is_open_metrics = content_type == OPEN_METRICS;
        assert_eq!(body.ends_with("\n# EOF\n"), is_open_metrics, "{body}");
        let family = "\n# TYPE switchboard_duplicates counter\n";
        assert_eq!(body.contains(family), is_open_metrics, "text names the sample: {body}");
    }
}

#[test]
fn both_formats_have_the_same_samples() {
    let server = Server::with(&["shards=2"]);
    let [text, open_metrics] = ["text/plain", "application/openmetrics-text"].map(|accept| {
        let body = ask(&server, Some(accept)).1;
        let samples = body.lines().filter(|line| !line.starts_with('#'));
        samples.map(|line| bound_as_number(line.rsplit_once(' ').unwrap().0)).collect()
    });
    let differ: Vec<&String> = BTreeSet::symmetric_difference(&text, &open_metrics).collect();
    assert!(differ.is_empty(), "{differ:?}");
}

/// Normalizes a bucket's bound, which is `1e-05` in one format and `0.00001` in the other.
fn bound_as_number(sample: &str) -> String {
    let Some((name, bound)) = sample.split_once("{le=\"") else { return sample.to_owned() };
    format!("{name} {}", bound.trim_end_matches("\"}").parse::<f64>().unwrap())
}

#[test]
fn promtool_has_nothing_to_say_about_the_metrics() {
    promtool("check metrics", &ask(&Server::with(&["shards=2"]), None).1);
}
