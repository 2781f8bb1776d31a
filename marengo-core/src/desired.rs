//! What should be in the kernel, given the settings and the slots.

use std::collections::BTreeMap;

use marengo_common::{PeerEntry, PeerState, Settings, VtepKey};

use crate::{
    identity::DataPlaneId,
    settings::{DataPlane, MIN_MTU},
    slots::Slots,
    state::DesiredState,
};

/// The MTU of an Ethernet underlay: what is assumed while no underlay device is known.
const ETHERNET_MTU: u32 = 1500;

/// Says what should be in the kernel. Total: every input has an answer.
pub fn desired(data_plane: &DataPlane, slots: &Slots, underlay_mtu: Option<u32>) -> DesiredState {
    let mtu = overlay_mtu(data_plane, underlay_mtu);
    let peers: BTreeMap<_, _> = slots
        .iter()
        .map(|(index, slot)| {
            let entry = PeerEntry {
                vtep: VtepKey::new(slot.vtep).vtep,
                generation: slot.generation,
                path_mtu: mtu,
                state: PeerState::Forwarding as u8,
                flags: 0,
                data_plane: slot.data_plane.map_or(0, DataPlaneId::get),
            };
            (index, entry)
        })
        .collect();
    DesiredState {
        mtu,
        port: data_plane.port,
        settings: Settings::new(
            data_plane.vni,
            data_plane.vtep,
            data_plane.id.get(),
            0,
            slots.generation(),
        ),
        vteps: peers.iter().map(|(index, entry)| (VtepKey { vtep: entry.vtep }, *index)).collect(),
        peers,
        flood: slots.flood_chunks(),
    }
}

/// The largest frame, without its Ethernet header, that the overlay carries. Bytes.
///
/// Never below what IPv6 wants, even if the underlay then has to fragment.
fn overlay_mtu(data_plane: &DataPlane, underlay_mtu: Option<u32>) -> u16 {
    if let Some(mtu) = data_plane.mtu {
        return mtu;
    }
    let underlay = underlay_mtu.unwrap_or(ETHERNET_MTU);
    // The kernel has no VXLAN device of more than 65,535 bytes (`IP_MAX_MTU`).
    let underlay = u16::try_from(underlay).unwrap_or(u16::MAX);
    underlay.saturating_sub(data_plane.overhead()).max(MIN_MTU)
}

#[cfg(test)]
mod tests {
    use marengo_common::Vni;

    use super::*;
    use crate::settings::IfName;

    #[test]
    fn the_mtu_is_the_underlays_less_the_overhead_of_its_family() {
        assert_eq!(overlay_mtu(&data_plane("192.0.2.1", None), Some(1500)), 1450);
        assert_eq!(overlay_mtu(&data_plane("2001:db8::1", None), Some(1500)), 1430);
        assert_eq!(overlay_mtu(&data_plane("192.0.2.1", None), Some(9000)), 8950);
        assert_eq!(overlay_mtu(&data_plane("192.0.2.1", None), None), 1450);
        assert_eq!(overlay_mtu(&data_plane("192.0.2.1", Some(1400)), Some(9000)), 1400);
        assert_eq!(overlay_mtu(&data_plane("192.0.2.1", None), Some(65_536)), 65_485);
        assert_eq!(overlay_mtu(&data_plane("192.0.2.1", None), Some(600)), MIN_MTU);
    }

    fn data_plane(vtep: &str, mtu: Option<u16>) -> DataPlane {
        DataPlane {
            bridge: IfName::new("marengo").unwrap(),
            device: IfName::new("ol-marengo").unwrap(),
            vni: Vni::new(1024).unwrap(),
            port: 4789,
            vtep: vtep.parse().unwrap(),
            mtu,
            max_peers: 16,
            id: DataPlaneId::new(1).unwrap(),
        }
    }
}
