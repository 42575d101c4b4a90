//! Pipes that another replica has: finding that one, and vouching for who wants to resume.
//!
//! The first half of a pipe's id names the replica that made it. A balancer may send a resume to any other;
//! that one knows the caller, takes the token out of the first message, and carries everything else on to
//! the owner over the relay's listener. What opens it is a ticket for one pipe and one caller, so that
//! neither can be exchanged on the way. Whether the caller knows the pipe's secret is still for the owner
//! to find out.

use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::CarrierPeer;
use super::dial::Dialer;
use super::http::HttpDialer;
use crate::engine::replicas::Replicas;
use crate::engine::streams::RELAY_TICKET;
use crate::state::pipe::PipeId;
use crate::wire::ClientTls;

/// Which pipe somebody wants to resume.
const PIPE: &str = "towpath-pipe";
/// Whose it has to be, in base64url: a name may hold what no header may.
const PRINCIPAL: &str = "towpath-principal";
/// Where the caller is.
const FOR: &str = "towpath-for";

/// Where a pipe is that somebody wants to resume.
pub enum Way {
    /// Here, if there is such a pipe at all.
    Here,
    /// At another replica.
    Through(Arc<dyn Dialer>),
    /// At another replica that cannot be reached, and why.
    Nowhere(String),
}

/// Finds the way to a pipe. Asked on the pipes' threads: it must not wait.
pub type Ways = Arc<dyn Fn(PipeId, &CarrierPeer) -> Way + Send + Sync>;

/// What the ids of a replica's pipes begin with. A replica has another id after each start, so a pipe of an
/// earlier run is nobody's.
pub fn owner(replica: Uuid) -> [u8; 8] {
    let digest =
        Sha256::new().chain_update(b"towpath pipe owner").chain_update(replica.as_bytes()).finalize();
    digest[..8].try_into().expect("eight of 32 bytes")
}

/// What one replica says to another for somebody who wants to resume a pipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voucher {
    /// Which.
    pub id: PipeId,
    /// Who it is.
    pub principal: String,
    /// Where he is, for lists; nothing depends on it.
    pub ip: Option<IpAddr>,
}

impl Voucher {
    /// What the ticket has to be for: this pipe and this caller.
    pub fn subject(&self) -> Uuid {
        let digest = Sha256::new()
            .chain_update(b"towpath pipe voucher")
            .chain_update(self.id.0)
            .chain_update(self.principal.as_bytes())
            .finalize();
        Uuid::from_bytes(digest[..16].try_into().expect("16 of 32 bytes"))
    }

    /// Reads what [`headers`](Voucher::headers) wrote.
    pub fn read<'a>(header: impl Fn(&'static str) -> Option<&'a str>) -> Option<Voucher> {
        let principal = URL_SAFE_NO_PAD.decode(header(PRINCIPAL)?).ok()?;
        Some(Voucher {
            id: PipeId::parse(header(PIPE)?)?,
            principal: String::from_utf8(principal).ok()?,
            ip: header(FOR).and_then(|ip| ip.parse().ok()),
        })
    }

    fn headers(&self) -> Vec<(&'static str, String)> {
        let principal = URL_SAFE_NO_PAD.encode(&self.principal);
        let mut headers = vec![(PIPE, self.id.to_string()), (PRINCIPAL, principal)];
        headers.extend(self.ip.map(|ip| (FOR, ip.to_string())));
        headers
    }
}

/// The ways between replicas of one store. `trust` is for relays behind `https`.
pub fn ways(replicas: &Replicas, trust: Option<ClientTls>) -> Ways {
    let replicas = replicas.clone();
    Arc::new(move |id, peer| {
        let (Some(principal), false) = (&peer.principal, id.owner() == owner(replicas.me())) else {
            return Way::Here;
        };
        // One that is not alive has no pipes any more: whoever answers says so.
        let Some(other) = replicas.peers().into_iter().find(|other| owner(other.id) == id.owner()) else {
            return Way::Here;
        };
        let Some(url) = other.relay_url else {
            return Way::Nowhere(format!("{} has no relay (relay.listen)", other.hostname));
        };
        let voucher = Voucher { id, principal: principal.to_string(), ip: peer.ip };
        let Some(ticket) = replicas.ticket(other.id, voucher.subject()) else {
            return Way::Nowhere("there is no key to sign a ticket with yet".into());
        };
        let path = format!("/relay/v1/pipes/{}", voucher.subject());
        let mut headers = voucher.headers();
        headers.push((RELAY_TICKET, ticket));
        match HttpDialer::to_replica(&url, path, headers, trust.clone()) {
            Ok(dialer) => Way::Through(Arc::new(dialer)),
            Err(error) => Way::Nowhere(error.to_string()),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_voucher_is_read_as_it_was_written_and_is_for_one_pipe_and_one_caller() {
        let voucher =
            Voucher { id: PipeId([7; 16]), principal: "Zoë: a\nb".into(), ip: "10.0.0.7".parse().ok() };
        let headers = voucher.headers();
        let header = |name: &str| headers.iter().find(|(n, _)| *n == name).map(|(_, value)| value.as_str());
        assert_eq!(Voucher::read(header), Some(voucher.clone()));
        assert!(headers.iter().all(|(_, value)| value.bytes().all(|byte| byte.is_ascii_graphic())));
        let other = Voucher { id: PipeId([8; 16]), ..voucher.clone() };
        assert_ne!(other.subject(), voucher.subject());
        let other = Voucher { principal: "zoë".into(), ..voucher.clone() };
        assert_ne!(other.subject(), voucher.subject());
        let other = Voucher { ip: None, ..voucher.clone() };
        assert_eq!(other.subject(), voucher.subject(), "where he is may change");
    }

    #[test]
    fn another_run_is_another_owner() {
        assert_ne!(owner(Uuid::from_u128(1)), owner(Uuid::from_u128(2)));
    }
}
