//! The seeds' addresses, looked up again and again: a name may stand for another host tomorrow.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use tokio::{net::lookup_host, sync::mpsc, time::sleep};
use tracing::{info, warn};

use super::Request;
use crate::values::Seed;

const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Between two look-ups when all is well, and the longest wait when it is not.
const AGAIN: Duration = Duration::from_secs(30);
/// A name may stand for many hosts; so many of them are asked.
const MAX_PER_NAME: usize = 32;

/// The membership asks so many seeds at a time (`Membership::set_seeds`).
const ASKED_AT_ONCE: usize = 64;

/// Tells the gossip task the seeds' addresses until it is gone, and behind them those that were
/// remembered, in turns if they are many. Addresses are told at once; a name that cannot be looked up
/// keeps the addresses that it had.
pub(super) async fn keep_resolved(
    seeds: Vec<Seed>,
    mut remembered: Vec<SocketAddr>,
    requests: mpsc::Sender<Request>,
) {
    let mut known: BTreeMap<&Seed, Vec<SocketAddr>> = BTreeMap::new();
    for seed in &seeds {
        if let Seed::Address(address) = seed {
            known.insert(seed, vec![*address]);
        }
    }
    let mut wait = FIRST_RETRY;
    let mut failing = false;
    loop {
        if requests.send(Request::Seeds(addresses(&known, &remembered))).await.is_err() {
            return;
        }
        let mut failure = None;
        for seed in &seeds {
            let Seed::Name(name, port) = seed else { continue };
            match lookup_host((name.as_str(), *port)).await {
                Ok(found) => {
                    known.insert(seed, found.take(MAX_PER_NAME).collect());
                    if requests.send(Request::Seeds(addresses(&known, &remembered))).await.is_err()
                    {
                        return;
                    }
                }
                Err(error) => failure = Some((name, error)),
            }
        }
        let fixed = seeds.iter().all(|seed| matches!(seed, Seed::Address(_)));
        if fixed && seeds.len() + remembered.len() <= ASKED_AT_ONCE {
            return;
        }
        let turn = (ASKED_AT_ONCE / 2).min(remembered.len());
        remembered.rotate_left(turn);
        match &failure {
            Some((name, error)) if !failing => {
                warn!(seed = %name, %error, "failed to look up a seed's name; trying again");
            }
            None if failing => info!("all seeds' names are known again"),
            _ => {}
        }
        failing = failure.is_some();
        wait = if failing { (wait * 2).min(AGAIN) } else { AGAIN };
        sleep(wait).await;
    }
}

fn addresses(
    known: &BTreeMap<&Seed, Vec<SocketAddr>>,
    remembered: &[SocketAddr],
) -> Vec<SocketAddr> {
    let mut addresses: Vec<SocketAddr> = known.values().flatten().copied().collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.extend(remembered);
    addresses
}
