//! Why a frame was dropped.

/// The reason of a drop: the key of the `drops` map, and the label in `status` and the metrics.
///
/// The numbers are part of the ABI: a new reason takes a new number, a retired one keeps its.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum DropReason {
    /// Ingress: the frame came without the metadata of a tunnel.
    NoTunnelKey = 1,
    /// Ingress: the outer source address is no member's VTEP.
    UnknownVtep = 2,
    /// Ingress: the frame belongs to another VXLAN network.
    WrongVni = 3,
    /// Either way: shorter than an Ethernet header.
    TooShort = 4,
    /// Ingress: a source address that no station may have (group bit set, or all zeros).
    BadSourceMac = 5,
    /// Egress: a frame for everybody, while there is no live peer.
    NoPeers = 6,
    /// Egress: the kernel refused the tunnel key.
    TunnelKeyRefused = 7,
    /// Egress: a copy for one peer of a flooded frame could not be sent.
    CopyFailed = 8,
    /// Either way: the programs found no settings, as before the daemon has written them.
    NoSettings = 9,
    /// Ingress: sent before its station came to this node, and overtaken by it.
    Overtaken = 10,
    /// Egress: a station's frame that looks like the programs' own questions and answers.
    Forged = 11,
}

impl DropReason {
    /// Every reason, in the order of the numbers.
    pub const ALL: [Self; 11] = [
        Self::NoTunnelKey,
        Self::UnknownVtep,
        Self::WrongVni,
        Self::TooShort,
        Self::BadSourceMac,
        Self::NoPeers,
        Self::TunnelKeyRefused,
        Self::CopyFailed,
        Self::NoSettings,
        Self::Overtaken,
        Self::Forged,
    ];

    /// The number of slots that the `drops` map needs: the largest reason and the unused zero.
    pub const SLOTS: u32 = 12;

    /// The label: lower case, words joined by underscores.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NoTunnelKey => "no_tunnel_key",
            Self::UnknownVtep => "unknown_vtep",
            Self::WrongVni => "wrong_vni",
            Self::TooShort => "too_short",
            Self::BadSourceMac => "bad_source_mac",
            Self::NoPeers => "no_peers",
            Self::TunnelKeyRefused => "tunnel_key_refused",
            Self::CopyFailed => "copy_failed",
            Self::NoSettings => "no_settings",
            Self::Overtaken => "overtaken",
            Self::Forged => "forged",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_slot_of_its_own() {
        for (position, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, position + 1);
            assert!((*reason as u32) < DropReason::SLOTS);
        }
    }
}
