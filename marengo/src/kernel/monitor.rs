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

use super::links;
use crate::tasks::Spawner;

/// `TC_H_CLSACT`: the parent of the queueing discipline that holds filters at both hooks.
const CLSACT: u32 = 0xffff_fff1;

/// What has changed since it was last asked. Counters, so that no report is lost between two looks
/// and a flood of them costs nothing.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Changes {
    /// Reports of links that concern us.
    pub(crate) links: u64,
    /// Reports of routes and addresses.
    pub(crate) routes: u64,
    /// Reports of our own links, and of filters: by our hand or another.
    pub(crate) touches: u64,
    /// The port number of who asked for what was reported last, as far as reports tell.
    pub(crate) requester: Option<u32>,
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
        MulticastGroup::Tc,
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
            let mut ours = false;
            let requester = Some(message.header.port_number).filter(|port| *port != 0);
            let (links, routes) = match message.payload {
                NetlinkPayload::InnerMessage(
                    RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link),
                ) => {
                    ours = is_ours(&link, &bridge, &device);
                    (ours || !is_port(&link), false)
                }
                // The filter of a hook goes with its queueing discipline.
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelTrafficFilter(_)) => {
                    ours = true;
                    (true, false)
                }
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelQueueDiscipline(qdisc))
                    if u32::from(qdisc.header.parent) == CLSACT =>
                {
                    ours = true;
                    (true, false)
                }
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
                    changes.touches += u64::from(ours);
                    if ours {
                        changes.requester = requester;
                    }
                });
            }
            if sender.is_closed() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// Reports of addresses alone: says how many there have been.
pub(crate) fn addresses(spawner: &Spawner) -> Result<watch::Receiver<u64>> {
    let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, _handle, mut messages) = rtnetlink::new_multicast_connection(&groups)
        .context("failed to subscribe to the kernel's reports of addresses")?;
    tokio::spawn(connection);
    let (sender, receiver) = watch::channel(0);
    spawner.spawn("address-monitor", async move {
        while messages.next().await.is_some() && !sender.is_closed() {
            sender.send_modify(|count| *count += 1);
        }
    });
    Ok(receiver)
}

/// Whether a report is of one of our two links, the device under another name too.
fn is_ours(link: &LinkMessage, bridge: &IfName, device: &IfName) -> bool {
    link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::IfName(name) => name == bridge.as_str() || name == device.as_str(),
        LinkAttribute::Group(group) => *group == links::GROUP,
        _ => false,
    })
}

/// A port of some bridge is a container's; all else may carry the underlay.
fn is_port(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::Controller(_)))
}
