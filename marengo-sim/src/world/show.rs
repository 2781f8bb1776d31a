//! A world as people read it, when something in it went wrong.

use std::fmt;

use marengo_core::{identity::Identity, membership::MembershipEvent};

use super::World;

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let skipped = self.log.len().saturating_sub(60);
        writeln!(f, "{skipped} earlier events, then:")?;
        for logged in &self.log[skipped..] {
            let text = describe(&logged.event);
            writeln!(f, "{:?} node{}: {text}", logged.at - self.start, logged.node)?;
        }
        for node in self.running() {
            write!(f, "node{node} sees")?;
            for member in self.membership(node).members() {
                let Identity { name, generation, .. } = member.identity;
                write!(f, " {name}/{}={}", generation.0 % 1_000_000_000, member.state)?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl World {
    /// Prints what happened, if that is wanted.
    #[expect(clippy::print_stdout, reason = "somebody asked for it")]
    pub(crate) fn trace(&self, text: impl FnOnce() -> String) {
        if self.options.trace {
            println!("{:>10.4} {}", self.elapsed().as_secs_f64(), text());
        }
    }
}

pub(super) fn describe(event: &MembershipEvent) -> String {
    match event {
        MembershipEvent::MemberUp(member) => format!("up {member} {}", member.generation),
        MembershipEvent::MemberDown(member) => format!("down {member} {}", member.generation),
        MembershipEvent::MemberLeft(member) => format!("left {member} {}", member.generation),
        MembershipEvent::MemberChanged { old, new } => {
            format!("changed {old} from {} to {}", old.generation, new.generation)
        }
        MembershipEvent::Conflict(conflict) => format!("conflict: {conflict}"),
        MembershipEvent::ConflictResolved(conflict) => format!("resolved: {conflict}"),
        MembershipEvent::Joined
        | MembershipEvent::Isolated
        | MembershipEvent::SyncWanted { .. }
        | MembershipEvent::SeedRefused { .. } => format!("{event:?}"),
    }
}
