//! What foca wants done, in the order in which it said so.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use foca::{Notification, OwnedNotification, Runtime, Timer};

use crate::identity::Identity;

/// One thing that foca wants done.
#[derive(Debug)]
pub(super) enum Effect {
    Send { to: Identity, payload: Bytes },
    Schedule { timer: Timer<Identity>, after: Duration },
    Notify(OwnedNotification<Identity>),
}

/// Collects what foca wants done. Empty between the calls of [`super::Membership`].
#[derive(Debug, Default)]
pub(super) struct Outbox(VecDeque<Effect>);

impl Outbox {
    pub(super) fn pop(&mut self) -> Option<Effect> {
        self.0.pop_front()
    }
}

impl Runtime<Identity> for Outbox {
    fn notify(&mut self, notification: Notification<'_, Identity>) {
        self.0.push_back(Effect::Notify(notification.to_owned()));
    }

    fn send_to(&mut self, to: Identity, data: &[u8]) {
        self.0.push_back(Effect::Send { to, payload: Bytes::copy_from_slice(data) });
    }

    fn submit_after(&mut self, timer: Timer<Identity>, after: Duration) {
        self.0.push_back(Effect::Schedule { timer, after });
    }
}
