//! HTTP for the control socket and the listen address: bounded, and every error has a JSON body.

mod bad_request;

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::DefaultBodyLimit,
    http::{Request, Response, StatusCode},
    middleware,
    response::IntoResponse as _,
};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::AbortHandle,
};
use tokio_util::sync::CancellationToken;
use tower_service::Service as _;

use self::bad_request::ExplainedErrors;
use crate::tasks::Spawner;

/// Connections of one server at a time.
const MAX_CONNECTIONS: usize = 32;
/// A request's head takes no longer than that to arrive.
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// A connection lasts no longer than that, whatever it does.
const CONNECTION_WITHIN: Duration = Duration::from_secs(30);

/// The body of every error.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct ErrorBody {
    /// One sentence.
    pub error: String,
}

/// Answers an error with a JSON body.
pub(crate) fn error(status: StatusCode, message: impl Into<String>) -> Response<Body> {
    (status, Json(ErrorBody { error: message.into() })).into_response()
}

/// Bounds the bodies of a router's requests and gives all of its errors a JSON body.
pub(crate) fn bounded(router: Router, max_body: usize) -> Router {
    router
        .fallback(|| async { error(StatusCode::NOT_FOUND, "there is no such path") })
        .layer(middleware::map_response(explain))
        .layer(DefaultBodyLimit::max(max_body))
}

/// Axum's own errors are plain text, or nothing.
async fn explain(response: Response<Body>) -> Response<Body> {
    let status = response.status();
    let is_json = response
        .headers()
        .get("content-type")
        .is_some_and(|value| value.as_bytes().starts_with(b"application/json"));
    if is_json || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let (parts, body) = response.into_parts();
    let text = axum::body::to_bytes(body, 4096).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let reason = status.canonical_reason().unwrap_or("error").to_lowercase();
    let mut answer = error(status, if text.is_empty() { reason } else { text });
    // A 405 says which methods there are.
    if let Some(allow) = parts.headers.get("allow") {
        answer.headers_mut().insert("allow", allow.clone());
    }
    answer
}

/// Something that connections come from.
pub(crate) trait Listener {
    /// A connection.
    type Connection: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// Waits for the next one.
    fn accept(&self) -> impl Future<Output = std::io::Result<Self::Connection>>;
}

impl Listener for tokio::net::TcpListener {
    type Connection = tokio::net::TcpStream;
    async fn accept(&self) -> std::io::Result<Self::Connection> {
        Ok(Self::accept(self).await?.0)
    }
}

impl Listener for tokio::net::UnixListener {
    type Connection = tokio::net::UnixStream;
    async fn accept(&self) -> std::io::Result<Self::Connection> {
        Ok(Self::accept(self).await?.0)
    }
}

/// A connection that is being served.
struct Served {
    handle: AbortHandle,
    /// Whether a request is being answered on it.
    busy: Arc<AtomicBool>,
}

/// Serves until cancelled.
///
/// When there is no room for a new connection, the oldest one that is not being answered makes some:
/// whoever only holds connections open does not shut others out.
pub(crate) async fn serve(
    listener: impl Listener,
    router: Router,
    cancel: CancellationToken,
    spawner: Spawner,
) {
    let mut connections: VecDeque<Served> = VecDeque::new();
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                // A connection that was gone before it was taken, or no descriptor left for it.
                if !failing {
                    tracing::warn!(%error, "failed to accept a connection");
                }
                failing = true;
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        failing = false;
        connections.retain(|connection| !connection.handle.is_finished());
        if connections.len() >= MAX_CONNECTIONS {
            let idle = |connection: &Served| !connection.busy.load(Ordering::Relaxed);
            let oldest = connections.iter().position(idle).unwrap_or(0);
            if let Some(connection) = connections.remove(oldest) {
                connection.handle.abort();
            }
        }
        let busy = Arc::new(AtomicBool::new(false));
        let serving = connection(stream, router.clone(), Arc::clone(&busy));
        let task = spawner.spawn("connection", serving);
        connections.push_back(Served { handle: task.abort_handle(), busy });
    }
    for connection in connections {
        connection.handle.abort();
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    busy: Arc<AtomicBool>,
) {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let mut router = router.clone();
        let busy = Arc::clone(&busy);
        async move {
            busy.store(true, Ordering::Relaxed);
            let answer = router.call(request.map(Body::new)).await;
            busy.store(false, Ordering::Relaxed);
            answer.map_err(|never: Infallible| match never {})
        }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(16 * 1024)
        .keep_alive(true)
        .serve_connection(ExplainedErrors::new(TokioIo::new(stream)), service);
    match tokio::time::timeout(CONNECTION_WITHIN, served).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => tracing::debug!(%error, "an HTTP connection ended early"),
    }
}
