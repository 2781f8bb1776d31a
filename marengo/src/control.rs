//! What the control socket and the listen address answer.

use std::collections::BTreeMap;

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, Path, rejection::BytesRejection},
    http::{Response, StatusCode},
    response::IntoResponse as _,
    routing::{get, post},
};
use bytes::Bytes;
use marengo_core::membership::{SyncMessage, SyncRefusal};
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    api::{MemberView, StatusView, VersionView},
    config::ServerConfig,
    converge, gossip, http,
};

/// The control socket takes no bodies worth speaking of.
const MAX_CONTROL_BODY: usize = 64 << 10;
/// An exchange of ten thousand members.
const MAX_SYNC_BODY: usize = 4 << 20;

/// The doors to the two tasks that know something.
#[derive(Clone, Debug)]
pub(crate) struct Doors {
    pub gossip: mpsc::Sender<gossip::Request>,
    pub converge: mpsc::Sender<converge::Request>,
    pub config: ServerConfig,
    /// What is wrong with this node's address, as a sentence.
    pub address_problem: watch::Receiver<Option<String>>,
    /// For tests: makes the task of a name panic.
    pub faults: Option<watch::Sender<String>>,
}

/// The control socket's paths.
pub(crate) fn control_router(doors: Doors) -> Router {
    let router = Router::new()
        .route("/v1/members", get(members))
        .route("/v1/peers", get(peers))
        .route("/v1/status", get(status))
        .route("/v1/version", get(version));
    let router = if doors.faults.is_some() {
        router.route("/v1/panic/{task}", post(panic_in))
    } else {
        router
    };
    http::bounded(router.layer(Extension(doors)), MAX_CONTROL_BODY)
}

/// The listen address's paths.
pub(crate) fn node_router(doors: Doors) -> Router {
    let router = Router::new()
        .route("/v1/node", get(node))
        .route("/v1/sync", post(sync).layer(DefaultBodyLimit::max(MAX_SYNC_BODY)))
        .route("/healthz", get(healthz))
        .layer(Extension(doors));
    http::bounded(router, MAX_CONTROL_BODY)
}

/// A task that does not answer is going down.
fn going_down() -> Response<Body> {
    http::error(StatusCode::SERVICE_UNAVAILABLE, "the daemon is shutting down")
}

async fn ask<T, R>(
    to: &mpsc::Sender<R>,
    request: impl FnOnce(oneshot::Sender<T>) -> R,
) -> Option<T> {
    let (answer, answered) = oneshot::channel();
    to.send(request(answer)).await.ok()?;
    answered.await.ok()
}

async fn members(Extension(doors): Extension<Doors>) -> Response<Body> {
    let Some(members) = ask(&doors.gossip, gossip::Request::Members).await else {
        return going_down();
    };
    Json(views(&members)).into_response()
}

fn views(members: &gossip::Members) -> Vec<MemberView> {
    members
        .all
        .iter()
        .map(|member| MemberView {
            name: member.identity.name.to_string(),
            address: member.identity.addr,
            vtep: member.identity.vtep,
            listen: member.identity.listen,
            state: member.state.name().to_owned(),
            generation: member.identity.generation.0,
            this_node: member.identity.addr == members.me.addr,
        })
        .collect()
}

async fn peers(Extension(doors): Extension<Doors>) -> Response<Body> {
    match ask(&doors.converge, converge::Request::Peers).await {
        Some(Ok(peers)) => Json(peers).into_response(),
        Some(Err(error)) => http::error(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")),
        None => going_down(),
    }
}

async fn status(Extension(doors): Extension<Doors>) -> Response<Body> {
    let members = ask(&doors.gossip, gossip::Request::Members).await;
    let data_plane = ask(&doors.converge, converge::Request::Status).await;
    let (Some(members), Some(data_plane)) = (members, data_plane) else { return going_down() };
    let config = &doors.config;
    let mut by_state: BTreeMap<String, u64> = ["alive", "suspect", "restarting", "down", "left"]
        .map(|state| (state.to_owned(), 0))
        .into();
    for member in &members.all {
        *by_state.entry(member.state.name().to_owned()).or_default() += 1;
    }
    let status = StatusView {
        node: members.me.name.to_string(),
        version: crate::version::VERSION.to_owned(),
        commit: crate::version::COMMIT.to_owned(),
        cluster: config.cluster.to_string(),
        address: members.me.addr,
        vtep: members.me.vtep,
        data_plane: members.me.data_plane.to_string(),
        listen: members.me.listen,
        bridge: config.bridge.to_string(),
        device: config.device.to_string(),
        pin_dir: config.pin_dir.display().to_string(),
        vni: config.vni.get(),
        vxlan_port: config.vxlan_port,
        mtu: data_plane.mtu,
        converged: data_plane.converged,
        repairs: data_plane.repairs,
        rounds: data_plane.rounds,
        error: data_plane.error,
        attach: data_plane.attach.to_owned(),
        members: by_state,
        peers: data_plane.peers,
        held: data_plane.held,
        holds: data_plane.holds,
        held_reasons: data_plane.held_reasons,
        peers_without_slot: data_plane.peers_without_slot,
        address_problem: doors.address_problem.borrow().clone(),
        conflicts: members.conflicts,
        fights: data_plane.fights,
        fights_total: data_plane.fights_total,
        drops: data_plane.drops,
        gossip: members.counters,
    };
    Json(status).into_response()
}

/// Only there with `--faults`.
async fn panic_in(Extension(doors): Extension<Doors>, Path(task): Path<String>) {
    if let Some(faults) = &doors.faults {
        faults.send_replace(task);
    }
}

async fn version() -> Json<VersionView> {
    Json(VersionView::this_build())
}

async fn node(Extension(doors): Extension<Doors>) -> Response<Body> {
    let Some(members) = ask(&doors.gossip, gossip::Request::Members).await else {
        return going_down();
    };
    let me = views(&members).into_iter().find(|member| member.this_node);
    Json(serde_json::json!({
        "cluster": doors.config.cluster.as_str(),
        "version": VersionView::this_build(),
        "node": me,
    }))
    .into_response()
}

async fn healthz() -> Json<serde_json::Value> {
    Json(serde_json::json!({ "ok": true }))
}

/// What is judged before the rest of an exchange is read: another protocol's may look different.
#[derive(Deserialize)]
struct SyncHead {
    protocol: u32,
    cluster: String,
}

async fn sync(
    Extension(doors): Extension<Doors>,
    body: Result<Bytes, BytesRejection>,
) -> Response<Body> {
    let body = match body {
        Ok(body) => body,
        Err(rejection) => return http::error(rejection.status(), rejection.body_text()),
    };
    let not_json = |error: serde_json::Error| {
        let message = format!("the body is no exchange of members: {error}");
        http::error(StatusCode::BAD_REQUEST, message)
    };
    let head: SyncHead = match serde_json::from_slice(&body) {
        Ok(head) => head,
        Err(error) => return not_json(error),
    };
    let our_protocol = VersionView::this_build().protocol;
    if head.protocol != our_protocol || head.cluster != doors.config.cluster.as_str() {
        let refusal = SyncRefusal::Mismatch {
            our_protocol,
            our_cluster: doors.config.cluster,
            their_protocol: head.protocol,
            their_cluster: head.cluster.chars().take(32).collect(),
        };
        return http::error(StatusCode::CONFLICT, refusal.to_string());
    }
    let message: Box<SyncMessage> = match serde_json::from_slice(&body) {
        Ok(message) => message,
        Err(error) => return not_json(error),
    };
    match ask(&doors.gossip, |answer| gossip::Request::Sync(message, answer)).await {
        Some(Ok(reply)) => Json(reply).into_response(),
        Some(Err(refusal)) => http::error(StatusCode::CONFLICT, refusal.to_string()),
        None => going_down(),
    }
}
