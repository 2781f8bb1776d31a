//! What the kernel reports by itself. Reports say that something changed, never what: the next round
//! observes.

use anyhow::{Context as _, Result};
use futures_util::StreamExt as _;
use marengo_core::settings::IfName;
use rtnetlink::{
    MulticastGroup,
    packet_core::NetlinkPayload,
    packet_route::{
        RouteNetlinkMessage,
        link::{LinkAttribute, LinkMessage},
    },
    sys::AsyncSocket as _,
};
use tokio::sync::watch;

use crate::tasks::Spawner;

/// What has changed since it was last asked. Counters, so that no report is lost between two looks
/// and a flood of them costs nothing.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Changes {
    /// Reports of links that concern us.
    pub(crate) links: u64,
    /// Reports of routes and addresses.
    pub(crate) routes: u64,
}

/// The receiving end of the kernel's reports.
pub(crate) type Monitor = watch::Receiver<Changes>;

/// Subscribes to links, addresses and routes of this network namespace.
///
/// Containers come and go on a busy host and each brings link reports: only those of our two links,
/// and of links that carry the underlay, count.
pub(crate) fn spawn(spawner: &Spawner, bridge: IfName, device: IfName) -> Result<Monitor> {
    let (mut connection, _handle, mut messages) = rtnetlink::new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ])
    .context("failed to subscribe to the kernel's reports of links and routes")?;
    // A burst that overruns the buffer costs a resync, not a report.
    if let Err(error) = connection.socket_mut().socket_mut().set_rx_buf_sz(1 << 20) {
        tracing::debug!(%error, "the buffer for the kernel's reports stays small");
    }
    tokio::spawn(connection);
    let (sender, receiver) = watch::channel(Changes::default());
    spawner.spawn("monitor", async move {
        while let Some((message, _)) = messages.next().await {
            let (links, routes) = match message.payload {
                NetlinkPayload::InnerMessage(
                    RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link),
                ) => (concerns_us(&link, &bridge, &device), false),
                NetlinkPayload::InnerMessage(
                    RouteNetlinkMessage::NewRoute(_)
                    | RouteNetlinkMessage::DelRoute(_)
                    | RouteNetlinkMessage::NewAddress(_)
                    | RouteNetlinkMessage::DelAddress(_),
                ) => (false, true),
                NetlinkPayload::Overrun(_) => (true, true),
                _ => (false, false),
            };
            if links || routes {
                sender.send_modify(|changes| {
                    changes.links += u64::from(links);
                    changes.routes += u64::from(routes);
                });
            }
            if sender.is_closed() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// A port of some bridge is a container's; all else may carry the underlay.
fn concerns_us(link: &LinkMessage, bridge: &IfName, device: &IfName) -> bool {
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    });
    let is_port =
        link.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::Controller(_)));
    name == Some(bridge.as_str()) || name == Some(device.as_str()) || !is_port
}
