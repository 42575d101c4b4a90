//! Who watches which agents' metadata, and what must be read again for them.
//!
//! Watchers are subscribed before anything is read, so a change between the two is seen twice rather
//! than not at all. One read is out at a time and serves everybody who watches an agent; what changes
//! meanwhile is collected and read next, so a burst of notices costs one read. Everything watched is
//! read again every `refresh`: ages stay right, and a notice that was lost is made good.
//!
//! Invariant: `by_agent` names exactly the watchers of `scopes` that named their agents; `dirty`
//! holds only agents somebody watches or may watch.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use uuid::Uuid;

use super::time::Moment;

/// What a watcher wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// These agents, known or not.
    Agents(Vec<Uuid>),
    /// Every agent whose name begins so; the empty prefix is all of them.
    Prefix(String),
}

/// Something to ask the store. One question is out at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// The values of these agents. Answer with [`Watches::read`].
    Read {
        /// Which.
        agents: Vec<Uuid>,
        /// Whether their names are needed too.
        names: bool,
    },
    /// The agents whose names begin with one of these. Answer with [`Watches::listed`].
    List {
        /// None of them begins with another.
        prefixes: Vec<String>,
    },
}

/// How often, how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Everything that is watched is read at least this often.
    pub refresh: Duration,
    /// How many agents one read may name.
    pub agents_per_read: usize,
    /// How long after a failed read the next is tried.
    pub retry: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        // 5 s: what dashboards of comparable systems refresh ages at. 500 agents of 15 keys are one
        // read of a few milliseconds.
        Settings { refresh: Duration::from_secs(5), agents_per_read: 500, retry: Duration::from_secs(1) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Idle,
    /// A question is out.
    Asked,
    /// The last one failed.
    Waiting {
        until: Moment,
    },
}

/// All watchers of one replica.
#[derive(Debug)]
pub struct Watches {
    settings: Settings,
    scopes: BTreeMap<u64, Scope>,
    by_agent: BTreeMap<Uuid, BTreeSet<u64>>,
    by_prefix: BTreeMap<String, BTreeSet<u64>>,
    /// The names of agents, while somebody watches by name.
    names: BTreeMap<Uuid, String>,
    dirty: BTreeSet<Uuid>,
    list: bool,
    reading: Reading,
    refresh_at: Moment,
}

impl Watches {
    /// Nobody watches.
    pub fn new(settings: Settings) -> Watches {
        Watches {
            settings,
            scopes: BTreeMap::new(),
            by_agent: BTreeMap::new(),
            by_prefix: BTreeMap::new(),
            names: BTreeMap::new(),
            dirty: BTreeSet::new(),
            list: false,
            reading: Reading::Idle,
            refresh_at: Moment::NEVER,
        }
    }

    /// Somebody watches from now on, and is owed a first look.
    pub fn watch(&mut self, now: Moment, watcher: u64, scope: Scope) {
        if self.scopes.is_empty() {
            self.refresh_at = now + self.settings.refresh;
        }
        match &scope {
            Scope::Agents(agents) => {
                for agent in agents {
                    self.by_agent.entry(*agent).or_default().insert(watcher);
                    self.dirty.insert(*agent);
                }
            }
            Scope::Prefix(prefix) => {
                self.by_prefix.entry(prefix.clone()).or_default().insert(watcher);
                self.list = true;
            }
        }
        self.scopes.insert(watcher, scope);
    }

    /// A watcher is gone.
    pub fn unwatch(&mut self, watcher: u64) {
        match self.scopes.remove(&watcher) {
            None => {}
            Some(Scope::Agents(agents)) => {
                for agent in agents {
                    forget(&mut self.by_agent, &agent, watcher);
                }
            }
            Some(Scope::Prefix(prefix)) => forget(&mut self.by_prefix, &prefix, watcher),
        }
        if self.by_prefix.is_empty() {
            self.names.clear();
            self.list = false;
        }
        if self.scopes.is_empty() {
            self.dirty.clear();
            self.refresh_at = Moment::NEVER;
        }
    }

    /// These agents have new values.
    pub fn noticed(&mut self, agents: &[Uuid]) {
        for agent in agents {
            if self.is_watched(agent) {
                self.dirty.insert(*agent);
            }
        }
    }

    /// Notices were lost, or cannot be understood: anything may have changed.
    pub fn dropped(&mut self) {
        self.dirty.extend(self.by_agent.keys());
        self.list |= !self.by_prefix.is_empty();
    }

    /// What to ask the store at `now`, if anything.
    pub fn next(&mut self, now: Moment) -> Option<Ask> {
        if now >= self.refresh_at {
            self.refresh_at = now + self.settings.refresh;
            self.dropped();
        }
        match self.reading {
            Reading::Asked => return None,
            Reading::Waiting { until } if now < until => return None,
            Reading::Idle | Reading::Waiting { .. } => self.reading = Reading::Idle,
        }
        let ask = self.question()?;
        self.reading = Reading::Asked;
        Some(ask)
    }

    /// The agents of the prefixes that were asked for, with their names.
    pub fn listed(&mut self, agents: impl IntoIterator<Item = (Uuid, String)>) {
        self.reading = Reading::Idle;
        self.names.clear();
        for (agent, name) in agents {
            self.dirty.insert(agent);
            self.names.insert(agent, name);
        }
    }

    /// The values of an agent were read; who is to get them. Its name, if that was asked for.
    pub fn read(&mut self, agent: Uuid, name: Option<&str>) -> BTreeSet<u64> {
        if let Some(name) = name
            && !self.by_prefix.is_empty()
        {
            self.names.insert(agent, name.to_owned());
        }
        let mut watchers = self.by_agent.get(&agent).cloned().unwrap_or_default();
        if let Some(name) = self.names.get(&agent) {
            for (_, more) in self.by_prefix.iter().filter(|(prefix, _)| name.starts_with(prefix.as_str())) {
                watchers.extend(more);
            }
        }
        watchers
    }

    /// The whole answer to [`Ask::Read`] was handed to [`Watches::read`].
    pub fn read_ended(&mut self) {
        self.reading = Reading::Idle;
    }

    /// The store could not answer.
    pub fn failed(&mut self, now: Moment, asked: Ask) {
        self.reading = Reading::Waiting { until: now + self.settings.retry };
        match asked {
            Ask::Read { agents, .. } => self.noticed(&agents),
            Ask::List { .. } => self.list = !self.by_prefix.is_empty(),
        }
    }

    /// When [`Watches::next`] has something to say by itself.
    pub fn deadline(&self) -> Option<Moment> {
        if self.scopes.is_empty() {
            return None;
        }
        match self.reading {
            Reading::Waiting { until } if self.list || !self.dirty.is_empty() => {
                Some(until.min(self.refresh_at))
            }
            Reading::Asked | Reading::Idle | Reading::Waiting { .. } => Some(self.refresh_at),
        }
    }

    /// How many watch.
    pub fn len(&self) -> usize {
        self.scopes.len()
    }

    /// Whether nobody does.
    pub fn is_empty(&self) -> bool {
        self.scopes.is_empty()
    }

    fn is_watched(&self, agent: &Uuid) -> bool {
        self.by_agent.contains_key(agent)
            || match self.names.get(agent) {
                Some(name) => self.by_prefix.keys().any(|prefix| name.starts_with(prefix.as_str())),
                // Its name is not known yet: whoever watches by name may be waiting for it.
                None => !self.by_prefix.is_empty(),
            }
    }

    fn question(&mut self) -> Option<Ask> {
        if std::mem::take(&mut self.list) {
            let mut prefixes: Vec<String> = Vec::new();
            // Sorted, so a prefix stands before everything that begins with it.
            for prefix in self.by_prefix.keys() {
                if !prefixes.last().is_some_and(|shorter| prefix.starts_with(shorter.as_str())) {
                    prefixes.push(prefix.clone());
                }
            }
            return Some(Ask::List { prefixes });
        }
        let mut agents = Vec::new();
        while agents.len() < self.settings.agents_per_read {
            let Some(agent) = self.dirty.pop_first() else { break };
            agents.push(agent);
        }
        let names = !self.by_prefix.is_empty() && agents.iter().any(|agent| !self.names.contains_key(agent));
        (!agents.is_empty()).then_some(Ask::Read { agents, names })
    }
}

fn forget<K: Ord>(index: &mut BTreeMap<K, BTreeSet<u64>>, key: &K, watcher: u64) {
    if let Some(watchers) = index.get_mut(key) {
        watchers.remove(&watcher);
        if watchers.is_empty() {
            index.remove(key);
        }
    }
}

#[cfg(test)]
#[path = "watch/tests.rs"]
mod tests;
