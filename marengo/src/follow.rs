//! This node's underlay address, followed when the host is given another.
//!
//! The address that a node advertises is where everybody sends, so it is kept for as long as the host
//! has it, whatever else the host is given. When it is gone, and stays so for a moment (a DHCP client
//! may take an address off and put it back), the address that others can reach by now takes its
//! place: in gossip, in the data plane, and for the HTTP service. An address that the operator named
//! is not replaced; the log and `marengo status` say that it is gone.

mod decide;

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use axum::Router;
use marengo_core::members::PeerTable;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::decide::{Decision, Seen, Standing};
use crate::{
    config::{AddressSource, Addresses, ServerConfig},
    converge, gossip, http,
    kernel::{Underlay, monitor},
    preflight,
    tasks::Spawner,
    values::Seed,
};

/// While the address is gone, the host is looked at so often.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The same after [`LONG_GONE`].
const LOOK_SELDOM: Duration = Duration::from_secs(1);
const LONG_GONE: Duration = Duration::from_secs(30);
/// A report may be lost.
const LOOK_ANYWAY: Duration = Duration::from_secs(5);
/// So many peers are asked the way to: the source of a way there is an address of ours.
const WAYS: usize = 4;

/// What the task is made of.
pub(crate) struct Follow {
    pub config: ServerConfig,
    pub addresses: Addresses,
    pub gossip: mpsc::Sender<gossip::Request>,
    pub converge: mpsc::Sender<converge::Request>,
    pub peers: watch::Receiver<PeerTable>,
    /// What the HTTP service answers, for a listener on another address.
    pub node: Router,
    /// Ends the listener of now.
    pub serving: CancellationToken,
    /// Ends every listener.
    pub stop_http: CancellationToken,
    pub spawner: Spawner,
    /// What is wrong with the address, as a sentence.
    pub problem: watch::Sender<Option<String>>,
}

impl Follow {
    /// Follows the address until the daemon stops.
    pub(crate) async fn run(mut self) {
        let mut standing = Standing::new(self.addresses.advertise.ip());
        let mut reports = None;
        let mut failing: Option<String> = None;
        loop {
            if reports.is_none() {
                reports = match monitor::addresses(&self.spawner) {
                    Ok(reports) => Some(reports),
                    Err(error) => {
                        debug!(error = format!("{error:#}"), "address reports cannot be read");
                        None
                    }
                };
            }
            let error = self.look(&mut standing).await.err().map(|error| format!("{error:#}"));
            if let Some(error) = error.as_ref().filter(|error| failing.as_ref() != Some(*error)) {
                warn!(error, "failed to follow the host's address; trying again");
            }
            failing = error;
            self.serve_again();
            let wait = match standing.gone_for(Instant::now()) {
                None => LOOK_ANYWAY,
                Some(gone) if gone > LONG_GONE => LOOK_SELDOM,
                Some(_) => LOOK_EVERY,
            };
            let reported = async {
                match &mut reports {
                    Some(reports) => reports.changed().await.is_ok(),
                    None => std::future::pending().await,
                }
            };
            if matches!(timeout(wait, reported).await, Ok(false)) {
                reports = None;
                sleep(LOOK_EVERY).await;
            }
        }
    }

    async fn look(&mut self, standing: &mut Standing) -> Result<()> {
        let underlay = Underlay::open()?;
        let seen = self.see(&underlay, standing.address()).await?;
        match standing.decide(Instant::now(), seen) {
            Decision::Stay => {}
            Decision::Back => {
                info!(address = %standing.address(), "this node's address is back");
                self.problem.send_replace(None);
            }
            Decision::Gone => {
                let problem = self.problem(standing.address());
                warn!(address = %standing.address(), problem, "this node's address is gone");
                self.problem.send_replace(Some(problem));
            }
            Decision::Change(address) => {
                info!(before = %standing.address(), now = %address,
                    "this host has another address; telling the others");
                self.change(address).await?;
                *standing = Standing::new(address);
                self.problem.send_replace(None);
            }
        }
        Ok(())
    }

    /// Looks whether the host has the address, and for one in its place if not.
    async fn see(&self, underlay: &Underlay, address: IpAddr) -> Result<Seen> {
        let device = underlay.device_of(address).await?;
        if let Some(device) = device {
            return Ok(Seen::Here { device });
        }
        let other = match self.config.address_source() {
            AddressSource::Fixed(_) => None,
            AddressSource::Interface(name) => {
                underlay.interface_address(&name, Some(address.is_ipv4())).await?
            }
            AddressSource::Route => {
                underlay.default_address(&self.ways(), Some(address.is_ipv4())).await?
            }
        };
        let Some(other) = other else { return Ok(Seen::Gone) };
        Ok(Seen::Other { address: other, device: underlay.device_of(other).await? })
    }

    /// Where to: peers that there are, and seeds.
    fn ways(&self) -> Vec<SocketAddr> {
        let peers = self.peers.borrow();
        let peers = peers.iter().take(WAYS).map(|peer| peer.identity.addr);
        let seeds = self.config.join.iter().filter_map(|seed| match seed {
            Seed::Address(address) => Some(*address),
            Seed::Name(..) => None,
        });
        peers.chain(seeds).collect()
    }

    fn problem(&self, address: IpAddr) -> String {
        match self.config.address_source() {
            AddressSource::Fixed(flag) => format!(
                "{address} ({flag}) is no longer an address of this host: give it back, or start the \
                 daemon with the new one; without {flag}, or with the name of an interface in its \
                 place, it would follow"
            ),
            AddressSource::Interface(name) => {
                format!("{address} is gone, and the interface {name} has no other address yet")
            }
            AddressSource::Route => {
                format!("{address} is gone, and no route leads out from another address yet")
            }
        }
    }

    /// Goes on under another address.
    async fn change(&mut self, address: IpAddr) -> Result<()> {
        let before = self.addresses;
        self.addresses = self.config.addresses(address);
        // First: the others come at once.
        if self.addresses.listen != before.listen {
            self.serving.cancel();
            self.serve_again();
        }
        let (answer, answered) = oneshot::channel();
        let request = gossip::Request::ChangeAddress(self.addresses, answer);
        let gone = "the daemon is shutting down";
        self.converge.send(converge::Request::ChangeVtep(address)).await.context(gone)?;
        self.gossip.send(request).await.context(gone)?;
        answered.await.context(gone)??;
        Ok(())
    }

    /// Listens where the HTTP service should be, if it is not there.
    fn serve_again(&mut self) {
        if !self.serving.is_cancelled() || self.stop_http.is_cancelled() {
            return;
        }
        let listener = match preflight::http_socket(self.addresses.listen) {
            Ok(listener) => tokio::net::TcpListener::from_std(listener),
            Err(failure) => {
                let problem = failure.to_string();
                if self.problem.borrow().as_ref() != Some(&problem) {
                    warn!(problem, "the HTTP service cannot listen on the new address");
                    self.problem.send_replace(Some(problem));
                }
                return;
            }
        };
        let Ok(listener) = listener else { return };
        self.serving = self.stop_http.child_token();
        let serving =
            http::serve(listener, self.node.clone(), self.serving.clone(), self.spawner.clone());
        self.spawner.spawn("node", serving);
        self.problem.send_replace(None);
    }
}
