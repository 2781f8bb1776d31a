//! The commands that ask a running daemon.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use serde::de::DeserializeOwned;

use crate::{
    api::{MemberView, PeerView, StatusView, VersionView},
    cli::Output,
    client,
    config::GlobalConfig,
    failure::{Failure, Kind, OrFailure as _},
    http::ErrorBody,
};

/// A daemon that is alive answers within this.
const WITHIN: Duration = Duration::from_secs(5);
/// Held peers that `status` tells one by one.
const HELD_SHOWN: usize = 8;

/// `marengo members`
pub(crate) async fn members(config: &GlobalConfig, output: Output) -> Result<(), Failure> {
    let (json, members): (_, Vec<MemberView>) = ask(config, "/v1/members").await?;
    print(output, &json, || {
        let mut rows = vec![["NAME", "ADDRESS", "VTEP", "STATE"].map(str::to_owned).to_vec()];
        rows.extend(members.iter().map(|member| {
            let mark = if member.this_node { " *" } else { "" };
            vec![
                format!("{}{mark}", member.name),
                member.address.to_string(),
                member.vtep.to_string(),
                member.state.clone(),
            ]
        }));
        table(&rows, 0)
    })
}

/// `marengo peers`
pub(crate) async fn peers(config: &GlobalConfig, output: Output) -> Result<(), Failure> {
    let (json, peers): (_, Vec<PeerView>) = ask(config, "/v1/peers").await?;
    print(output, &json, || {
        let heads = [
            "NAME",
            "INDEX",
            "VTEP",
            "GENERATION",
            "STATE",
            "HEARD",
            "TX PACKETS",
            "TX BYTES",
            "RX PACKETS",
            "RX BYTES",
        ];
        let mut rows = vec![heads.map(str::to_owned).to_vec()];
        rows.extend(peers.iter().map(|peer| {
            let heard = peer.heard_seconds_ago;
            vec![
                if peer.name.is_empty() { "-".to_owned() } else { peer.name.clone() },
                peer.index.to_string(),
                peer.vtep.to_string(),
                peer.generation.to_string(),
                peer.state.clone(),
                heard.map_or_else(|| "never".to_owned(), |seconds| format!("{seconds:.1}s ago")),
                peer.tx_packets.to_string(),
                peer.tx_bytes.to_string(),
                peer.rx_packets.to_string(),
                peer.rx_bytes.to_string(),
            ]
        }));
        let held = peers.iter().filter_map(|peer| {
            let name = if peer.name.is_empty() { peer.vtep.to_string() } else { peer.name.clone() };
            Some(format!("{name} is held: {}\n", peer.held.as_ref()?))
        });
        table(&rows, 6) + &held.collect::<String>()
    })
}

/// `marengo status`
pub(crate) async fn status(config: &GlobalConfig, output: Output) -> Result<(), Failure> {
    let (json, status): (_, StatusView) = ask(config, "/v1/status").await?;
    print(output, &json, || {
        let counts = |map: &std::collections::BTreeMap<String, u64>| {
            let parts: Vec<String> = map
                .iter()
                .filter(|(_, count)| **count > 0)
                .map(|(name, count)| format!("{name} {count}"))
                .collect();
            if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
        };
        let state = match &status.error {
            Some(error) => format!("no: {error}"),
            None => (if status.converged { "yes" } else { "not yet" }).to_owned(),
        };
        let peers = match status.held {
            0 => status.peers.to_string(),
            held => format!("{}, {held} of them held", status.peers),
        };
        let mut rows = vec![
            ("node", status.node.clone()),
            ("version", format!("{} ({})", status.version, status.commit)),
            ("cluster", status.cluster.clone()),
            ("address", status.address.to_string()),
            ("vtep", status.vtep.to_string()),
            ("listens on", status.listen.to_string()),
            ("bridge", format!("{}, device {}", status.bridge, status.device)),
            ("vni", format!("{}, udp port {}", status.vni, status.vxlan_port)),
            ("mtu", status.mtu.to_string()),
            ("programs", format!("{}, pinned in {}", status.attach, status.pin_dir)),
            ("converged", state),
            ("repairs", format!("{} in {} rounds", status.repairs, status.rounds)),
            ("members", counts(&status.members)),
            ("peers", peers),
            ("drops", counts(&status.drops)),
            (
                "gossip",
                format!(
                    "{} received, {} sent, refused: {}",
                    status.gossip.datagrams_received,
                    status.gossip.datagrams_sent,
                    counts(&status.gossip.rejected)
                ),
            ),
        ];
        if !status.peers_without_slot.is_empty() {
            rows.push(("no room for", status.peers_without_slot.join(", ")));
        }
        rows.extend(status.held_reasons.iter().take(HELD_SHOWN).map(|held| ("held", held.clone())));
        if let Some(more) =
            status.held_reasons.len().checked_sub(HELD_SHOWN).filter(|more| *more > 0)
        {
            rows.push(("held", format!("and {more} more: see `marengo peers`")));
        }
        rows.extend(status.fights.iter().map(|fight| {
            let (object, repairs, seconds) = (&fight.object, fight.repairs, fight.since_seconds);
            let suspect = &fight.suspect;
            let line = format!("over {object}: {repairs} repairs in {seconds}s, with {suspect}");
            ("fight", line)
        }));
        rows.extend(status.address_problem.iter().map(|problem| ("problem", problem.clone())));
        rows.extend(status.conflicts.iter().map(|conflict| ("conflict", conflict.clone())));
        let lines: Vec<String> =
            rows.iter().map(|(name, value)| format!("{name:<12}{value}")).collect();
        lines.join("\n") + "\n"
    })
}

/// `marengo version`: this program's, and the daemon's if one runs.
pub(crate) async fn version(config: &GlobalConfig, output: Output) -> Result<(), Failure> {
    let client = VersionView::this_build();
    let daemon = match ask::<VersionView>(config, "/v1/version").await {
        Ok((_, daemon)) => Some(daemon),
        Err(failure) if failure.kind() == Kind::NotRunning => None,
        Err(failure) => return Err(failure),
    };
    let json = serde_json::json!({ "client": &client, "daemon": &daemon });
    print(output, &json, || {
        let line = |version: &VersionView| {
            format!(
                "{} ({}), gossip protocol {}, maps {}",
                version.version, version.commit, version.protocol, version.abi
            )
        };
        let daemon = daemon.as_ref().map_or_else(|| "not running".to_owned(), line);
        format!("marengo  {}\ndaemon   {daemon}\n", line(&client))
    })?;
    if daemon.is_none() {
        return Err(not_running(config));
    }
    Ok(())
}

async fn ask<T: DeserializeOwned>(
    config: &GlobalConfig,
    path: &str,
) -> Result<(serde_json::Value, T), Failure> {
    let answer = client::get_unix(config.socket.as_path(), path, WITHIN).await;
    let answer =
        answer.map_err(|error| match error.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => not_running(config),
            Some(io::ErrorKind::PermissionDenied) => Failure::new(
                Kind::Permission,
                format!(
                    "not allowed to use {}: run as root or a member of its group",
                    config.socket
                ),
            ),
            _ => error.context(format!("failed to ask the daemon on {}", config.socket)).into(),
        })?;
    if !answer.status.is_success() {
        let body = serde_json::from_slice::<ErrorBody>(&answer.body);
        let reason = body.map_or_else(|_| answer.status.to_string(), |body| body.error);
        return Err(Failure::new(Kind::Failed, format!("the daemon refused: {reason}")));
    }
    let json: serde_json::Value = serde_json::from_slice(&answer.body).or_failure(Kind::Failed)?;
    let view = serde_json::from_value(json.clone()).or_failure(Kind::Failed)?;
    Ok((json, view))
}

fn not_running(config: &GlobalConfig) -> Failure {
    let message = format!(
        "no daemon answers on {}: start one with `marengo server`, or name its socket with --socket",
        config.socket
    );
    Failure::new(Kind::NotRunning, message)
}

fn print(
    output: Output,
    json: &serde_json::Value,
    text: impl FnOnce() -> String,
) -> Result<(), Failure> {
    let text = if output.json {
        serde_json::to_string_pretty(json).or_failure(Kind::Failed)? + "\n"
    } else {
        text()
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        // Somebody reads only the head of it.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.or_failure(Kind::Failed),
    }
}

/// Aligns columns: text to the left, and those from `numbers` on (if not 0) to the right.
fn table(rows: &[Vec<String>], numbers: usize) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(String::len).max())
        .map(Option::unwrap_or_default)
        .collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, width))| {
                if numbers != 0 && column >= numbers {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                }
            })
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [["NAME", "N"], ["a", "1"], ["longer", "100"]]
            .map(|row| row.map(str::to_owned).to_vec());

        assert_eq!(table(&rows, 1), "NAME      N\na         1\nlonger  100\n");
    }
}
