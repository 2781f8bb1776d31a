//! What another hand undoes: noticed soon, put right, and told when it becomes a fight.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use marengo_core::{
    converge::Cause,
    fights::{Fight, Fights, Object, Verdict},
    op::Op,
};
use tokio::{sync::oneshot, task};
use tracing::{debug, info, warn};

use super::Converge;
use crate::{
    api::FightView,
    kernel::{monitor::Changes, suspects, suspects::Suspects},
};

/// How often the kernel is asked for what it does not report: a repair within a second, for a
/// fiftieth of a percent of a processor.
const LOOK_EVERY: Duration = Duration::from_millis(700);
/// A change by another hand was seen by a look of this age, or it was not seen.
const EVIDENCE: Duration = Duration::from_secs(2);

/// Everything that is known of another hand.
#[derive(Debug)]
pub(super) struct Contest {
    fights: Fights,
    /// What is wrong and waited with.
    pub(super) held: BTreeSet<Object>,
    suspects: Suspects,
    /// Whom each fight is with, as far as one knows.
    accused: BTreeMap<Object, String>,
    /// Who has our maps or programs open: asked, and not answered yet.
    asked: Option<oneshot::Receiver<Option<String>>>,
    /// The fights that have begun.
    total: u64,
    look_at: Instant,
    /// Always, but in a test of what the looks are good for.
    pub(super) looks: bool,
    /// When the first of what is held is due.
    pub(super) retry: Option<Instant>,
    touches: u64,
}

impl Contest {
    pub(super) fn new(now: Instant, back_off: bool) -> Self {
        Self {
            fights: Fights::new(back_off),
            held: BTreeSet::new(),
            suspects: Suspects::default(),
            accused: BTreeMap::new(),
            asked: None,
            total: 0,
            look_at: now + LOOK_EVERY,
            looks: true,
            retry: None,
            touches: 0,
        }
    }

    /// When the next look is due.
    pub(super) const fn poll_timeout(&self) -> Instant {
        self.look_at
    }

    /// The kernel reported a change of something of ours: sees who is about.
    pub(super) fn handle_changes(&mut self, now: Instant, changes: Changes) {
        if changes.touches != self.touches {
            self.touches = changes.touches;
            self.suspects.look(now, changes.requester);
        }
    }

    /// The fights that are on, and how many there have been.
    pub(super) fn views(&self, now: Instant) -> (Vec<FightView>, u64) {
        let fights = self.fights.fights().map(|fight| FightView {
            object: fight.object.to_string(),
            repairs: fight.repairs,
            since_seconds: now.saturating_duration_since(fight.since).as_secs(),
            suspect: self.suspect(fight.object).to_owned(),
        });
        (fights.collect(), self.total)
    }

    fn suspect(&self, object: Object) -> &str {
        self.accused.get(&object).map_or("unknown", String::as_str)
    }

    /// Remembers who was about when an object was found undone.
    fn accuse(&mut self, now: Instant, objects: &BTreeSet<Object>) {
        let since = now.checked_sub(EVIDENCE).unwrap_or(now);
        for object in objects.iter().filter(|object| is_reported(**object)) {
            if let Some(suspect) = self.suspects.accuse(since) {
                self.accused.insert(*object, suspect);
            }
        }
        // What was only ever repaired once in a while needs no suspect.
        if self.fights.fights().next().is_none() && self.accused.len() > 8 {
            self.accused.clear();
        }
    }
}

/// Whether the kernel reports a change of it, so that somebody can be seen then.
fn is_reported(object: Object) -> bool {
    !object.is_in_a_map()
}

impl Converge {
    /// Does without waiting in a fight: for a test of what that is good for.
    pub(super) fn without_back_off(&mut self) {
        self.contest.fights = Fights::new(false);
    }

    /// Looks at what the kernel does not report; a round puts right what is wrong.
    pub(super) fn look(&mut self, now: Instant) {
        if now < self.contest.look_at {
            return;
        }
        self.contest.look_at = now + LOOK_EVERY;
        self.hear_of_holders();
        let Some(want) = self.settled.as_ref().filter(|_| self.contest.looks) else { return };
        match self.kernel.is_intact(want) {
            Ok(true) => {}
            Ok(false) => self.converger.mark_dirty(now, Cause::Kernel),
            // The next round meets it too, and tells.
            Err(error) => debug!(error = format!("{error:#}"), "could not look at maps and links"),
        }
    }

    /// Says what of a plan is to be done now, and tells what there is to tell.
    pub(super) fn judge(&mut self, ops: Vec<Op>, repairing: bool) -> Vec<Op> {
        let now = Instant::now();
        let Verdict { ops, held, retry, repaired, began } =
            self.contest.fights.judge(now, ops, repairing);
        self.contest.held = held;
        self.contest.retry = retry;
        if !repaired.is_empty() {
            self.contest.accuse(now, &repaired);
            self.repairs += 1;
            let suspect =
                repaired.first().map_or("unknown", |object| self.contest.suspect(*object));
            let suspect = suspect.to_owned();
            self.tell_repair(&ops, &suspect);
        }
        for object in began {
            self.contest.total += 1;
            warn!(
                %object,
                suspect = self.contest.suspect(object),
                "something keeps undoing this; repairing it, less and less often"
            );
            self.ask_for_holders();
        }
        for Fight { object, repairs, since } in self.contest.fights.ended(now) {
            let suspect = self.contest.accused.remove(&object);
            info!(
                %object,
                repairs,
                seconds = now.saturating_duration_since(since).as_secs(),
                suspect = suspect.as_deref().unwrap_or("unknown"),
                "nothing undoes this any more"
            );
        }
        ops
    }

    /// All of /proc is read for it: beside the tasks, once for each fight.
    fn ask_for_holders(&mut self) {
        if self.contest.asked.is_some() {
            return;
        }
        let Ok((maps, programs)) = self.kernel.ids() else { return };
        let (answer, asked) = oneshot::channel();
        task::spawn_blocking(move || answer.send(suspects::holders(&maps, &programs)).ok());
        self.contest.asked = Some(asked);
    }

    fn hear_of_holders(&mut self) {
        let Some(asked) = &mut self.contest.asked else { return };
        let answer = match asked.try_recv() {
            Err(oneshot::error::TryRecvError::Empty) => return,
            other => other.ok().flatten(),
        };
        self.contest.asked = None;
        let Some(holders) = answer else { return };
        let objects: Vec<Object> = self.contest.fights.fights().map(|fight| fight.object).collect();
        for object in objects {
            let unknown = !self.contest.accused.contains_key(&object);
            if unknown && (object.is_in_a_map() || matches!(object, Object::Hook(_))) {
                warn!(%object, suspect = %holders, "somebody else has maps or programs of ours open");
                self.contest.accused.insert(object, holders.clone());
            }
        }
    }
}
