//! Full exchanges of the membership that this node begins.

use std::{net::SocketAddr, time::Duration};

use marengo_core::membership::SyncMessage;
use tokio::sync::mpsc;
use tracing::warn;

use super::Request;
use crate::{client, http::ErrorBody};

/// An exchange that takes longer has failed; another one follows.
const WITHIN: Duration = Duration::from_secs(5);

/// Sends this node's view and hands the other's to the gossip task.
pub(super) async fn with_node(
    with: SocketAddr,
    message: SyncMessage,
    requests: mpsc::Sender<Request>,
) {
    let json = match serde_json::to_vec(&message) {
        Ok(json) => json,
        Err(error) => {
            warn!(%error, "failed to write the membership as JSON");
            return;
        }
    };
    let answer = match client::post_tcp(with, "/v1/sync", json, WITHIN).await {
        Ok(answer) => answer,
        Err(error) => {
            requests.send(Request::SyncFailed(with, format!("{error:#}"))).await.ok();
            return;
        }
    };
    if !answer.status.is_success() {
        let reason = serde_json::from_slice::<ErrorBody>(&answer.body).map(|body| body.error);
        let reason = reason.unwrap_or_else(|_| answer.status.to_string());
        warn!(%with, %reason, "a node refused to exchange the membership");
        return;
    }
    match serde_json::from_slice(&answer.body) {
        Ok(reply) => {
            requests.send(Request::SyncReply(with, Box::new(reply))).await.ok();
        }
        Err(error) => warn!(%with, %error, "a node answered with something else than a membership"),
    }
}
