//! The seeds' addresses, looked up again and again: a name may stand for another host tomorrow.

use std::{net::SocketAddr, time::Duration};

use tokio::{net::lookup_host, sync::mpsc, time::sleep};
use tracing::{info, warn};

use super::Request;
use crate::values::Seed;

const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Between two look-ups when all is well, and the longest wait when it is not.
const AGAIN: Duration = Duration::from_secs(30);
/// A name may stand for many hosts; so many of them are asked.
const MAX_PER_NAME: usize = 32;

/// Tells the gossip task the seeds' addresses until it is gone.
pub(super) async fn keep_resolved(seeds: Vec<Seed>, requests: mpsc::Sender<Request>) {
    let mut wait = FIRST_RETRY;
    let mut failing = false;
    loop {
        let (addresses, failure) = resolve(&seeds).await;
        if requests.send(Request::Seeds(addresses)).await.is_err() {
            return;
        }
        match &failure {
            Some((name, error)) if !failing => {
                warn!(seed = %name, %error, "failed to look up a seed's name; trying again");
            }
            None if failing => info!("all seeds' names are known again"),
            _ => {}
        }
        failing = failure.is_some();
        if seeds.iter().all(|seed| matches!(seed, Seed::Address(_))) {
            return;
        }
        wait = if failing { (wait * 2).min(AGAIN) } else { AGAIN };
        sleep(wait).await;
    }
}

async fn resolve(seeds: &[Seed]) -> (Vec<SocketAddr>, Option<(String, String)>) {
    let mut addresses = Vec::new();
    let mut failure = None;
    for seed in seeds {
        match seed {
            Seed::Address(address) => addresses.push(*address),
            Seed::Name(name, port) => match lookup_host((name.as_str(), *port)).await {
                Ok(found) => addresses.extend(found.take(MAX_PER_NAME)),
                Err(error) => failure = Some((name.clone(), error.to_string())),
            },
        }
    }
    addresses.sort_unstable();
    addresses.dedup();
    (addresses, failure)
}
