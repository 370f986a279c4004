//! What machines ask: is it alive, is it ready, how is it doing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, extract};

use super::State;

/// The probes, which everybody may ask.
pub(super) fn router() -> Router<Arc<State>> {
    Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz))
}

/// 200 while the process serves HTTP at all.
async fn healthz() -> &'static str {
    "ok\n"
}

/// 200 while new devices are welcome; 503 once the server goes down, and while nothing can be
/// stored.
async fn readyz(extract::State(state): extract::State<Arc<State>>) -> (StatusCode, &'static str) {
    if !state.is_ready.load(Ordering::Relaxed) {
        (StatusCode::SERVICE_UNAVAILABLE, "going down\n")
    } else if state.metrics.store_is_failing() {
        (StatusCode::SERVICE_UNAVAILABLE, "the store cannot write\n")
    } else {
        (StatusCode::OK, "ready\n")
    }
}

/// Everything counted, as `OpenMetrics` text.
pub(super) async fn metrics(extract::State(state): extract::State<Arc<State>>) -> Response {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, content_type)], state.metrics.render()).into_response()
}

/// The same on the devices' port: for those who may be a device.
pub(super) async fn metrics_for_devices(
    state: extract::State<Arc<State>>,
    headers: HeaderMap,
) -> Response {
    if may_be_device(&state, &headers) {
        return metrics(state).await;
    }
    let body = "This server shows its metrics to those who may connect (auth = \"token\"): send a valid \
                token as `Authorization: Bearer TOKEN`, or set metrics_listen.\n";
    (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Bearer")], body).into_response()
}

fn may_be_device(state: &State, headers: &HeaderMap) -> bool {
    let Some(keyring) = &state.keyring else { return true };
    let token = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    token.is_some_and(|(_, token)| keyring.verify(token.trim(), now_s).is_ok())
}
