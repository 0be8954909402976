//! What ranks say while they meet, as bytes.
//!
//! ```text
//! hello    magic (8), protocol (u32), run (u64), ranks (u32), rank (u32), port that it listens at (u16)
//! note     kind (u8), length (u32), so many bytes
//! table    run (u64), then for each rank address (16) and port (u16)
//! ```
//!
//! Numbers are little-endian. Magic and protocol stand first in every release's hello.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

const MAGIC: [u8; 8] = *b"OmChat\r\n";
/// Goes up with every change of what is said, here and between ranks that have met.
pub(super) const PROTOCOL: u32 = 1;
/// Bytes of a hello.
pub(super) const HELLO: usize = 30;
/// The longest text that a note bears.
pub(super) const TEXT: usize = 2000;
const ENTRY: usize = 18;

/// Whom the others are, from rank 0.
pub(super) const TABLE: u8 = 1;
/// Why this rank ends the meeting.
pub(super) const REFUSED: u8 = 2;
/// This rank has a socket to every other.
pub(super) const READY: u8 = 3;
/// All have, from rank 0.
pub(super) const GO: u8 = 4;

/// What a rank says first on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    /// The run, as rank 0 drew it; 0 to rank 0.
    pub run: u64,
    pub ranks: usize,
    pub rank: usize,
    /// Where it listens; 0 where it does not.
    pub port: u16,
}

/// What the first bytes of a socket are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Nothing yet.
    More,
    /// Not of a rank.
    Strange,
    /// Of a rank of another release.
    Other(u32),
    Hello(Hello),
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|n| u32::from_le_bytes(*n))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|n| u64::from_le_bytes(*n))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|n| u16::from_le_bytes(*n))
}

impl Hello {
    pub fn encode(&self) -> Vec<u8> {
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
        let mut out = Vec::with_capacity(HELLO);
        out.extend(MAGIC);
        out.extend(PROTOCOL.to_le_bytes());
        out.extend(self.run.to_le_bytes());
        out.extend(number(self.ranks));
        out.extend(number(self.rank));
        out.extend(self.port.to_le_bytes());
        out
    }

    /// What has come so far says.
    pub fn decode(bytes: &[u8]) -> Heard {
        if !bytes.iter().zip(MAGIC).all(|(a, b)| *a == b) {
            return Heard::Strange;
        }
        match u32_at(bytes, 8) {
            None => return Heard::More,
            Some(PROTOCOL) => {}
            Some(other) => return Heard::Other(other),
        }
        let hello = || {
            Some(Hello {
                run: u64_at(bytes, 12)?,
                ranks: u32_at(bytes, 20)? as usize,
                rank: u32_at(bytes, 24)? as usize,
                port: u16_at(bytes, 28)?,
            })
        };
        hello().map_or(Heard::More, Heard::Hello)
    }
}

/// How long the note of a table of so many ranks is.
pub(super) fn table_bytes(ranks: usize) -> usize {
    8 + ENTRY * ranks
}

pub(super) fn encode_table(run: u64, places: &[SocketAddr]) -> Vec<u8> {
    let mut out = run.to_le_bytes().to_vec();
    for place in places {
        let address = match place.ip() {
            IpAddr::V4(four) => four.to_ipv6_mapped(),
            IpAddr::V6(six) => six,
        };
        out.extend(address.octets());
        out.extend(place.port().to_le_bytes());
    }
    out
}

/// The run and where its ranks listen, if that is what it says of so many ranks.
pub(super) fn decode_table(bytes: &[u8], ranks: usize) -> Option<(u64, Vec<SocketAddr>)> {
    if bytes.len() != table_bytes(ranks) {
        return None;
    }
    let (run, rest) = bytes.split_at_checked(8)?;
    let place = |entry: &[u8]| {
        let address = Ipv6Addr::from(*entry.first_chunk::<16>()?);
        Some(SocketAddr::new(IpAddr::V6(address).to_canonical(), u16_at(entry, 16)?))
    };
    Some((u64_at(run, 0)?, rest.chunks_exact(ENTRY).map(place).collect::<Option<_>>()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_is_known_as_soon_as_it_is_whole_and_a_stranger_at_once() {
        let hello = Hello { run: u64::MAX - 5, ranks: 70_000, rank: 69_999, port: 65_535 };
        let bytes = hello.encode();
        assert_eq!(bytes.len(), HELLO);
        for n in 0..HELLO {
            assert_eq!(Hello::decode(&bytes[..n]), Heard::More, "{n} bytes");
        }
        assert_eq!(Hello::decode(&bytes), Heard::Hello(hello));
        for at in 0..8 {
            let mut other = bytes.clone();
            other[at] ^= 0x20;
            assert_eq!(Hello::decode(&other[..=at]), Heard::Strange);
        }
        let mut other = bytes.clone();
        other[8] = 9;
        assert_eq!(Hello::decode(&other[..12]), Heard::Other(9));
        assert_eq!(Hello::decode(b"GET / HTTP/1.1\r\n"), Heard::Strange);
    }

    #[test]
    fn a_table_comes_back_and_is_of_one_length() {
        let places: Vec<SocketAddr> =
            ["127.0.0.1:1", "10.1.2.3:65535", "[::1]:80", "[2001:db8::7]:29500"].map(|a| a.parse().unwrap()).into();
        let bytes = encode_table(77, &places);
        assert_eq!(bytes.len(), table_bytes(4));
        assert_eq!(decode_table(&bytes, 4), Some((77, places)));
        assert_eq!(decode_table(&bytes, 5), None);
        assert_eq!(decode_table(&bytes[1..], 4), None);
        assert_eq!(decode_table(&[], 0), None);
    }
}
