//! What the system allows this process, raised as far as it lets us.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that are not for links: stores, pollers, files, dials, a spare.
const RESERVED: u64 = 128;

/// Raises the number of descriptors to what the system allows; answers how many links fit.
pub(super) fn raise_descriptors() -> u64 {
    let before = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: before.maximum, maximum: before.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        log::warn!(target: "towpath/limit_not_raised", "the limit of open files stays at {:?}: {error}", before.current);
    }
    // No limit at all is as good as more than any machine has addresses for.
    let now = getrlimit(Resource::Nofile).current.unwrap_or(1 << 20);
    now.saturating_sub(RESERVED).max(now / 4)
}
