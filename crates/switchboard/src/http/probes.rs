//! What machines ask: is it alive, is it ready, how is it doing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use super::State;

/// 200 while the process serves HTTP at all.
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// 200 while new devices are welcome; 503 once the server goes down, and while nothing can be
/// stored.
pub(super) async fn readyz(
    extract::State(state): extract::State<Arc<State>>,
) -> (StatusCode, &'static str) {
    if !state.is_ready.load(Ordering::Relaxed) {
        (StatusCode::SERVICE_UNAVAILABLE, "going down\n")
    } else if state.metrics.store_is_failing() {
        (StatusCode::SERVICE_UNAVAILABLE, "the store cannot write\n")
    } else {
        (StatusCode::OK, "ready\n")
    }
}

/// Everything counted, as `OpenMetrics` text.
pub(super) async fn metrics(
    extract::State(state): extract::State<Arc<State>>,
) -> impl IntoResponse {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, content_type)], state.metrics.render())
}
