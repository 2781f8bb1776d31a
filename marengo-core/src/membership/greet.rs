//! "Who are you?": how a node finds out who stands behind an address.
//!
//! foca drops every datagram that is not addressed to its exact identity, so a seed cannot be
//! joined by its address alone. The question also tells apart clusters and protocol versions.

use std::{net::SocketAddr, time::Instant};

use tracing::{debug, warn};

use super::{
    DatagramError, Membership, MembershipEvent, Transmit,
    drive::note,
    envelope::{Answer, Envelope, Greeting, Kind, PROTOCOL, WhoIs},
};
use crate::identity::{Generation, canonical};

impl Membership {
    /// Asks who stands behind an address.
    pub(super) fn ask(&mut self, now: Instant, addr: SocketAddr) {
        let canonical_addr = canonical(addr);
        if canonical_addr == self.identity.addr {
            self.seeds.is_ourselves(addr);
            return;
        }
        let nonce = self.questions.open(now, addr, &mut self.rng);
        let greeting = Greeting { nonce, version: self.version };
        let question = WhoIs { greeting, asker: self.identity.clone() };
        if let Ok(data) = question.emit(&self.config.cluster) {
            self.transmits.push_back(Transmit { to: addr, data });
        }
    }

    pub(super) fn handle_who_is(
        &mut self,
        from: SocketAddr,
        body: &[u8],
        request_len: usize,
    ) -> Result<(), DatagramError> {
        let question = WhoIs::parse(body)?;
        let asker = &question.asker;
        let at_address = self.roster.get(asker.addr).map(|known| known.identity.generation);
        // Its clock may have been set back since it had another address.
        let elsewhere = self.roster.latest(asker.data_plane).map(|known| known.generation);
        let answer = Answer {
            greeting: Greeting { nonce: question.greeting.nonce, version: self.version },
            responder: Some(self.identity.clone()),
            known_generation: at_address.max(elsewhere).unwrap_or_default(),
        };
        self.answer(from, &answer, request_len)
    }

    /// Tells a node of another cluster or protocol version what this one is, if it asked; and
    /// tells the shell, if it answered.
    pub(super) fn greet_stranger(
        &mut self,
        now: Instant,
        from: SocketAddr,
        envelope: &Envelope<'_>,
        request_len: usize,
    ) -> Result<(), DatagramError> {
        match envelope.kind {
            Kind::WhoIs => {
                let nonce = WhoIs::parse_greeting(envelope.body)?.nonce;
                let answer = Answer {
                    greeting: Greeting { nonce, version: self.version },
                    responder: None,
                    known_generation: Generation(0),
                };
                self.answer(from, &answer, request_len)
            }
            Kind::Answer => {
                let greeting = Answer::parse_greeting(envelope.body)?;
                let asked =
                    self.questions.close(now, greeting.nonce).ok_or(DatagramError::UnknownNonce)?;
                let reason = format!(
                    "{asked} speaks protocol {} (version {}) in cluster \"{}\"; this node speaks \
                     protocol {PROTOCOL} in cluster \"{}\"",
                    envelope.protocol, greeting.version, envelope.cluster, self.config.cluster
                );
                if self.seeds.refused(asked, &reason) {
                    self.events.push_back(MembershipEvent::SeedRefused { seed: asked, reason });
                }
                Ok(())
            }
            Kind::Gossip | Kind::Leave | Kind::BackSoon => Ok(()),
        }
    }

    /// Sends an answer, unless that would be more than was received.
    fn answer(
        &mut self,
        to: SocketAddr,
        answer: &Answer,
        request_len: usize,
    ) -> Result<(), DatagramError> {
        let data = answer.emit(&self.config.cluster)?;
        if data.len() > request_len {
            return Err(DatagramError::ShortRequest);
        }
        self.transmits.push_back(Transmit { to, data });
        Ok(())
    }

    pub(super) fn handle_answer(&mut self, now: Instant, body: &[u8]) -> Result<(), DatagramError> {
        let answer = Answer::parse(body)?;
        let nonce = answer.greeting.nonce;
        let asked = self.questions.close(now, nonce).ok_or(DatagramError::UnknownNonce)?;
        let responder = answer.responder.ok_or(DatagramError::Malformed)?;
        if responder.addr == self.identity.addr {
            if responder.name == self.identity.name {
                debug!(%asked, "this is one of our own addresses");
                self.seeds.is_ourselves(asked);
            } else {
                warn!(%asked, %responder, "another node uses this node's gossip address");
                self.conflicts.seen_at_own_address(&responder, now);
            }
            return Ok(());
        }
        if self.renewals.is_absurd(responder.generation) {
            return Err(DatagramError::AbsurdGeneration);
        }
        if !self.roster.knows(responder.addr) && !self.has_room() {
            return Err(DatagramError::MemberLimit);
        }
        self.seeds.answered(asked, responder.addr);
        if answer.known_generation > self.identity.generation {
            self.renewals.observe(answer.known_generation);
            self.top_claims(now, None);
        }
        let known = self.roster.get(responder.addr);
        if known.is_some_and(|known| known.identity == responder)
            && self.roster.is_active(responder.addr)
        {
            return Ok(());
        }
        note(self.foca.announce(responder.clone(), &mut self.outbox));
        self.settle(now, Some(&responder));
        self.want_sync(now, responder.listen);
        Ok(())
    }
}
