//! The door of the metadata: of each key the newest value, where its callers stand.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use uuid::Uuid;

use crate::engine::door::{Door, Sealed};
use crate::rt::{Hasher, Moment, Rt, Wall};
use crate::state::metadata::{Entry, Key, Limits};

/// The door of the metadata.
#[derive(Debug)]
pub(in crate::engine) struct MetadataDoor {
    pub(super) door: Door<Shard>,
    hasher: Hasher,
    bound: usize,
    /// Values that could not be written and are back in the flush room's batch.
    pub(super) kept: AtomicUsize,
    /// What the calendar said when the runtime's clock was at zero. Stamps follow the monotonic clock
    /// from there, so a calendar that jumps does not reorder values.
    began: Wall,
}

#[derive(Debug)]
pub(super) struct Shard {
    agents: HashMap<Uuid, HashMap<Box<str>, Entry, Hasher>, Hasher>,
    hasher: Hasher,
    /// The newest stamp given out in this shard. A later report gets a later one, though it comes in
    /// the same microsecond, or after what it replaces was taken to be written.
    newest: Wall,
    floor: Wall,
    pub(super) accepted: u64,
    pub(super) coalesced: u64,
    pub(super) refused: u64,
}

/// What became of a report at the door.
pub(super) struct Added {
    /// How many values were held before.
    pub(super) before: usize,
    /// How many keys are new.
    pub(super) new: usize,
    /// The keys that were refused.
    pub(super) refused: Vec<String>,
}

impl MetadataDoor {
    pub(super) fn new(rt: &Rt, bound: usize) -> MetadataDoor {
        let hasher = rt.hasher();
        let since = Duration::from_nanos(rt.now().0);
        let door = Door::new(|| Shard {
            agents: HashMap::with_hasher(hasher.clone()),
            hasher: hasher.clone(),
            newest: Wall(i64::MIN),
            floor: Wall(i64::MIN),
            accepted: 0,
            coalesced: 0,
            refused: 0,
        });
        MetadataDoor { door, hasher, bound, kept: AtomicUsize::new(0), began: rt.wall() - since }
    }

    /// What the stamp of a value collected at `now` is.
    pub(in crate::engine) fn stamp(&self, now: Moment) -> Wall {
        Wall(self.began.0 + (now.0 / 1_000) as i64)
    }

    pub(super) fn add(
        &self,
        agent: Uuid,
        now: Moment,
        report: &[(&str, &str, &str)],
        limits: &Limits,
    ) -> Result<Added, Sealed> {
        let now = self.stamp(now);
        let room = self.bound.saturating_sub(self.held() + self.kept.load(Relaxed));
        let mut shard = self.door.enter(self.hasher.hash_one(agent))?;
        let shard = &mut *shard;
        let Shard { agents, hasher, newest, floor, .. } = shard;
        let keys = agents.entry(agent).or_insert_with(|| HashMap::with_hasher(hasher.clone()));
        let (mut new, mut refused) = (0, Vec::new());
        let at = now.max(Wall(floor.0.saturating_add(1)));
        for (key, value, error) in report {
            let (value, error) = limits.cut(value, error);
            if let Some(held) = keys.get_mut(*key) {
                held.collected_at = at.max(Wall(held.collected_at.0 + 1));
                *newest = (*newest).max(held.collected_at);
                overwrite(&mut held.value, value);
                overwrite(&mut held.error, &error);
            } else if new < room {
                new += 1;
                let entry = Entry { value: value.into(), error: owned(error), collected_at: at };
                *newest = (*newest).max(at);
                keys.insert((*key).into(), entry);
            } else {
                refused.push((*key).to_owned());
            }
        }
        if keys.is_empty() {
            agents.remove(&agent);
        }
        shard.accepted += (report.len() - refused.len()) as u64;
        shard.coalesced += (report.len() - refused.len() - new) as u64;
        shard.refused += refused.len() as u64;
        let before = if new > 0 { self.door.grew(new) } else { 0 };
        Ok(Added { before, new, refused })
    }

    /// Takes everything out.
    pub(in crate::engine) fn drain(&self, mut each: impl FnMut(Key, Entry)) {
        let mut taken = Vec::new();
        self.door.each(|shard| {
            shard.floor = shard.newest;
            taken.push(std::mem::replace(&mut shard.agents, HashMap::with_hasher(shard.hasher.clone())));
        });
        let mut count = 0;
        for (agent, keys) in taken.into_iter().flatten() {
            for (key, entry) in keys {
                count += 1;
                each(Key { agent, key }, entry);
            }
        }
        self.door.shrank(count);
    }

    /// How many values the flush room holds besides.
    pub(in crate::engine) fn keep(&self, count: usize) {
        self.kept.store(count, Relaxed);
    }

    pub(in crate::engine) fn held(&self) -> usize {
        self.door.held()
    }

    pub(in crate::engine) fn seal(&self) {
        self.door.seal();
    }
}

/// Writes `text` into what is there already, which is nearly always large enough.
fn overwrite(held: &mut String, text: &str) {
    held.clear();
    held.push_str(text);
}

fn owned(text: Cow<'_, str>) -> String {
    // Most errors are empty, and an empty string owns nothing.
    text.into_owned()
}
