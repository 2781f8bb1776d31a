//! A small HTTP client: one request a connection, JSON both ways, bounded in size and time.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Request, StatusCode,
    body::{Body, Bytes},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};

/// The most bytes of an answer: ten thousand members.
const MAX_ANSWER: usize = 4 << 20;

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: StatusCode,
    pub body: Bytes,
}

/// Asks the control socket.
pub(crate) async fn get_unix(socket: &Path, path: &str, within: Duration) -> Result<Answer> {
    timeout(within, async {
        let stream = UnixStream::connect(socket).await?;
        let request = Request::get(path).header("host", "marengo").body(Full::<Bytes>::default())?;
        exchange(stream, request).await
    })
    .await
    .context("no answer in time")?
}

/// Posts JSON to a node's HTTP service.
pub(crate) async fn post_tcp(
    address: SocketAddr,
    path: &str,
    json: Vec<u8>,
    within: Duration,
) -> Result<Answer> {
    timeout(within, async {
        let stream = TcpStream::connect(address).await?;
        let request = Request::post(path)
            .header("host", address.to_string())
            .header("content-type", "application/json")
            .body(Full::<Bytes>::from(json))?;
        exchange(stream, request).await
    })
    .await
    .context("no answer in time")?
}

async fn exchange<B>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<B>,
) -> Result<Answer>
where
    B: Body<Data: Send, Error: std::error::Error + Send + Sync> + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = match Limited::new(response.into_body(), MAX_ANSWER).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => bail!("the answer broke off: {error}"),
    };
    connection.abort();
    Ok(Answer { status, body })
}
