//! The web page: the files of `console/`, embedded in the binary.

use axum::Router;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

/// The page loads nothing from elsewhere and connects only to its own server. `connect-src`
/// needs the schemes because older browsers do not count ws: as 'self'.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Path, media type, content.
type File = (&'static str, &'static str, &'static str);

macro_rules! file {
    ($path:literal, $file:literal, $type:literal) => {
        ($path, $type, include_str!(concat!("../../../../console/", $file)))
    };
}

const FILES: [File; 10] = [
    file!("/", "index.html", "text/html; charset=utf-8"),
    file!("/style.css", "style.css", "text/css; charset=utf-8"),
    file!("/icon.svg", "icon.svg", "image/svg+xml"),
    file!("/app.js", "app.js", "text/javascript; charset=utf-8"),
    file!("/connection.js", "connection.js", "text/javascript; charset=utf-8"),
    file!("/conversation.js", "conversation.js", "text/javascript; charset=utf-8"),
    file!("/devices.js", "devices.js", "text/javascript; charset=utf-8"),
    file!("/tab.js", "tab.js", "text/javascript; charset=utf-8"),
    file!("/text.js", "text.js", "text/javascript; charset=utf-8"),
    file!("/v1.js", "v1.js", "text/javascript; charset=utf-8"),
];

pub(super) fn router() -> Router {
    FILES.into_iter().fold(Router::new(), |router, file @ (path, _, _)| {
        router.route(path, get(async move || answer(file)))
    })
}

fn answer((_, media_type, content): File) -> Response {
    let headers = [
        (CONTENT_TYPE, media_type),
        // The files change with the binary and are small, so browsers revalidate each time.
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    (headers, content).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_console_is_served() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../console");
        for file in std::fs::read_dir(folder).unwrap() {
            let name = file.unwrap().file_name().into_string().unwrap();
            let path = if name == "index.html" { "/".to_owned() } else { format!("/{name}") };
            assert!(FILES.iter().any(|(served, _, _)| *served == path), "{name}");
        }
    }
}
