//! One GET of a key set over HTTP or HTTPS.
//! Law: it ends in time, keeps no more bytes than it may, and follows no redirect: what answers is what was configured.

use std::error::Error as _;
use std::future::pending;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, CACHE_CONTROL, CONNECTION, HOST, USER_AGENT};
use http::{HeaderMap, Request, Uri};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::tls::trust;

/// Why there is no answer that counts.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("no connection: {0}")]
    Unreachable(io::Error),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("the answer breaks off or is no HTTP: {0}")]
    Http(String),
    #[error("the answer is {0}; 200 is expected, and redirects are not followed")]
    Status(http::StatusCode),
    #[error("the answer is longer than {0} bytes")]
    TooLarge(usize),
}

/// What was answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) body: Bytes,
    /// For how long it may be kept, if that is said.
    pub(super) max_age: Option<Duration>,
}

/// Fetches `url`, which is `http`, or `https` if there is `tls`.
pub(super) async fn fetch(
    url: &Uri,
    timeout: Duration,
    bytes_max: usize,
    tls: Option<&Arc<ClientConfig>>,
) -> Result<Answer, FetchError> {
    tokio::time::timeout(timeout, connect_and_ask(url, bytes_max, tls))
        .await
        .map_err(|_| FetchError::Timeout(timeout))?
}

async fn connect_and_ask(url: &Uri, bytes_max: usize, tls: Option<&Arc<ClientConfig>>) -> Result<Answer, FetchError> {
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_tls = url.scheme_str() == Some("https");
    let port = url.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let stream = TcpStream::connect((host, port)).await.map_err(FetchError::Unreachable)?;
    let Some(tls) = tls.filter(|_| is_tls) else { return ask(stream, url, bytes_max).await };
    let name =
        ServerName::try_from(host.to_owned()).map_err(|error| FetchError::Unreachable(io::Error::other(error)))?;
    let stream = TlsConnector::from(tls.clone()).connect(name, stream).await.map_err(FetchError::Unreachable)?;
    ask(stream, url, bytes_max).await
}

async fn ask(stream: impl AsyncRead + AsyncWrite + Unpin, url: &Uri, bytes_max: usize) -> Result<Answer, FetchError> {
    let broken = |error: hyper::Error| FetchError::Http(with_cause(&error));
    let request = Request::get(url.path_and_query().map_or("/", |path| path.as_str()))
        .header(HOST, url.authority().map_or("", |authority| authority.as_str()))
        .header(USER_AGENT, concat!("tidewheel/", env!("CARGO_PKG_VERSION")))
        .header(ACCEPT, "application/jwk-set+json, application/json")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| FetchError::Http(error.to_string()))?;
    let (mut sender, connection) =
        http1::Builder::new().max_buf_size(HEAD_BYTES_MAX).handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        if response.status() != http::StatusCode::OK {
            return Err(FetchError::Status(response.status()));
        }
        let max_age = max_age(response.headers());
        let body = Limited::new(response.into_body(), bytes_max).collect().await.map_err(|error| match error
            .downcast::<LengthLimitError>(
        ) {
            Ok(_) => FetchError::TooLarge(bytes_max),
            Err(error) => FetchError::Http(error.to_string()),
        })?;
        Ok(Answer { body: body.to_bytes(), max_age })
    };
    // The connection moves the bytes and knows nothing that the exchange is not told.
    let mut drive = pin!(async {
        let _ = connection.await;
        pending::<()>().await;
    });
    tokio::select! {
        answer = exchange => answer,
        () = &mut drive => unreachable!("it is pending"),
    }
}

/// For how long an answer is fresh (RFC 9111 §5.2.2).
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let directives: Vec<_> = values.flat_map(|value| value.split(',')).map(str::trim).collect();
    if directives.iter().any(|one| ["no-cache", "no-store"].iter().any(|word| one.eq_ignore_ascii_case(word))) {
        return Some(Duration::ZERO);
    }
    directives.iter().find_map(|directive| {
        let (name, seconds) = directive.split_once('=')?;
        let seconds = seconds.trim_matches('"').parse().ok()?;
        name.eq_ignore_ascii_case("max-age").then(|| Duration::from_secs(seconds))
    })
}

/// What a connection to an `https` source trusts: the certificates of this PEM text, or those that the machine does.
///
/// # Errors
/// There are none.
pub(super) fn trust(pem: Option<&[u8]>) -> Result<Arc<ClientConfig>, String> {
    let roots = match pem {
        Some(pem) => trust::of_pem(pem)?,
        None => trust::of_machine().ok_or("is null, and this machine trusts no certificates; write a PEM file")?,
    };
    trust::client(roots).map(Arc::new)
}

fn with_cause(error: &hyper::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// Bytes of the head of an answer.
const HEAD_BYTES_MAX: usize = 32 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        let check = |values: &[&str], expected: Option<u64>| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(CACHE_CONTROL, value.parse().unwrap());
            }
            assert_eq!(max_age(&headers), expected.map(Duration::from_secs), "{values:?}");
        };
        check(&[], None);
        check(&["public, max-age=300, must-revalidate"], Some(300));
        check(&["public", "MAX-AGE=\"60\""], Some(60));
        check(&["max-age=-1"], None);
        check(&["max-age=soon"], None);
        check(&["s-maxage=300"], None);
        check(&["max-age=300, no-cache"], Some(0));
        check(&["no-store"], Some(0));
    }

    #[test]
    fn certificates() {
        let check = |pem: &str, said: &str| assert!(trust(Some(pem.as_bytes())).unwrap_err().contains(said), "{pem}");
        check("", "holds no certificate");
        check("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "cannot be used");
        check("-----BEGIN CERTIFICATE-----\nAAAA\n", "is no PEM text");
    }
}
