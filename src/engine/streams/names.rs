//! What a stream may be called, and which streams have which names.

use std::collections::HashMap;

use super::*;

/// Where streams were found, by name: ten thousand followers of one stream look it up once.
///
/// A deleted one is taken out. Whoever follows one that was deleted without this replica hearing of it is
/// told `closed`, and that takes it out as well.
pub(super) struct Names(rt::Lock<HashMap<String, Uuid, rt::Hasher>>);

/// How many names are remembered; when there are more, all are forgotten.
const NAMES_MAX: usize = 10_000;

impl Names {
    pub(super) fn new(rt: &Rt) -> Names {
        Names(rt::Lock::new(HashMap::with_hasher(rt.hasher())))
    }

    pub(super) fn get(&self, name: &str) -> Option<Uuid> {
        self.0.lock().get(name).copied()
    }

    pub(super) fn put(&self, name: String, id: Uuid) {
        let mut names = self.0.lock();
        if names.len() >= NAMES_MAX {
            names.clear();
        }
        names.insert(name, id);
    }

    /// Forgets a stream that is gone. Rare, so that it may look through all of them.
    pub(super) fn forget(&self, id: Uuid) {
        self.0.lock().retain(|_, known| *known != id);
    }
}

/// A stream by its name, or by its UUID.
pub fn address(name: &str) -> Address {
    match Uuid::try_parse(name) {
        Ok(id) => Address::Id(id),
        Err(_) => Address::Name(name.to_owned()),
    }
}

/// Says why a name is not one a stream may have.
///
/// # Errors
/// A fragment that says what is wrong with it.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    const RESERVED: [&str; 8] =
        ["events", "state", "messages", "turns", "queue", "interrupt", "live", "snapshot"];
    if name.is_empty() || name.len() > 200 {
        return Err("it must have 1 to 200 characters");
    }
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._~-/".contains(&byte)) {
        return Err("it may hold letters, digits and . _ ~ - / only");
    }
    if Uuid::try_parse(name).is_ok() {
        return Err("it is shaped like a UUID");
    }
    for segment in name.split('/') {
        match segment {
            "" => return Err("it has an empty segment"),
            "." | ".." => return Err("it has a segment . or .."),
            segment if RESERVED.contains(&segment) => {
                return Err("it has a segment that is a word of the API");
            }
            _ => {}
        }
    }
    Ok(())
}
