//! Relay tickets: what a replica shows another to read a stream's parts, once, for a few seconds.
//!
//! No credential of a user leaves the replica it was given to. Instead the replica that follows signs who
//! it is, whom it calls and which stream it wants, with a key that only replicas of one store share; the
//! other checks it, and remembers the nonce until the ticket would have expired anyway.
//!
//! Layout, base64url without padding: version (1 byte), expiry (8 bytes, Unix milliseconds, big-endian), nonce
//! (16), stream (16), from (16), to (16), HMAC-SHA-256 of all that (32).

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use uuid::Uuid;

use crate::state::time::Wall;

const VERSION: u8 = 1;
const SIGNED: usize = 1 + 8 + 4 * 16;
const WHOLE: usize = SIGNED + 32;

/// What a ticket says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayTicket {
    /// When it is worthless.
    pub expires: Wall,
    /// A number used once.
    pub nonce: [u8; 16],
    /// Which stream.
    pub stream: Uuid,
    /// The replica that asks.
    pub from: Uuid,
    /// The replica that is asked.
    pub to: Uuid,
}

/// Why a ticket is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TicketRefused {
    /// It is not a ticket.
    Malformed,
    /// It was not signed with our key.
    Forged,
    /// Its time is over, or lies further ahead than tickets are made for.
    Expired,
    /// It is meant for another replica.
    Misdirected,
    /// It has been used.
    Replayed,
    /// Too many tickets wait to expire to remember another.
    Full,
}

impl fmt::Display for TicketRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TicketRefused::Malformed => "it is not a relay ticket",
            TicketRefused::Forged => "it was not signed with the key of this store",
            TicketRefused::Expired => "it has expired",
            TicketRefused::Misdirected => "it is meant for another replica",
            TicketRefused::Replayed => "it was used before",
            TicketRefused::Full => "too many tickets are being used at the moment",
        })
    }
}

impl std::error::Error for TicketRefused {}

/// A key that replicas of one store share. It prints as `[redacted]`.
#[derive(Clone)]
pub struct RelayKey([u8; 32]);

impl fmt::Debug for RelayKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl RelayKey {
    /// A key from 32 bytes that nobody can guess.
    pub fn new(bytes: [u8; 32]) -> RelayKey {
        RelayKey(bytes)
    }

    fn mac(&self, bytes: &[u8]) -> Hmac<Sha256> {
        let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        mac.update(bytes);
        mac
    }

    /// Signs a ticket.
    pub fn sign(&self, ticket: &RelayTicket) -> String {
        let mut bytes = Vec::with_capacity(WHOLE);
        bytes.push(VERSION);
        bytes.extend_from_slice(&ticket.expires.as_millis().to_be_bytes());
        bytes.extend_from_slice(&ticket.nonce);
        for id in [ticket.stream, ticket.from, ticket.to] {
            bytes.extend_from_slice(id.as_bytes());
        }
        let mac = self.mac(&bytes).finalize().into_bytes();
        bytes.extend_from_slice(&mac);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads a ticket that was signed with this key; the time is not looked at.
    fn open(&self, text: &str) -> Result<RelayTicket, TicketRefused> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| TicketRefused::Malformed)?;
        if bytes.len() != WHOLE || bytes[0] != VERSION {
            return Err(TicketRefused::Malformed);
        }
        let (signed, mac) = bytes.split_at(SIGNED);
        self.mac(signed).verify_slice(mac).map_err(|_| TicketRefused::Forged)?;
        let sixteen =
            |at: usize| -> [u8; 16] { signed[at..at + 16].try_into().expect("inside the signed part") };
        Ok(RelayTicket {
            expires: Wall::from_millis(i64::from_be_bytes(signed[1..9].try_into().expect("eight bytes"))),
            nonce: sixteen(9),
            stream: Uuid::from_bytes(sixteen(25)),
            from: Uuid::from_bytes(sixteen(41)),
            to: Uuid::from_bytes(sixteen(57)),
        })
    }
}

/// Checks tickets and remembers which were used.
///
/// Invariant: `used` holds the nonce of every accepted ticket that has not expired, and at most
/// [`Checker::USED_MAX`] of them.
#[derive(Debug)]
pub struct Checker {
    key: RelayKey,
    me: Uuid,
    /// Nonces by when their ticket expires.
    used: BTreeMap<(Wall, [u8; 16]), ()>,
}

impl Checker {
    /// Tickets used within their lifetime that are remembered at most.
    pub const USED_MAX: usize = 65_536;
    /// How far ahead a ticket may expire, in milliseconds: 60 s, more than clocks of replicas differ.
    const AHEAD_MAX: i64 = 60_000;

    /// A checker for the tickets meant for replica `me`.
    pub fn new(key: RelayKey, me: Uuid) -> Checker {
        Checker { key, me, used: BTreeMap::new() }
    }

    /// Accepts a ticket, once.
    ///
    /// # Errors
    /// Why not.
    pub fn accept(&mut self, text: &str, now: Wall) -> Result<RelayTicket, TicketRefused> {
        let ticket = self.key.open(text)?;
        if ticket.to != self.me {
            return Err(TicketRefused::Misdirected);
        }
        if ticket.expires <= now
            || ticket.expires.as_millis() > now.as_millis().saturating_add(Self::AHEAD_MAX)
        {
            return Err(TicketRefused::Expired);
        }
        self.used = self.used.split_off(&(now, [0; 16]));
        if self.used.len() >= Checker::USED_MAX {
            return Err(TicketRefused::Full);
        }
        match self.used.insert((ticket.expires, ticket.nonce), ()) {
            None => Ok(ticket),
            Some(()) => Err(TicketRefused::Replayed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: Uuid = Uuid::from_u128(1);
    const NOW: Wall = Wall(1_000_000_000);

    fn ticket() -> RelayTicket {
        let expires = Wall(NOW.0 + 10_000_000);
        RelayTicket { expires, nonce: [7; 16], stream: Uuid::from_u128(3), from: Uuid::from_u128(2), to: ME }
    }

    fn key() -> RelayKey {
        RelayKey::new([9; 32])
    }

    #[test]
    fn a_ticket_is_good_once() {
        let mut checker = Checker::new(key(), ME);
        let text = key().sign(&ticket());
        assert_eq!(checker.accept(&text, NOW), Ok(ticket()));
        assert_eq!(checker.accept(&text, NOW), Err(TicketRefused::Replayed));
        assert_eq!(checker.accept(&text, Wall(NOW.0 + 10_000_000)), Err(TicketRefused::Expired));
        let other = RelayTicket { nonce: [8; 16], expires: Wall(NOW.0 + 20_000_000), ..ticket() };
        assert_eq!(checker.accept(&key().sign(&other), Wall(NOW.0 + 15_000_000)), Ok(other));
        assert_eq!(checker.used.len(), 1, "what has expired is forgotten");
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = URL_SAFE_NO_PAD.decode(key().sign(&ticket())).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut forged = bytes.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            let refused = Checker::new(key(), ME).accept(&URL_SAFE_NO_PAD.encode(forged), NOW).unwrap_err();
            assert!(matches!(refused, TicketRefused::Forged | TicketRefused::Malformed), "bit {bit}");
        }
    }

    #[test]
    fn a_ticket_for_somebody_else_or_another_time_is_refused() {
        let mut checker = Checker::new(key(), ME);
        let mut refused =
            |ticket: RelayTicket, key: RelayKey| checker.accept(&key.sign(&ticket), NOW).unwrap_err();
        assert_eq!(
            refused(RelayTicket { to: Uuid::from_u128(5), ..ticket() }, key()),
            TicketRefused::Misdirected
        );
        assert_eq!(refused(RelayTicket { expires: NOW, ..ticket() }, key()), TicketRefused::Expired);
        let far = Wall(NOW.0 + 61_000_000);
        assert_eq!(refused(RelayTicket { expires: far, ..ticket() }, key()), TicketRefused::Expired);
        assert_eq!(refused(ticket(), RelayKey::new([8; 32])), TicketRefused::Forged);
        assert_eq!(checker.accept("rubbish", NOW), Err(TicketRefused::Malformed));
    }

    #[test]
    fn a_key_does_not_print() {
        assert_eq!(format!("{:?}", key()), "[redacted]");
    }
}
