//! The question whether a data plane is there, and its answer.
//!
//! Both are Ethernet frames inside the tunnel. The ingress program of the node that is asked turns
//! the question into the answer and sends it back by itself, so the answer tells of the programs,
//! the maps and the way there and back, and of no process.
//!
//! ```text
//!  0        6        12  14       18  19  20  22              30          60
//!  | to     | from   |88B5| "MRGO" | v | k | 0 | data plane id | 0 ... 0   |
//! ```

use crate::net::MacAddr;

/// The first of the two EtherTypes that IEEE 802 leaves for local experiments.
pub const ASK_ETHERTYPE: u16 = 0x88b5;
/// Behind the Ethernet header: tells our frames from other experiments.
pub const ASK_MAGIC: [u8; 4] = *b"MRGO";
/// The version of this layout.
pub const ASK_VERSION: u8 = 1;
/// Bytes of a question and of an answer: the least that Ethernet carries.
pub const ASK_LEN: usize = 60;
/// Where [`ASK_MAGIC`] begins.
pub const ASK_MAGIC_OFFSET: usize = 14;
/// Where the [`AskKind`] is.
pub const ASK_KIND_OFFSET: usize = 19;
/// Where the answering data plane's identity begins: 8 bytes, big endian; zero in a question.
pub const ASK_ID_OFFSET: usize = 22;

/// The station that nobody is: both addresses of the frames. Locally administered.
pub const ASK_MAC: MacAddr = MacAddr([0x02, b'M', b'R', b'G', b'O', 0]);

/// Question or answer.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AskKind {
    /// Are you there?
    Question = 1,
    /// I am.
    Answer = 2,
}

/// Lays out a question.
pub const fn question() -> [u8; ASK_LEN] {
    let mut frame = [0; ASK_LEN];
    let mut at = 0;
    while at < 6 {
        frame[at] = ASK_MAC.0[at];
        frame[6 + at] = ASK_MAC.0[at];
        at += 1;
    }
    let ethertype = ASK_ETHERTYPE.to_be_bytes();
    frame[12] = ethertype[0];
    frame[13] = ethertype[1];
    let mut at = 0;
    while at < 4 {
        frame[ASK_MAGIC_OFFSET + at] = ASK_MAGIC[at];
        at += 1;
    }
    frame[18] = ASK_VERSION;
    frame[ASK_KIND_OFFSET] = AskKind::Question as u8;
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_laid_out_as_the_page_says() {
        let frame = question();

        assert_eq!(frame[..6], frame[6..12]);
        assert_eq!(frame[12..22], *b"\x88\xb5MRGO\x01\x01\0\0");
        assert!(frame[22..].iter().all(|byte| *byte == 0));
    }
}
