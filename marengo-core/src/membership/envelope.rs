//! The frame around every datagram: what it is, of which cluster, and whether it arrived whole.
//!
//! ```text
//!  'M' 'G' version kind | key id (4) | cluster (1 + n) | body | trailer (4)
//! ```
//!
//! The frame and the first fields of a who-is body are the same in every protocol version, so
//! that two nodes that cannot talk can still say why. `docs/wire.md` has the tables.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::{
    codec::{self, CodecError},
    error::DatagramError,
};
use crate::identity::{ClusterName, Generation, Identity, Version};

/// The protocol version this software speaks.
pub const PROTOCOL: u8 = 2;

/// The most bytes a datagram may have.
pub const MAX_DATAGRAM: usize = 1260;

/// The most bytes that foca may put into one datagram.
pub const MAX_PAYLOAD: usize = 1200;

/// Length of every who-is request, so that no answer is longer than what asked for it.
pub const WHO_IS_LEN: usize = 320;

const MAGIC: [u8; 2] = *b"MG";
const CHECKSUM_LEN: usize = 4;

/// What a datagram carries.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Kind {
    /// A foca payload.
    Gossip = 1,
    /// "Who are you?"
    WhoIs = 2,
    /// The answer to it.
    Answer = 3,
    /// "I leave."
    Leave = 4,
    /// "My daemon goes, my data plane stays, I am back soon."
    BackSoon = 5,
}

/// A datagram whose frame was read and whose checksum fits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Envelope<'a> {
    /// Protocol version of the sender.
    pub protocol: u8,
    /// What `body` is.
    pub kind: Kind,
    /// Cluster of the sender.
    pub cluster: ClusterName,
    /// The bytes between frame and trailer.
    pub body: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// Reads the frame. Does not judge the protocol version or the cluster.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, DatagramError> {
        if datagram.len() > MAX_DATAGRAM {
            return Err(DatagramError::TooLong);
        }
        let mut buf = datagram;
        let magic = buf.try_get_u16().ok().ok_or(DatagramError::NotMarengo)?;
        if magic != u16::from_be_bytes(MAGIC) {
            return Err(DatagramError::NotMarengo);
        }
        let (Ok(protocol), Ok(kind), Ok(key)) =
            (buf.try_get_u8(), buf.try_get_u8(), buf.try_get_u32())
        else {
            return Err(DatagramError::Malformed);
        };
        if key != 0 {
            return Err(DatagramError::UnknownKey);
        }
        let (checked, checksum) =
            datagram.split_last_chunk::<CHECKSUM_LEN>().ok_or(DatagramError::Malformed)?;
        if crc32(checked) != u32::from_be_bytes(*checksum) {
            return Err(DatagramError::Damaged);
        }
        let mut buf = buf.get(..buf.len().saturating_sub(CHECKSUM_LEN)).unwrap_or_default();
        let cluster =
            codec::parse_text::<{ ClusterName::MAX_LEN }, _>(&mut buf, ClusterName::from_bytes)?;
        let kind = match kind {
            1 => Kind::Gossip,
            2 => Kind::WhoIs,
            3 => Kind::Answer,
            4 => Kind::Leave,
            5 => Kind::BackSoon,
            _ => return Err(DatagramError::UnknownKind),
        };
        Ok(Self { protocol, kind, cluster, body: buf })
    }
}

/// Puts a body into its frame.
pub fn emit(kind: Kind, cluster: &ClusterName, body: &[u8]) -> Bytes {
    emit_as(PROTOCOL, kind, cluster, body)
}

/// As [`emit`], for a protocol version that need not be ours.
pub fn emit_as(protocol: u8, kind: Kind, cluster: &ClusterName, body: &[u8]) -> Bytes {
    let mut buf = BytesMut::with_capacity(frame_len(cluster) + body.len());
    buf.put_slice(&MAGIC);
    buf.put_u8(protocol);
    buf.put_u8(kind as u8);
    buf.put_u32(0);
    codec::emit_text(cluster.as_str(), &mut buf);
    buf.put_slice(body);
    let checksum = crc32(&buf);
    buf.put_u32(checksum);
    buf.freeze()
}

fn frame_len(cluster: &ClusterName) -> usize {
    8 + 1 + cluster.as_str().len() + CHECKSUM_LEN
}

/// The part of a who-is body that is the same in every protocol version.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Greeting {
    /// Chosen by the asker, repeated in the answer.
    pub nonce: u64,
    /// Software version of the sender.
    pub version: Version,
}

impl Greeting {
    fn parse(buf: &mut &[u8]) -> Result<Self, CodecError> {
        let nonce = codec::get_u64(buf)?;
        let version = codec::parse_text::<{ Version::MAX_LEN }, _>(buf, Version::from_bytes)?;
        Ok(Self { nonce, version })
    }

    fn emit(&self, buf: &mut Vec<u8>) {
        buf.put_u64(self.nonce);
        codec::emit_text(self.version.as_str(), buf);
    }
}

/// A who-is request: "who are you?", from somebody who says who it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WhoIs {
    /// Nonce and version.
    pub greeting: Greeting,
    /// Who asks.
    pub asker: Identity,
}

impl WhoIs {
    /// Reads the part that every protocol version has.
    pub fn parse_greeting(mut body: &[u8]) -> Result<Greeting, CodecError> {
        Greeting::parse(&mut body)
    }

    /// Reads the body. What follows the identity is padding.
    pub fn parse(mut body: &[u8]) -> Result<Self, CodecError> {
        let greeting = Greeting::parse(&mut body)?;
        let asker = codec::parse_identity(&mut body)?;
        Ok(Self { greeting, asker })
    }

    /// Writes the whole datagram, padded to [`WHO_IS_LEN`].
    pub fn emit(&self, cluster: &ClusterName) -> Result<Bytes, CodecError> {
        let mut body = Vec::with_capacity(WHO_IS_LEN);
        self.greeting.emit(&mut body);
        codec::emit_identity(&self.asker, &mut body)?;
        body.resize(WHO_IS_LEN.saturating_sub(frame_len(cluster)).max(body.len()), 0);
        Ok(emit(Kind::WhoIs, cluster, &body))
    }
}

/// The answer to a who-is request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer {
    /// The asker's nonce, and the version of who answers.
    pub greeting: Greeting,
    /// Who answers. Absent when the asker speaks another protocol or belongs to another cluster.
    pub responder: Option<Identity>,
    /// The highest generation that the responder knows for the asker's address; zero if none.
    pub known_generation: Generation,
}

impl Answer {
    /// Reads the part that every protocol version has.
    pub fn parse_greeting(mut body: &[u8]) -> Result<Greeting, CodecError> {
        Greeting::parse(&mut body)
    }

    /// Reads the body.
    pub fn parse(mut body: &[u8]) -> Result<Self, CodecError> {
        let greeting = Greeting::parse(&mut body)?;
        let known_generation = Generation(codec::get_u64(&mut body)?);
        let responder = match body.split_first() {
            Some((0, rest)) => {
                body = rest;
                None
            }
            Some((1, rest)) => {
                body = rest;
                Some(codec::parse_identity(&mut body)?)
            }
            Some((&value, _)) => return Err(CodecError::Choice { field: "responder", value }),
            None => return Err(CodecError::Short),
        };
        if !body.is_empty() {
            return Err(CodecError::Trailing(body.len()));
        }
        Ok(Self { greeting, responder, known_generation })
    }

    /// Writes the whole datagram.
    pub fn emit(&self, cluster: &ClusterName) -> Result<Bytes, CodecError> {
        let mut body = Vec::new();
        self.greeting.emit(&mut body);
        body.put_u64(self.known_generation.0);
        body.put_u8(u8::from(self.responder.is_some()));
        if let Some(responder) = &self.responder {
            codec::emit_identity(responder, &mut body)?;
        }
        Ok(emit(Kind::Answer, cluster, &body))
    }
}

// The largest answer must not be longer than any request.
const _: () = assert!(
    8 + 1
        + ClusterName::MAX_LEN
        + (8 + 1 + Version::MAX_LEN)
        + 8
        + 1
        + codec::MAX_IDENTITY_LEN
        + CHECKSUM_LEN
        <= WHO_IS_LEN
);
const _: () = assert!(8 + 1 + ClusterName::MAX_LEN + MAX_PAYLOAD + 16 <= MAX_DATAGRAM);

/// CRC-32 as in Ethernet. It finds damage, not forgery: anybody can compute it.
pub fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            #[expect(clippy::cast_possible_truncation, reason = "index is below 256")]
            let mut entry = index as u32;
            let mut bit = 0;
            while bit < 8 {
                entry = if entry & 1 == 1 { 0xedb8_8320 ^ (entry >> 1) } else { entry >> 1 };
                bit += 1;
            }
            table[index] = entry;
            index += 1;
        }
        table
    };
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        let [low, ..] = crc.to_le_bytes();
        TABLE[usize::from(low ^ byte)] ^ (crc >> 8)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_of_ethernet() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn a_frame_is_read_back() {
        let cluster = ClusterName::new("blue").unwrap();

        let datagram = emit(Kind::Leave, &cluster, b"body");

        let envelope = Envelope { protocol: PROTOCOL, kind: Kind::Leave, cluster, body: b"body" };
        assert_eq!(Envelope::parse(&datagram), Ok(envelope));
    }

    #[test]
    fn a_datagram_with_a_key_is_refused_as_such() {
        let mut datagram = emit(Kind::Leave, &ClusterName::new("blue").unwrap(), b"").to_vec();
        datagram[7] = 1;

        assert_eq!(Envelope::parse(&datagram), Err(DatagramError::UnknownKey));
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let datagram = emit(Kind::Gossip, &ClusterName::new("blue").unwrap(), &[7; 100]).to_vec();
        for bit in 0..datagram.len() * 8 {
            let mut damaged = datagram.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);

            assert!(Envelope::parse(&damaged).is_err(), "bit {bit}");
        }
    }
}
