//! How both ends show that they know a pipe's secret without saying it.
//!
//! Each end sends a MAC over everything the other one relies on: the pipe, the server's run, both
//! nonces, the epoch and the offsets. A recording is worth nothing, because the server's nonce is new;
//! a proof for one pipe is worth nothing for another; and the server's answer shows a client that it
//! talks to the one who has its bytes.

use super::PipeId;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::fmt;
use subtle::ConstantTimeEq;

/// What takes a pipe over. Issued once, when the pipe is made; never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub [u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A MAC as it travels.
pub type Tag = [u8; 32];

/// What is the same for both proofs of one handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transcript {
    /// The pipe.
    pub id: PipeId,
    /// The server's run: a restarted server is another one.
    pub instance: [u8; 16],
    /// Drawn by the server for this handshake.
    pub server_nonce: [u8; 16],
    /// Drawn by the client for this handshake.
    pub client_nonce: [u8; 16],
    /// The epoch the client proposes.
    pub epoch: u64,
}

/// What one end says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stand {
    /// It has everything below; counts the end of the direction as one.
    pub recv: u64,
    /// Whether `recv` counts the end of the direction.
    pub fin: bool,
    /// Up to where the other end may send.
    pub limit: u64,
}

/// The client's proof.
pub fn client(secret: &Secret, transcript: &Transcript, stand: &Stand) -> Tag {
    tag(secret, b"towpath pipe 1 client", transcript, stand)
}

/// The server's proof.
pub fn server(secret: &Secret, transcript: &Transcript, stand: &Stand) -> Tag {
    tag(secret, b"towpath pipe 1 server", transcript, stand)
}

/// Whether two MACs are the same, in a time that does not depend on where they differ.
pub fn same(one: &Tag, other: &Tag) -> bool {
    one.ct_eq(other).into()
}

fn tag(secret: &Secret, label: &[u8], transcript: &Transcript, stand: &Stand) -> Tag {
    let mut mac = Hmac::<Sha256>::new_from_slice(&secret.0).expect("HMAC takes a key of any length");
    // Every field has a fixed length, so that no two inputs read the same.
    mac.update(label);
    mac.update(&transcript.id.0);
    mac.update(&transcript.instance);
    mac.update(&transcript.server_nonce);
    mac.update(&transcript.client_nonce);
    mac.update(&transcript.epoch.to_be_bytes());
    mac.update(&stand.recv.to_be_bytes());
    mac.update(&[u8::from(stand.fin)]);
    mac.update(&stand.limit.to_be_bytes());
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: Secret = Secret([7; 32]);
    const TRANSCRIPT: Transcript = Transcript {
        id: PipeId([1; 16]),
        instance: [2; 16],
        server_nonce: [3; 16],
        client_nonce: [4; 16],
        epoch: 5,
    };
    const STAND: Stand = Stand { recv: 6, fin: false, limit: 7 };

    #[test]
    fn every_field_counts_and_so_does_the_side() {
        let proof = client(&SECRET, &TRANSCRIPT, &STAND);
        assert!(same(&proof, &client(&SECRET, &TRANSCRIPT, &STAND)));
        assert!(!same(&proof, &server(&SECRET, &TRANSCRIPT, &STAND)), "a proof cannot be sent back");
        let others = [
            Transcript { id: PipeId([9; 16]), ..TRANSCRIPT },
            Transcript { instance: [9; 16], ..TRANSCRIPT },
            Transcript { server_nonce: [9; 16], ..TRANSCRIPT },
            Transcript { client_nonce: [9; 16], ..TRANSCRIPT },
            Transcript {
                server_nonce: TRANSCRIPT.client_nonce,
                client_nonce: TRANSCRIPT.server_nonce,
                ..TRANSCRIPT
            },
            Transcript { epoch: 9, ..TRANSCRIPT },
        ];
        for other in others {
            assert!(!same(&proof, &client(&SECRET, &other, &STAND)), "{other:?}");
        }
        for other in [Stand { recv: 9, ..STAND }, Stand { fin: true, ..STAND }, Stand { limit: 9, ..STAND }] {
            assert!(!same(&proof, &client(&SECRET, &TRANSCRIPT, &other)), "{other:?}");
        }
        assert!(!same(&proof, &client(&Secret([8; 32]), &TRANSCRIPT, &STAND)));
    }

    #[test]
    fn a_secret_does_not_print() {
        assert_eq!(format!("{SECRET:?}"), "[redacted]");
    }
}
