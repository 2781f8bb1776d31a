//! What a test may take away from a node, to show that it is needed.
//!
//! A safety property whose test passes without the mechanism that is said to hold it is not tested.
//! So each mechanism has a name here, the daemon a hidden flag (`--without`), and each property a
//! test that runs without its mechanism and must see the property fail. No operator needs this.

use std::{fmt, str::FromStr};

/// A mechanism that a test can take away.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Control {
    /// A MAC entry is valid only while its stamp is its slot's generation.
    Generations,
    /// A frame from the node that a station left does not take the station back.
    Moves,
    /// A peer that gossip lost stays for as long as its data plane is heard.
    Witness,
    /// A start takes over what an earlier run left in the kernel.
    Adoption,
    /// Seeds are asked more than once, and lost members at all.
    Rejoin,
    /// Members are remembered over a restart of the host.
    Remember,
    /// A node that comes under another address takes the place of its former self.
    Supersede,
    /// What another hand keeps undoing is repaired less and less often.
    Backoff,
    /// A node that is late itself does not blame the others.
    LocalHealth,
    /// Those who know an earlier start of this node are told of the present one.
    AnnounceRestart,
    /// Timers that are late because the process was stopped are postponed.
    ForgiveStalls,
    /// Suspects are told that they are suspects, and asked.
    TellSuspects,
    /// A ping that is not answered is sent again before it counts as unanswered.
    RepeatPings,
    /// Who leaves says so.
    TellLeave,
    /// Who goes to come back says so.
    TellRestart,
    /// Who begins tells all who have not heard of it.
    TellBeginning,
    /// A member that others hold for dead is asked, and taken for dead if it does not answer.
    Hearsay,
    /// Who was judged too long ago is judged again before it is taken out.
    Rejudge,
    /// Between two rounds it is looked for what the kernel does not report.
    Looks,
    /// A device that an earlier start left half made is finished.
    Finish,
    /// After a failure there is a pause, and a longer one after each further one.
    Pauses,
    /// An answer of another data plane at a peer's address is no sign of the peer.
    Strangers,
    /// Maps of another layout are filled with what the former ones held.
    CarryOver,
}

impl Control {
    /// Every mechanism.
    pub const ALL: [Self; 23] = [
        Self::Generations,
        Self::Moves,
        Self::Witness,
        Self::Adoption,
        Self::Rejoin,
        Self::Remember,
        Self::Supersede,
        Self::Backoff,
        Self::LocalHealth,
        Self::AnnounceRestart,
        Self::ForgiveStalls,
        Self::TellSuspects,
        Self::RepeatPings,
        Self::TellLeave,
        Self::TellRestart,
        Self::TellBeginning,
        Self::Hearsay,
        Self::Rejudge,
        Self::Looks,
        Self::Finish,
        Self::Pauses,
        Self::Strangers,
        Self::CarryOver,
    ];

    /// The name that the flag takes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Generations => "generations",
            Self::Moves => "moves",
            Self::Witness => "witness",
            Self::Adoption => "adoption",
            Self::Rejoin => "rejoin",
            Self::Remember => "remember",
            Self::Supersede => "supersede",
            Self::Backoff => "backoff",
            Self::LocalHealth => "local-health",
            Self::AnnounceRestart => "announce-restart",
            Self::ForgiveStalls => "forgive-stalls",
            Self::TellSuspects => "tell-suspects",
            Self::RepeatPings => "repeat-pings",
            Self::TellLeave => "tell-leave",
            Self::TellRestart => "tell-restart",
            Self::TellBeginning => "tell-beginning",
            Self::Hearsay => "hearsay",
            Self::Rejudge => "rejudge",
            Self::Looks => "looks",
            Self::Finish => "finish",
            Self::Pauses => "pauses",
            Self::Strangers => "strangers",
            Self::CarryOver => "carry-over",
        }
    }
}

impl fmt::Display for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Control {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|control| control.name() == text)
            .ok_or_else(|| format!("{text:?} is no mechanism"))
    }
}

/// The mechanisms that a node does without: none, but in tests.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Without(u32);

impl Without {
    /// A node that has everything.
    pub const NOTHING: Self = Self(0);

    /// Whether the node has the mechanism.
    pub const fn has(self, control: Control) -> bool {
        self.0 & (1 << control as u32) == 0
    }

    /// Whether something is missing.
    pub const fn is_any(self) -> bool {
        self.0 != 0
    }
}

impl From<Control> for Without {
    fn from(control: Control) -> Self {
        Self(1 << control as u32)
    }
}

impl FromIterator<Control> for Without {
    fn from_iter<I: IntoIterator<Item = Control>>(controls: I) -> Self {
        Self(controls.into_iter().fold(0, |bits, control| bits | 1 << control as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_takes_away_what_it_names_and_nothing_else() {
        let without: Without = [Control::Moves, Control::LocalHealth].into_iter().collect();

        for control in Control::ALL {
            assert_eq!(control.name().parse(), Ok(control));
            let missing = matches!(control, Control::Moves | Control::LocalHealth);
            assert_eq!(without.has(control), !missing, "{control}");
        }
        assert!("all".parse::<Control>().is_err());
    }
}
