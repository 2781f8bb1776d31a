//! When another address takes the place of one that is gone.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

/// An address that goes from its device is often put back a moment later. Where another one of the
/// same device stands ready, the device was renumbered.
const SETTLES_WITHIN: Duration = Duration::from_millis(200);
/// Where the other one is another device's, its own device may be on its way back: it was reset, or
/// its DHCP client begins anew.
const OTHER_DEVICE_AFTER: Duration = Duration::from_millis(1500);
/// Without any address for so long, it is told.
const TOLD_AFTER: Duration = Duration::from_secs(1);

/// What the host has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Seen {
    /// The address, on a device.
    Here { device: u32 },
    /// Not the address, but one in its place.
    Other { address: IpAddr, device: Option<u32> },
    /// Neither.
    Gone,
}

/// What to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Decision {
    /// Nothing.
    Stay,
    /// To go on under this address.
    Change(IpAddr),
    /// To say that the address is gone.
    Gone,
    /// To say that the address is back.
    Back,
}

/// The address of now.
#[derive(Debug)]
pub(super) struct Standing {
    address: IpAddr,
    device: Option<u32>,
    gone_since: Option<Instant>,
    told: bool,
}

impl Standing {
    pub(super) fn new(address: IpAddr) -> Self {
        Self { address, device: None, gone_since: None, told: false }
    }

    pub(super) fn address(&self) -> IpAddr {
        self.address
    }

    /// For how long the host has not had it.
    pub(super) fn gone_for(&self, now: Instant) -> Option<Duration> {
        self.gone_since.map(|since| now.saturating_duration_since(since))
    }

    /// Takes note of what the host has.
    pub(super) fn decide(&mut self, now: Instant, seen: Seen) -> Decision {
        if let Seen::Here { device } = seen {
            self.device = Some(device);
            self.gone_since = None;
            return if std::mem::take(&mut self.told) { Decision::Back } else { Decision::Stay };
        }
        let gone = now.saturating_duration_since(*self.gone_since.get_or_insert(now));
        match seen {
            Seen::Other { address, device } => {
                let same = device.is_some() && device == self.device;
                let wait = if same { SETTLES_WITHIN } else { OTHER_DEVICE_AFTER };
                if gone >= wait { Decision::Change(address) } else { Decision::Stay }
            }
            _ if gone >= TOLD_AFTER && !self.told => {
                self.told = true;
                Decision::Gone
            }
            _ => Decision::Stay,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETH0: u32 = 2;
    const ETH1: u32 = 3;

    /// Decisions that are not to stay, with their times, over a second's sightings each 50 ms.
    fn decisions(seen: impl Fn(u64) -> Seen) -> Vec<(u64, Decision)> {
        let start = Instant::now();
        let mut standing = Standing::new(address(1));
        let mut decisions = Vec::new();
        for at in (0..4000).step_by(50) {
            let decision = standing.decide(start + Duration::from_millis(at), seen(at));
            match decision {
                Decision::Stay => continue,
                Decision::Change(address) => standing = Standing::new(address),
                Decision::Gone | Decision::Back => {}
            }
            decisions.push((at, decision));
        }
        decisions
    }

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn other(device: u32) -> Seen {
        Seen::Other { address: address(2), device: Some(device) }
    }

    #[test]
    fn an_address_is_kept_while_the_host_has_it() {
        assert_eq!(decisions(|_| Seen::Here { device: ETH0 }), []);
    }

    #[test]
    fn a_device_that_is_renumbered_is_followed_at_once() {
        // The new one stays.
        let found = decisions(|at| match at {
            1000..1250 => other(ETH0),
            _ => Seen::Here { device: ETH0 },
        });

        assert_eq!(found, [(1200, Decision::Change(address(2)))]);
    }

    #[test]
    fn an_address_that_is_put_back_a_moment_later_is_kept() {
        let found =
            decisions(|at| if at % 500 == 450 { other(ETH0) } else { Seen::Here { device: ETH0 } });

        assert_eq!(found, []);
    }

    #[test]
    fn another_devices_address_is_taken_later() {
        let found = decisions(|at| match at {
            ..1000 => Seen::Here { device: ETH0 },
            2550.. => Seen::Here { device: ETH1 },
            _ => other(ETH1),
        });

        assert_eq!(found, [(2500, Decision::Change(address(2)))]);
    }

    #[test]
    fn a_lasting_loss_is_told_once_and_so_is_its_end() {
        let found = decisions(|at| match at {
            1000..3000 => Seen::Gone,
            _ => Seen::Here { device: ETH0 },
        });

        assert_eq!(found, [(2000, Decision::Gone), (3000, Decision::Back)]);
    }
}
