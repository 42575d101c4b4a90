//! Events on their way to rooms, one batch for each room and poll round.

use crate::wire::link::{Happened, LinkBatch, LinkEvent, LinkId, Outlet, Owner};

/// Invariant: an outlet stands here at most once; `bytes` is what all batches hold of what peers sent.
#[derive(Debug, Default)]
pub(super) struct Outboxes {
    boxes: Vec<Outbox>,
    bytes: usize,
}

#[derive(Debug)]
struct Outbox {
    outlet: Outlet,
    batch: LinkBatch,
    bytes: usize,
    /// Whether the room had no place last time.
    stuck: bool,
    /// Links that are not read until the room takes the batch: those of its events so far, each as often as it has
    /// any.
    parked: Vec<LinkId>,
}

/// What came of offering every batch.
#[derive(Debug, Default)]
pub(super) struct Delivered {
    /// Links to park: their room is full.
    pub(super) park: Vec<LinkId>,
    /// Links to read again: their room took everything.
    pub(super) unpark: Vec<LinkId>,
    /// How many rooms became full in this round.
    pub(super) full: u64,
}

impl Outboxes {
    pub(super) fn push(&mut self, owner: &Owner, link: LinkId, what: Happened) {
        let size = match &what {
            Happened::Text(text) => text.len(),
            Happened::Binary(bytes) | Happened::Bytes(bytes) => bytes.len(),
            _ => 0,
        };
        self.bytes += size;
        let event = LinkEvent { link, tag: owner.tag, what };
        match self.boxes.iter_mut().find(|one| one.outlet.is(&owner.outlet)) {
            Some(one) => {
                one.bytes += size;
                one.batch.push(event);
            }
            None => {
                let outlet = owner.outlet.clone();
                self.boxes.push(Outbox {
                    outlet,
                    batch: vec![event],
                    bytes: size,
                    stuck: false,
                    parked: Vec::new(),
                });
            }
        }
    }

    /// Bytes that no room has taken yet.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a room was full when it was last offered its batch.
    pub(super) fn is_stuck(&self) -> bool {
        self.boxes.iter().any(|one| one.stuck)
    }

    /// Offers every batch to its room.
    pub(super) fn deliver(&mut self) -> Delivered {
        let mut delivered = Delivered::default();
        self.boxes.retain_mut(|one| match one.outlet.deliver(std::mem::take(&mut one.batch)) {
            Ok(()) => {
                self.bytes -= one.bytes;
                delivered.unpark.append(&mut one.parked);
                false
            }
            // A full room parks its links: what they sent stays here, and nothing more is read.
            Err(batch) => {
                one.batch = batch;
                delivered.full += u64::from(!one.stuck);
                one.stuck = true;
                let new = one.batch[one.parked.len()..].iter().map(|event| event.link);
                delivered.park.extend(new.clone());
                one.parked.extend(new);
                true
            }
        });
        delivered
    }
}
