//! The internal HTTP port: health, metrics, the page, and the admin API, which has its own law.
//! Law: what is here changes nothing, its answers have bounded size, and no query string or header of a request is logged.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::http::header::{REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use tokio::net::TcpListener;

use super::api::{ApiError, Code};
use super::exposition::Exposition;
use super::phase::{Phase, Stage};
use super::stream::BoundedListener;
use super::{PageSettings, Running};

/// What the handlers answer from.
struct Port {
    exposition: Exposition,
    phase: Arc<Phase>,
    running: Arc<Running>,
    page: Page,
}

/// Serves the port until the runtime ends.
pub(super) async fn serve(
    listener: TcpListener,
    exposition: Exposition,
    (phase, running): (Arc<Phase>, Arc<Running>),
    page: PageSettings,
    api: Router,
) {
    let port = Port { exposition, phase, running, page: Page::new(&page) };
    let router = Router::new()
        .route("/", get(page_at_root))
        .route("/livez", get(livez))
        .route("/healthz", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(Arc::new(port))
        .merge(api)
        .fallback(not_found);
    let mut listener = BoundedListener::new(listener);
    loop {
        let stream = listener.accept().await;
        let service = TowerToHyperService::new(router.clone());
        listener
            .spawn(|holder| {
                let service = service_fn(move |request| {
                    let (work, answer) = (holder.work(), service.call(request));
                    async move {
                        let answer = answer.await;
                        drop(work);
                        answer
                    }
                });
                // Who has ended its own side still waits for the answer; the deadlines of the stream bound that.
                let mut http = http1::Builder::new();
                let connection = http.half_close(true).max_buf_size(HEAD_BYTES_MAX);
                let connection = connection.serve_connection(TokioIo::new(stream), service);
                // A connection that breaks is its client's affair.
                Box::pin(async move { drop(connection.await) })
            })
            .await;
    }
}

/// 200 as long as this thread answers at all.
async fn livez() -> Response {
    answer(StatusCode::OK, TEXT, "ok\n")
}

/// 200 while newcomers are served; else 503 with the reason.
async fn readyz(State(port): State<Arc<Port>>) -> Response {
    let stage = port.phase.get();
    let awaited = port.running.awaited_keys();
    let keyless = format!("no key to check tokens with yet; waiting for {}", awaited.join(", "));
    let (status, reason) = match stage {
        Stage::Ready if !awaited.is_empty() => (StatusCode::SERVICE_UNAVAILABLE, Some(&*keyless)),
        Stage::Ready => (StatusCode::OK, None),
        Stage::Starting => (StatusCode::SERVICE_UNAVAILABLE, Some("the engine has not started yet")),
        Stage::Draining => (StatusCode::SERVICE_UNAVAILABLE, Some("the engine drains; connect elsewhere")),
        Stage::Stopped => (StatusCode::SERVICE_UNAVAILABLE, Some("the engine has stopped")),
    };
    let mut body = serde_json::json!({ "ready": reason.is_none(), "phase": stage.label() });
    if let Some(reason) = reason {
        body["reason"] = reason.into();
    }
    answer(status, JSON, format!("{body}\n"))
}

async fn metrics(State(port): State<Arc<Port>>, headers: HeaderMap) -> Response {
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    match port.exposition.encode(accept) {
        Ok((content_type, text)) => answer(StatusCode::OK, content_type, text),
        Err(_) => failure(Code::InternalError, "the counters could not be written"),
    }
}

async fn page_at_root(State(port): State<Arc<Port>>) -> Response {
    let Ok(nonce) = getrandom::u64().map(|nonce| format!("{nonce:016x}")) else {
        return failure(Code::InternalError, "the system gave no random number");
    };
    let mut response = answer(StatusCode::OK, HTML, port.page.with_nonce(&nonce));
    // The page can talk to sockets and to this port, and to nothing else; nothing can frame it or run in it.
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; \
         connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    if let Ok(policy) = policy.try_into() {
        response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    }
    response
}

async fn not_found() -> Response {
    failure(
        Code::NotFound,
        "served here: /, /livez, /readyz, /healthz, /metrics, and /api/openapi.json, which says the rest",
    )
}

/// The header `Allow` says which methods there are.
pub(super) async fn method_not_allowed() -> Response {
    failure(Code::MethodNotAllowed, "this path has other methods")
}

fn failure(code: Code, message: &str) -> Response {
    ApiError::new(code, message).into_response()
}

/// An answer with the JSON text of `value`, and a line feed for people.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Response {
    let text = serde_json::to_string(value).expect("plain values, and texts as keys");
    answer(status, JSON, text + "\n")
}

/// A success whose JSON text is there already.
pub(super) fn json_text(text: impl Into<Body>) -> Response {
    answer(StatusCode::OK, JSON, text)
}

fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Body>) -> Response {
    let headers: [(HeaderName, &'static str); 4] = [
        (CONTENT_TYPE, content_type),
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    (status, headers, body.into()).into_response()
}

/// The page, with everything filled in but the nonce of one answer.
struct Page(String);

impl Page {
    fn new(settings: &PageSettings) -> Self {
        // Listening everywhere, or on loopback: reachable by the name that the visitor used.
        let named = |address: SocketAddr| !address.ip().is_unspecified() && !address.ip().is_loopback();
        let host = settings.websocket.or(settings.tls).filter(|&address| named(address));
        let port = |address: Option<SocketAddr>| address.map(|address| address.port().to_string()).unwrap_or_default();
        let page = include_str!("page.html")
            .replace("{{host}}", &host.map(|address| address.ip().to_canonical().to_string()).unwrap_or_default())
            .replace("{{port}}", &port(settings.websocket))
            .replace("{{tls_port}}", &port(settings.tls))
            .replace("{{path}}", &escaped(&settings.path))
            .replace("{{version}}", env!("CARGO_PKG_VERSION"));
        Self(page)
    }

    fn with_nonce(&self, nonce: &str) -> String {
        self.0.replace("{{nonce}}", nonce)
    }
}

/// `text` as the value of a quoted HTML attribute. A `{` is escaped too, so that no text can be taken for a blank.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' | '<' | '>' | '"' | '\'' | '{' => escaped.push_str(&format!("&#{};", u32::from(character))),
            _ => escaped.push(character),
        }
    }
    escaped
}

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=utf-8";
/// Request line and headers; beyond, 431.
const HEAD_BYTES_MAX: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_is_filled_in_and_foreign_text_stays_text() {
        let check = |address: &str, path: &str, expected: &str| {
            let (websocket, tls) = address.split_once(' ').unwrap_or((address, ""));
            let (websocket, tls) = (websocket.parse().ok(), tls.parse().ok());
            let page = Page::new(&PageSettings { websocket, tls, path: path.into() });
            let page = page.with_nonce("abc123");
            assert!(page.contains(expected), "{expected}");
            assert!(!page.contains("{{"), "a blank is left");
        };
        check("127.0.0.1:8080", "/ws", r#"data-host="" data-port="8080" data-tls-port="" data-path="/ws""#);
        check("127.0.0.1:8080 127.0.0.1:8443", "/ws", r#"data-host="" data-port="8080" data-tls-port="8443""#);
        check("none 192.0.2.7:8443", "/ws", r#"data-host="192.0.2.7" data-port="" data-tls-port="8443""#);
        check("0.0.0.0:80", "/ws", r#"data-host="" data-port="80""#);
        check("192.0.2.7:8080", "/ws", r#"data-host="192.0.2.7""#);
        check(
            "127.0.0.1:1",
            r#"/"><script>{{nonce}}"#,
            r#"data-path="/&#34;&#62;&#60;script&#62;&#123;&#123;nonce}}""#,
        );
    }
}
