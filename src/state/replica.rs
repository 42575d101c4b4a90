//! Which replicas are there, and whether they can be reached.
//!
//! A replica is alive while its row was touched within three intervals, by the store's clock. Peers that are
//! alive and have a relay are probed; what fails is written to the own row's error, where people look.

use std::collections::BTreeMap;
use std::time::Duration;

use uuid::Uuid;

/// How often a replica touches its row: 5 s.
pub const SYNC_EVERY: Duration = Duration::from_secs(5);
/// How long a row counts that is not touched: three intervals, so that one slow sync kills nobody.
pub const ALIVE_FOR: Duration = Duration::from_secs(15);
/// How long a probe may take.
pub const PROBE_WAIT: Duration = Duration::from_secs(3);
/// When rows of the dead are removed.
pub const FORGOTTEN_AFTER: Duration = Duration::from_secs(30 * 60);

/// Whether a replica is alive whose row was touched `age` ago.
pub fn is_alive(age: Duration, stopped: bool) -> bool {
    !stopped && age <= ALIVE_FOR
}

/// The peers of a replica, as it sees them.
///
/// Invariant: `out` holds the newest probe of each peer alone, so an answer that comes late changes nothing.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    alive: BTreeMap<Uuid, String>,
    out: BTreeMap<u64, Uuid>,
    failed: BTreeMap<Uuid, String>,
    probes: u64,
}

impl Peers {
    /// Takes who is alive and where each one's relay listens; gives the probes to make: number and address.
    pub fn sync(&mut self, alive: BTreeMap<Uuid, String>) -> Vec<(u64, String)> {
        self.failed.retain(|peer, _| alive.contains_key(peer));
        self.alive = alive;
        self.out.clear();
        let mut probes = Vec::new();
        for (peer, url) in &self.alive {
            self.probes += 1;
            self.out.insert(self.probes, *peer);
            probes.push((self.probes, url.clone()));
        }
        probes
    }

    /// A probe has answered.
    pub fn probed(&mut self, probe: u64, outcome: Result<(), String>) {
        let Some(peer) = self.out.remove(&probe) else { return };
        match outcome {
            Ok(()) => _ = self.failed.remove(&peer),
            Err(why) => _ = self.failed.insert(peer, why),
        }
    }

    /// Where a peer's relay listens, if it is alive.
    pub fn relay_url(&self, peer: Uuid) -> Option<&str> {
        self.alive.get(&peer).map(String::as_str)
    }

    /// Which peers the last probe did not reach, and why.
    pub fn failed(&self) -> &BTreeMap<Uuid, String> {
        &self.failed
    }

    /// What to write to the own row: empty when every peer can be reached.
    pub fn error(&self) -> String {
        if self.failed.is_empty() {
            return String::new();
        }
        let each = self.failed.iter().map(|(peer, why)| {
            let url = self.alive.get(peer).map_or("", String::as_str);
            format!("relay {peer} ({url}): {why}")
        });
        format!("cannot reach peers: {}", each.collect::<Vec<_>>().join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Uuid = Uuid::from_u128(1);
    const OTHER: Uuid = Uuid::from_u128(2);

    fn alive(peers: &[(Uuid, &str)]) -> BTreeMap<Uuid, String> {
        peers.iter().map(|(peer, url)| (*peer, (*url).to_owned())).collect()
    }

    #[test]
    fn a_replica_is_alive_for_three_intervals_and_not_once_it_stopped() {
        assert!(is_alive(Duration::from_secs(15), false));
        assert!(!is_alive(Duration::from_secs(16), false));
        assert!(!is_alive(Duration::ZERO, true));
    }

    #[test]
    fn a_peer_that_cannot_be_reached_is_named_with_its_address_until_it_can() {
        let mut peers = Peers::default();
        let probes = peers.sync(alive(&[(ONE, "http://one"), (OTHER, "http://other")]));
        assert_eq!(probes, [(1, "http://one".to_owned()), (2, "http://other".to_owned())]);
        peers.probed(1, Err("did not answer in time".into()));
        peers.probed(2, Ok(()));
        assert_eq!(
            peers.error(),
            format!("cannot reach peers: relay {ONE} (http://one): did not answer in time")
        );
        peers.sync(alive(&[(ONE, "http://one")]));
        assert!(!peers.error().is_empty(), "nothing is known to be well again");
        peers.probed(3, Ok(()));
        assert_eq!(peers.error(), "");
    }

    #[test]
    fn the_answer_of_an_older_probe_changes_nothing() {
        let mut peers = Peers::default();
        peers.sync(alive(&[(ONE, "http://one")]));
        peers.sync(alive(&[(ONE, "http://one")]));
        peers.probed(1, Err("late".into()));
        assert_eq!(peers.error(), "");
    }

    #[test]
    fn a_peer_that_is_gone_is_no_error_and_has_no_relay() {
        let mut peers = Peers::default();
        peers.sync(alive(&[(ONE, "http://one")]));
        peers.probed(1, Err("gone".into()));
        assert_eq!(peers.relay_url(ONE), Some("http://one"));
        peers.sync(BTreeMap::new());
        assert_eq!((peers.error().as_str(), peers.relay_url(ONE)), ("", None));
    }
}
