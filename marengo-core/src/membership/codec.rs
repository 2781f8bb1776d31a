//! Layout of identities, members and foca's payload on the wire.
//!
//! Written by hand: every field has a fixed or bounded size, and no length read from the network
//! decides how much memory is taken. Integers are big-endian. `docs/wire.md` has the tables.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{Buf, BufMut, TryGetError};
use foca::{Header, Member, Message, State};
use thiserror::Error;

use super::envelope::MAX_PAYLOAD;
use crate::identity::{DataPlaneId, Generation, Identity, IdentityError, NameError, NodeName};

/// The largest identity on the wire: a name of 63 bytes, three IPv6 addresses and a key.
pub const MAX_IDENTITY_LEN: usize = 1 + 63 + 8 + 8 + 19 + 17 + 19 + 1 + 32;

/// Incarnation of a down member that left by itself.
///
/// foca knows down only, and ignores the incarnation of a down member. This value lets "left"
/// travel through foca's own gossip; on the wire it is a state of its own.
pub const LEFT: u16 = u16::MAX;

/// Incarnation of a suspect that said that its daemon is restarted.
///
/// No member refutes up to this one: it renews itself before. So the news travels through foca's own
/// gossip, and nothing but the next start of the node ends the suspicion.
pub const RESTARTING: u16 = u16::MAX;

/// Why bytes could not be read, or a value did not fit.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum CodecError {
    /// The input ends early, or the output has no room.
    #[error("too short")]
    Short,
    /// Bytes follow where none are expected.
    #[error("{0} bytes too many")]
    Trailing(usize),
    /// A name is not one.
    #[error("bad name: {0}")]
    Name(#[from] NameError),
    /// An identity has an address that nobody can send to.
    #[error("bad identity: {0}")]
    Identity(#[from] IdentityError),
    /// An identity names data plane zero.
    #[error("an identity without a data plane")]
    NoDataPlane,
    /// A byte that selects between alternatives selects none.
    #[error("{value} is not a known {field}")]
    Choice {
        /// Which byte it is.
        field: &'static str,
        /// Its value.
        value: u8,
    },
}

impl From<TryGetError> for CodecError {
    fn from(_: TryGetError) -> Self {
        Self::Short
    }
}

type Result<T> = std::result::Result<T, CodecError>;

/// A decoded foca datagram.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Payload {
    /// Who sends what to whom.
    pub header: Header<Identity>,
    /// The membership updates that ride along.
    pub updates: Vec<Member<Identity>>,
}

impl Payload {
    /// Reads a whole foca datagram.
    ///
    /// Accepts a subset of what foca would: no custom broadcasts, and no trailing bytes.
    pub fn parse(mut buf: &[u8]) -> Result<Self> {
        let header = parse_header(&mut buf)?;
        let mut updates = Vec::new();
        if carries_updates(&header.message) && buf.has_remaining() {
            // The count is not trusted with an allocation: each member is read first.
            for _ in 0..get_u16(&mut buf)? {
                updates.push(parse_member(&mut buf)?);
            }
        }
        if buf.has_remaining() {
            return Err(CodecError::Trailing(buf.remaining()));
        }
        Ok(Self { header, updates })
    }

    /// Writes the datagram as foca would.
    pub fn emit(&self) -> Result<Vec<u8>> {
        let mut buf = Vec::new();
        emit_header(&self.header, &mut buf)?;
        if carries_updates(&self.header.message) {
            buf.put_u16(u16::try_from(self.updates.len()).ok().ok_or(CodecError::Short)?);
            for update in &self.updates {
                emit_member(update, &mut buf)?;
            }
        }
        Ok(buf)
    }
}

/// Adds an update to a foca datagram. `None` if it has no place for it, or holds it already.
pub(super) fn with_update(payload: &[u8], update: &Member<Identity>) -> Option<Vec<u8>> {
    let mut payload = Payload::parse(payload).ok()?;
    let has_place = carries_updates(&payload.header.message);
    if !has_place || payload.updates.iter().any(|other| other.id() == update.id()) {
        return None;
    }
    payload.updates.push(update.clone());
    payload.emit().ok().filter(|payload| payload.len() <= MAX_PAYLOAD)
}

/// Takes updates out of a foca datagram. `None` if there are none to take out.
pub(super) fn without_updates(
    payload: &[u8],
    unwanted: impl Fn(&Member<Identity>) -> bool,
) -> Option<Vec<u8>> {
    let mut payload = Payload::parse(payload).ok()?;
    let before = payload.updates.len();
    payload.updates.retain(|update| !unwanted(update));
    if payload.updates.len() == before { None } else { payload.emit().ok() }
}

/// What a foca datagram says; `None` if it cannot be read.
pub(super) fn message_of(payload: &[u8]) -> Option<Message<Identity>> {
    parse_header(payload).ok().map(|header| header.message)
}

fn carries_updates(message: &Message<Identity>) -> bool {
    !matches!(message, Message::Announce | Message::TurnUndead | Message::Broadcast)
}

/// The codec that foca is driven with.
#[derive(Clone, Copy, Debug)]
pub struct WireCodec;

impl foca::Codec<Identity> for WireCodec {
    type Error = CodecError;

    fn encode_header(&mut self, header: &Header<Identity>, buf: impl BufMut) -> Result<()> {
        emit_header(header, buf)
    }

    fn decode_header(&mut self, buf: impl Buf) -> Result<Header<Identity>> {
        parse_header(buf)
    }

    fn encode_member(&mut self, member: &Member<Identity>, buf: impl BufMut) -> Result<()> {
        emit_member(member, buf)
    }

    fn decode_member(&mut self, buf: impl Buf) -> Result<Member<Identity>> {
        parse_member(buf)
    }
}

/// Reads an identity and checks every field of it.
pub fn parse_identity(mut buf: impl Buf) -> Result<Identity> {
    let name = parse_text::<{ NodeName::MAX_LEN }, _>(&mut buf, NodeName::from_bytes)?;
    let generation = Generation(get_u64(&mut buf)?);
    let data_plane = DataPlaneId::new(get_u64(&mut buf)?).ok_or(CodecError::NoDataPlane)?;
    let addr = parse_socket_addr(&mut buf)?;
    let vtep = parse_ip(&mut buf)?;
    let listen = parse_socket_addr(&mut buf)?;
    let public_key = match get_u8(&mut buf)? {
        0 => [0; 32],
        1 => get_array(&mut buf)?,
        value => return Err(CodecError::Choice { field: "kind of key", value }),
    };
    Ok(Identity { name, addr, vtep, listen, generation, data_plane, public_key }.into_checked()?)
}

/// Writes an identity, or nothing at all if there is no room for it.
pub fn emit_identity(identity: &Identity, mut buf: impl BufMut) -> Result<()> {
    if buf.remaining_mut() < identity_len(identity) {
        return Err(CodecError::Short);
    }
    emit_text(identity.name.as_str(), &mut buf);
    buf.put_u64(identity.generation.0);
    buf.put_u64(identity.data_plane.get());
    emit_socket_addr(identity.addr, &mut buf);
    emit_ip(identity.vtep, &mut buf);
    emit_socket_addr(identity.listen, &mut buf);
    if identity.public_key == [0; 32] {
        buf.put_u8(0);
    } else {
        buf.put_u8(1);
        buf.put_slice(&identity.public_key);
    }
    Ok(())
}

/// Reads a text of one length byte and up to `N` bytes.
pub(super) fn parse_text<const N: usize, T>(
    buf: &mut impl Buf,
    check: impl FnOnce(&[u8]) -> std::result::Result<T, NameError>,
) -> Result<T> {
    let len = usize::from(get_u8(buf)?);
    let mut bytes = [0; N];
    let text = bytes.get_mut(..len).ok_or(NameError::TooLong { len, max: N })?;
    buf.try_copy_to_slice(text)?;
    Ok(check(text)?)
}

/// Writes a text of a type whose length fits in one byte.
pub(super) fn emit_text(text: &str, buf: &mut impl BufMut) {
    let len = u8::try_from(text.len()).unwrap_or(u8::MAX);
    buf.put_u8(len);
    buf.put_slice(text.as_bytes().get(..usize::from(len)).unwrap_or_default());
}

pub(super) fn get_u64(buf: &mut impl Buf) -> Result<u64> {
    Ok(buf.try_get_u64()?)
}

fn get_u8(buf: &mut impl Buf) -> Result<u8> {
    Ok(buf.try_get_u8()?)
}

fn get_u16(buf: &mut impl Buf) -> Result<u16> {
    Ok(buf.try_get_u16()?)
}

fn get_array<const N: usize>(buf: &mut impl Buf) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    buf.try_copy_to_slice(&mut bytes)?;
    Ok(bytes)
}

fn parse_ip(buf: &mut impl Buf) -> Result<IpAddr> {
    match get_u8(buf)? {
        4 => Ok(Ipv4Addr::from(get_array(buf)?).into()),
        6 => Ok(Ipv6Addr::from(get_array(buf)?).into()),
        value => Err(CodecError::Choice { field: "address family", value }),
    }
}

fn emit_ip(ip: IpAddr, buf: &mut impl BufMut) {
    match ip {
        IpAddr::V4(ip) => {
            buf.put_u8(4);
            buf.put_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            buf.put_u8(6);
            buf.put_slice(&ip.octets());
        }
    }
}

fn parse_socket_addr(buf: &mut impl Buf) -> Result<SocketAddr> {
    Ok(SocketAddr::new(parse_ip(buf)?, get_u16(buf)?))
}

fn emit_socket_addr(addr: SocketAddr, buf: &mut impl BufMut) {
    emit_ip(addr.ip(), buf);
    buf.put_u16(addr.port());
}

fn ip_len(ip: IpAddr) -> usize {
    if ip.is_ipv4() { 5 } else { 17 }
}

fn identity_len(identity: &Identity) -> usize {
    let key = if identity.public_key == [0; 32] { 0 } else { 32 };
    let addresses =
        ip_len(identity.addr.ip()) + ip_len(identity.vtep) + ip_len(identity.listen.ip());
    1 + identity.name.as_str().len() + 8 + 8 + addresses + 2 + 2 + 1 + key
}

fn parse_member(mut buf: impl Buf) -> Result<Member<Identity>> {
    let identity = parse_identity(&mut buf)?;
    let incarnation = get_u16(&mut buf)?;
    match get_u8(&mut buf)? {
        0 => Ok(Member::new(identity, incarnation, State::Alive)),
        1 => Ok(Member::new(identity, incarnation, State::Suspect)),
        2 => Ok(Member::new(identity, incarnation.min(LEFT - 1), State::Down)),
        3 => Ok(Member::new(identity, LEFT, State::Down)),
        value => Err(CodecError::Choice { field: "member state", value }),
    }
}

fn emit_member(member: &Member<Identity>, mut buf: impl BufMut) -> Result<()> {
    if buf.remaining_mut() < identity_len(member.id()) + 3 {
        return Err(CodecError::Short);
    }
    emit_identity(member.id(), &mut buf)?;
    buf.put_u16(member.incarnation());
    buf.put_u8(match (member.state(), member.incarnation()) {
        (State::Alive, _) => 0,
        (State::Suspect, _) => 1,
        (State::Down, LEFT) => 3,
        (State::Down, _) => 2,
    });
    Ok(())
}

fn parse_header(mut buf: impl Buf) -> Result<Header<Identity>> {
    let src = parse_identity(&mut buf)?;
    let src_incarnation = get_u16(&mut buf)?;
    let dst = parse_identity(&mut buf)?;
    let message = match get_u8(&mut buf)? {
        0 => Message::Ping(get_u8(&mut buf)?),
        1 => Message::Ack(get_u8(&mut buf)?),
        2 => {
            let probe_number = get_u8(&mut buf)?;
            Message::PingReq { target: parse_identity(&mut buf)?, probe_number }
        }
        3 => {
            let probe_number = get_u8(&mut buf)?;
            Message::IndirectPing { origin: parse_identity(&mut buf)?, probe_number }
        }
        4 => {
            let probe_number = get_u8(&mut buf)?;
            Message::IndirectAck { target: parse_identity(&mut buf)?, probe_number }
        }
        5 => {
            let probe_number = get_u8(&mut buf)?;
            Message::ForwardedAck { origin: parse_identity(&mut buf)?, probe_number }
        }
        6 => Message::Announce,
        7 => Message::Feed,
        8 => Message::Gossip,
        9 => Message::TurnUndead,
        value => return Err(CodecError::Choice { field: "message", value }),
    };
    Ok(Header { src, src_incarnation, dst, message })
}

fn emit_header(header: &Header<Identity>, mut buf: impl BufMut) -> Result<()> {
    emit_identity(&header.src, &mut buf)?;
    // Room for the incarnation, the message and its probe number, whichever message it is.
    if buf.remaining_mut() < 2 + identity_len(&header.dst) + 2 {
        return Err(CodecError::Short);
    }
    buf.put_u16(header.src_incarnation);
    emit_identity(&header.dst, &mut buf)?;
    let (kind, probe_number, third) = match &header.message {
        Message::Ping(number) => (0, Some(*number), None),
        Message::Ack(number) => (1, Some(*number), None),
        Message::PingReq { target, probe_number } => (2, Some(*probe_number), Some(target)),
        Message::IndirectPing { origin, probe_number } => (3, Some(*probe_number), Some(origin)),
        Message::IndirectAck { target, probe_number } => (4, Some(*probe_number), Some(target)),
        Message::ForwardedAck { origin, probe_number } => (5, Some(*probe_number), Some(origin)),
        Message::Announce => (6, None, None),
        Message::Feed => (7, None, None),
        Message::Gossip => (8, None, None),
        Message::TurnUndead => (9, None, None),
        // Sent for custom broadcasts alone, of which there are none.
        Message::Broadcast => return Err(CodecError::Choice { field: "message", value: 10 }),
    };
    buf.put_u8(kind);
    if let Some(number) = probe_number {
        buf.put_u8(number);
    }
    third.map_or(Ok(()), |identity| emit_identity(identity, &mut buf))
}
