//! The bridge and the VXLAN device, over rtnetlink.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use futures_util::TryStreamExt as _;
use marengo_common::MacAddr;
use marengo_core::{
    settings::IfName,
    state::{ObservedBridge, ObservedDevice},
};
use nix::errno::Errno;
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVxlan,
    packet_route::link::{
        AfSpecInet6, AfSpecUnspec, BridgeStpState, In6AddrGenMode, InfoData, InfoKind, InfoVxlan,
        LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
    },
};

use super::{NoAnswer, answered, errno};

/// The link group of our device: its mark. Unlike an alias it is part of the message that makes the
/// link (`rtnl_create_link`), so a device of ours never lacks it. The bytes spell "MARE".
pub(crate) const GROUP: u32 = 0x4d41_5245;
/// The device's alias begins so, and goes on with the pin directory of its programs: for people who
/// look at `ip link`, and for a daemon that was told another directory than the one before it.
const ALIAS: &str = "marengo ";

/// The links of this network namespace.
#[derive(Debug)]
pub(crate) struct Links {
    handle: Handle,
    made_bridge: bool,
}

impl Links {
    pub(crate) fn open() -> Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle, made_bridge: false })
    }

    /// Opens the socket anew.
    pub(super) fn reopen(&mut self) -> Result<()> {
        self.handle = Self::open()?.handle;
        Ok(())
    }

    pub(crate) async fn observe_bridge(&self, name: &IfName) -> Result<Option<ObservedBridge>> {
        Ok(self.find(name).await?.map(|link| observed_bridge(&link, name)))
    }

    /// The bridge that had the name, as far as its number is known, if another hand has given it
    /// another one.
    pub(super) async fn find_renamed_bridge(
        &self,
        name: &IfName,
        ifindex: u32,
    ) -> Result<Option<ObservedBridge>> {
        let mut links = Box::pin(self.handle.link().get().match_index(ifindex).execute());
        match answered("look up a link", links.try_next()).await? {
            Ok(Some(link)) => {
                let bridge = observed_bridge(&link, name);
                Ok(Some(bridge).filter(|bridge| bridge.is_bridge))
            }
            Ok(None) => Err(NoAnswer.into()),
            Err(error) if errno(&error) == Some(Errno::ENODEV) => Ok(None),
            Err(error) => Err(anyhow!(error).context(format!("failed to look up link {ifindex}"))),
        }
    }

    pub(crate) async fn observe_device(&self, name: &IfName) -> Result<Option<ObservedDevice>> {
        Ok(self.find(name).await?.map(|link| observed_device(&link, name)))
    }

    /// As [`Links::observe_device`], also if another hand has given our device another name.
    pub(crate) async fn find_device(
        &self,
        name: &IfName,
        pin_dir: &Path,
    ) -> Result<Option<ObservedDevice>> {
        match self.observe_device(name).await? {
            None => self.find_renamed_device(name, pin_dir).await,
            device => Ok(device),
        }
    }

    /// Our device, told by its mark and its programs' pin directory, if another hand has given it
    /// another name. Reads all links: only for when there is none of the name.
    async fn find_renamed_device(
        &self,
        name: &IfName,
        pin_dir: &Path,
    ) -> Result<Option<ObservedDevice>> {
        let links = self.handle.link().get().execute();
        let links: Vec<LinkMessage> = answered("links", links.try_collect()).await??;
        let ours = links.iter().find(|link| is_ours(link) && pinned_in(link) == Some(pin_dir));
        Ok(ours.map(|link| observed_device(link, name)))
    }

    /// The pin directory of our device's programs, as far as the device tells.
    pub(super) async fn device_pin_dir(&self, name: &IfName) -> Result<Option<PathBuf>> {
        let link = self.find(name).await?.filter(|link| group(link) == Some(GROUP));
        Ok(link.as_ref().and_then(pinned_in).map(Path::to_owned))
    }

    /// Gives a link its name back.
    pub(super) async fn rename(&self, ifindex: u32, name: &IfName) -> Result<()> {
        let message = LinkUnspec::new_with_index(ifindex).name(name.to_string()).build();
        self.change(message).await
    }

    pub(super) async fn ifindex(&self, name: &IfName) -> Result<u32> {
        let link = self.find(name).await?;
        Ok(link.with_context(|| format!("there is no link {name}"))?.header.index)
    }

    /// Makes the bridge with a MAC address of its own: without one it would take, and change with,
    /// its ports', and udev would write another over it (systemd's MACAddressPolicy).
    ///
    /// No spanning tree, which would hold frames back for 30 s, and no multicast snooping, which
    /// without a querier in the segment loses multicast after five minutes.
    pub(super) async fn create_bridge(&mut self, name: &IfName, mtu: u16) -> Result<()> {
        let message = LinkMessageBuilder::<LinkBridge>::new(name.as_str())
            .address(random_mac().0.to_vec())
            .stp_state(BridgeStpState::Disabled)
            .mcast_snooping(false)
            .build();
        match answered("create", self.handle.link().add(message).execute()).await? {
            // Somebody made it a moment ago: the next observation looks at it.
            Err(error) if errno(&error) == Some(Errno::EEXIST) => Ok(()),
            Err(error) => Err(error.into()),
            Ok(()) => {
                self.made_bridge = true;
                // Not in the message that makes it: only a change is remembered as somebody's wish
                // (`br_change_mtu`), and without one the MTU follows the ports, also when the last
                // of ours goes.
                self.set_mtu(name, mtu).await
            }
        }
    }

    /// Removes the bridge if this run made it.
    pub(super) async fn undo_bridge(&mut self, name: &IfName) -> Result<()> {
        if !self.made_bridge {
            return Ok(());
        }
        let Some(bridge) = self.observe_bridge(name).await? else { return Ok(()) };
        self.made_bridge = false;
        Ok(answered("delete", self.handle.link().del(bridge.ifindex).execute()).await??)
    }

    /// Makes the device, down, and as a port of the bridge from the first moment.
    ///
    /// It gets no VNI: a collect-metadata device with one receives nothing (`vxlan_vs_find_vni`).
    pub(super) async fn create_device(
        &self,
        name: &IfName,
        bridge: &IfName,
        port: u16,
        mtu: u16,
    ) -> Result<()> {
        let bridge = self.ifindex(bridge).await?;
        let message = LinkMessageBuilder::<LinkVxlan>::new(name.as_str())
            .address(random_mac().0.to_vec())
            .mtu(u32::from(mtu))
            .link_group(GROUP)
            .controller(bridge)
            .collect_metadata(true)
            .learning(false)
            .port(port)
            .build();
        match answered("create", self.handle.link().add(message).execute()).await? {
            // By name there is none: the kernel means the port.
            Err(error) if errno(&error) == Some(Errno::EEXIST) => {
                Err(anyhow!(error).context(format!(
                    "another VXLAN device has UDP port {port} (`ip -d link show type vxlan`); one \
                     that was moved to another network namespace keeps its port here"
                )))
            }
            other => Ok(other?),
        }
    }

    /// Sets what cannot be part of the message that makes the device.
    pub(super) async fn finish_device(&self, name: &IfName, pin_dir: &Path) -> Result<()> {
        let ifindex = self.ifindex(name).await?;
        let alias = format!("{ALIAS}{}", pin_dir.display());
        self.change(LinkUnspec::new_with_index(ifindex).alias(alias).build()).await?;
        // The device itself is no station: without this the host would announce a link-local
        // address of it to all peers. A host without IPv6 has nothing to turn off.
        let no_address = LinkUnspec::new_with_index(ifindex)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![
                AfSpecInet6::AddrGenMode(In6AddrGenMode::None),
            ])]))
            .build();
        match answered("change", self.handle.link().change(no_address).execute()).await? {
            Err(error) if errno(&error) == Some(Errno::EAFNOSUPPORT) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Removes the device if it is ours; one that is not there is gone already.
    pub(super) async fn delete_device(&self, name: &IfName) -> Result<()> {
        let Some(device) = self.observe_device(name).await? else { return Ok(()) };
        if !device.ours {
            bail!("{name} was not made by Marengo");
        }
        match answered("delete", self.handle.link().del(device.ifindex).execute()).await? {
            Err(error) if errno(&error) == Some(Errno::ENODEV) => return Ok(()),
            other => other?,
        }
        // A request that was lost with its connection looks like one that was done.
        match self.find(name).await? {
            Some(_) => Err(NoAnswer.into()),
            None => Ok(()),
        }
    }

    pub(super) async fn set_mtu(&self, name: &IfName, mtu: u16) -> Result<()> {
        let ifindex = self.ifindex(name).await?;
        self.change(LinkUnspec::new_with_index(ifindex).mtu(u32::from(mtu)).build()).await
    }

    pub(super) async fn enslave(&self, name: &IfName, bridge: &IfName) -> Result<()> {
        let (ifindex, bridge) = (self.ifindex(name).await?, self.ifindex(bridge).await?);
        self.change(LinkUnspec::new_with_index(ifindex).controller(bridge).build()).await
    }

    pub(super) async fn set_up(&self, name: &IfName) -> Result<()> {
        let ifindex = self.ifindex(name).await?;
        self.change(LinkUnspec::new_with_index(ifindex).up().build()).await
    }

    pub(super) async fn set_down(&self, name: &IfName) -> Result<()> {
        let ifindex = self.ifindex(name).await?;
        self.change(LinkUnspec::new_with_index(ifindex).down().build()).await
    }

    /// The names of the VXLAN devices on a UDP port.
    pub(crate) async fn vxlan_devices_on(&self, port: u16) -> Result<Vec<String>> {
        let links = self.handle.link().get().execute();
        let links: Vec<LinkMessage> = answered("links", links.try_collect()).await??;
        Ok(links
            .iter()
            .filter(|link| vxlan_attributes(link).contains(&InfoVxlan::Port(port)))
            .filter_map(|link| {
                link.attributes.iter().find_map(|attribute| match attribute {
                    LinkAttribute::IfName(name) => Some(name.clone()),
                    _ => None,
                })
            })
            .collect())
    }

    /// Whether the hook of a clsact filter that carries our handle is taken.
    pub(super) async fn has_filter(&self, ifindex: u32, egress: bool, handle: u32) -> Result<bool> {
        let index = i32::try_from(ifindex)?;
        let filters = self.handle.traffic_filter(index).get();
        let filters = if egress { filters.egress() } else { filters.ingress() };
        let found: Result<Vec<_>, _> = answered("filters", filters.execute().try_collect()).await?;
        match found {
            Ok(filters) => {
                Ok(filters.iter().any(|filter| u32::from(filter.header.handle) == handle))
            }
            // No clsact there, or no such link.
            Err(error)
                if matches!(errno(&error), Some(Errno::EINVAL | Errno::ENODEV | Errno::ENOENT)) =>
            {
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn find(&self, name: &IfName) -> Result<Option<LinkMessage>> {
        let mut links = Box::pin(self.handle.link().get().match_name(name.as_str()).execute());
        match answered("look up a link", links.try_next()).await? {
            Ok(Some(link)) => Ok(Some(link)),
            // The answer broke off: that is not the same as "there is none".
            Ok(None) => Err(NoAnswer.into()),
            Err(error) if errno(&error) == Some(Errno::ENODEV) => Ok(None),
            Err(error) => Err(anyhow!(error).context(format!("failed to look up link {name}"))),
        }
    }

    async fn change(&self, message: LinkMessage) -> Result<()> {
        Ok(answered("change", self.handle.link().change(message).execute()).await??)
    }
}

fn observed_bridge(link: &LinkMessage, name: &IfName) -> ObservedBridge {
    ObservedBridge {
        ifindex: link.header.index,
        named: has_name(link, name),
        is_bridge: kind(link) == Some(&InfoKind::Bridge),
        up: link.header.flags.contains(LinkFlags::Up),
        mtu: mtu(link),
    }
}

fn observed_device(link: &LinkMessage, name: &IfName) -> ObservedDevice {
    let vxlan = vxlan_attributes(link);
    let flag =
        |wanted: fn(&InfoVxlan) -> Option<bool>| vxlan.iter().find_map(wanted).unwrap_or_default();
    let external = flag(|info| match info {
        InfoVxlan::CollectMetadata(on) => Some(*on),
        _ => None,
    });
    let learning = flag(|info| match info {
        InfoVxlan::Learning(on) => Some(*on),
        _ => None,
    });
    let port = vxlan.iter().find_map(|info| match info {
        InfoVxlan::Port(port) => Some(*port),
        _ => None,
    });
    ObservedDevice {
        ifindex: link.header.index,
        named: has_name(link, name),
        ours: is_ours(link),
        collects_metadata: external && !learning,
        finished: pinned_in(link).is_some() && !makes_addresses(link),
        port: port.unwrap_or_default(),
        master: link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Controller(ifindex) => Some(*ifindex),
            _ => None,
        }),
        up: link.header.flags.contains(LinkFlags::Up),
        mtu: mtu(link),
    }
}

fn is_ours(link: &LinkMessage) -> bool {
    kind(link) == Some(&InfoKind::Vxlan) && group(link) == Some(GROUP)
}

fn has_name(link: &LinkMessage, name: &IfName) -> bool {
    link.attributes.iter().any(
        |attribute| matches!(attribute, LinkAttribute::IfName(found) if found == name.as_str()),
    )
}

/// The pin directory in the alias of a device of ours.
fn pinned_in(link: &LinkMessage) -> Option<&Path> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfAlias(alias) => alias.strip_prefix(ALIAS).map(Path::new),
        _ => None,
    })
}

/// Whether the link gets an IPv6 address by itself when it comes up. A host without IPv6 says nothing.
fn makes_addresses(link: &LinkMessage) -> bool {
    let families = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::AfSpecUnspec(families) => Some(families.as_slice()),
        _ => None,
    });
    let inet6 = families.unwrap_or_default().iter().find_map(|family| match family {
        AfSpecUnspec::Inet6(attributes) => Some(attributes.as_slice()),
        _ => None,
    });
    inet6.unwrap_or_default().iter().any(|attribute| {
        matches!(attribute, AfSpecInet6::AddrGenMode(mode) if *mode != In6AddrGenMode::None)
    })
}

fn random_mac() -> MacAddr {
    MacAddr::local(rand::random())
}

fn mtu(link: &LinkMessage) -> u32 {
    let mtu = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    mtu.unwrap_or_default()
}

fn group(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Group(group) => Some(*group),
        _ => None,
    })
}

fn link_info(link: &LinkMessage) -> &[LinkInfo] {
    let info = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(info) => Some(info.as_slice()),
        _ => None,
    });
    info.unwrap_or_default()
}

fn kind(link: &LinkMessage) -> Option<&InfoKind> {
    link_info(link).iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    })
}

fn vxlan_attributes(link: &LinkMessage) -> &[InfoVxlan] {
    let attributes = link_info(link).iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(attributes)) => Some(attributes.as_slice()),
        _ => None,
    });
    attributes.unwrap_or_default()
}
