//! Endpoints for machines: liveness, readiness and metrics.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, extract};

use super::AppState;
use crate::health::Probe;
use crate::metrics::Format;

/// Returns the routes of the probes, which need no authentication. On the devices' port only those
/// requests come here that a shard does not answer itself.
pub(super) fn router() -> Router<Arc<AppState>> {
    Probe::ALL.into_iter().fold(Router::new(), |router, probe| {
        let tell = async move |state: extract::State<Arc<AppState>>| state.health.tell(probe);
        router.route(probe.path(), get(tell))
    })
}

/// Answers with all metrics, in the format that the client prefers.
pub(super) async fn metrics(state: extract::State<Arc<AppState>>, headers: HeaderMap) -> Response {
    let format = negotiate(&headers);
    let asked_at = Instant::now();
    // Lets all other requests that can go on come to this point, too: they share the rendering.
    tokio::task::yield_now().await;
    let text = state.renderings.since(asked_at, format, || state.metrics.render(format));
    ([(CONTENT_TYPE, format.content_type())], text).into_response()
}

/// Answers with the metrics on the devices' port, where they need the same token as a device.
pub(super) async fn metrics_for_devices(
    state: extract::State<Arc<AppState>>,
    headers: HeaderMap,
) -> Response {
    if may_be_device(&state, &headers) {
        return metrics(state, headers).await;
    }
    let body = "This server shows its metrics only to clients that may connect (auth = \"token\"): send a valid \
                token as `Authorization: Bearer TOKEN`, or set metrics_listen.\n";
    (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Bearer")], body).into_response()
}

/// Returns the format that `Accept` asks for (RFC 9110, section 12.5.1).
///
/// Among formats of the same quality the one named more specifically wins, then the one named
/// first. As in Prometheus' own client libraries no request is refused: without a known format,
/// without `Accept` and for `*/*` the answer is the classic text, which every tool reads.
fn negotiate(headers: &HeaderMap) -> Format {
    let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let ranges: Vec<_> =
        values.flat_map(|value| value.split(',')).filter_map(media_range).collect();
    match preference(&ranges, Format::OpenMetrics) > preference(&ranges, Format::Text) {
        true => Format::OpenMetrics,
        false => Format::Text,
    }
}

/// Returns the rank of a format by the most specific range that matches it: quality, exactness
/// and position, larger is better. `None` means that the format is not acceptable.
fn preference(
    ranges: &[MediaRange<'_>],
    format: Format,
) -> Option<(u16, Exactness, Reverse<usize>)> {
    let matching = ranges.iter().enumerate().filter_map(|(place, range)| {
        Some((range.exactness(format)?, Reverse(place), range.quality))
    });
    let (exactness, place, quality) = matching.max()?;
    (quality > 0).then_some((quality, exactness, place))
}

/// Precision with which a range names a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Exactness {
    Anything,
    AnySubtype,
    Format,
    Version,
}

/// One range of `Accept`.
struct MediaRange<'a> {
    media_type: &'a str,
    version: Option<&'a str>,
    /// Quality in thousandths, the RFC's resolution.
    quality: u16,
}

impl MediaRange<'_> {
    fn exactness(&self, format: Format) -> Option<Exactness> {
        let (name, any, version) = match format {
            Format::Text => ("text/plain", "text/*", "0.0.4"),
            Format::OpenMetrics => ("application/openmetrics-text", "application/*", "1.0.0"),
        };
        match self.media_type {
            "*/*" => Some(Exactness::Anything),
            found if found.eq_ignore_ascii_case(any) => Some(Exactness::AnySubtype),
            found if !found.eq_ignore_ascii_case(name) => None,
            _ => match self.version {
                None => Some(Exactness::Format),
                Some(asked) => (asked == version).then_some(Exactness::Version),
            },
        }
    }
}

/// Parses a range; returns `None` if its quality is invalid.
fn media_range(range: &str) -> Option<MediaRange<'_>> {
    let mut parts = range.split(';').map(str::trim);
    let media_type = parts.next()?;
    let parameter = |name: &str| {
        let mut parameters = parts.clone().filter_map(|part| part.split_once('='));
        let found = parameters.find(|(found, _)| found.trim().eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim().trim_matches('"'))
    };
    let quality = parameter("q").map_or(Some(1.0), |q| q.parse::<f32>().ok())?;
    let quality = (0.0..=1.0).contains(&quality).then_some((quality * 1000.0).round() as u16)?;
    Some(MediaRange { media_type, version: parameter("version"), quality })
}

fn may_be_device(state: &AppState, headers: &HeaderMap) -> bool {
    let Some(keyring) = &state.keyring else { return true };
    let token = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    token.is_some_and(|(_, token)| keyring.verify(token.trim(), now_s).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_the_one_that_the_client_prefers() {
        use Format::{OpenMetrics, Text};
        for (accept, format) in [
            ("", Text),
            ("*/*", Text),
            ("text/html, */*;q=0.1", Text),
            ("text/plain", Text),
            ("text/*, application/*;q=0.9", Text),
            ("application/*", OpenMetrics),
            ("*/*, application/openmetrics-text;q=0.5", Text),
            ("*/*, application/openmetrics-text", OpenMetrics),
            ("text/plain;q=0, */*", OpenMetrics),
            ("application/openmetrics-text, text/plain", OpenMetrics),
            ("application/openmetrics-text;q=2, text/plain;q=0.1", Text),
            ("application/openmetrics-text", OpenMetrics),
            ("Application/OpenMetrics-Text; Version=\"1.0.0\"; charset=utf-8", OpenMetrics),
            ("application/openmetrics-text;version=0.0.1, text/plain;q=0.5", Text),
            ("application/openmetrics-text; q=0", Text),
            ("application/openmetrics-text; q=x", Text),
            ("text/plain, application/openmetrics-text", Text),
            ("text/plain;version=0.0.4;q=0.3, application/openmetrics-text;q=0.4", OpenMetrics),
            // Prometheus 2 and 3.
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;\
                 version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                OpenMetrics,
            ),
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                 application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;\
                 escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
                OpenMetrics,
            ),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT, accept.parse().unwrap())]);
            assert_eq!(negotiate(&headers), format, "{accept}");
        }
        assert_eq!(negotiate(&HeaderMap::new()), Text);
        let mut lines = HeaderMap::new();
        lines.append(ACCEPT, "text/plain;q=0.5".parse().unwrap());
        lines.append(ACCEPT, "application/openmetrics-text".parse().unwrap());
        assert_eq!(negotiate(&lines), OpenMetrics, "a header may come in several lines");
    }
}
