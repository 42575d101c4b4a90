//! What the system allows this process, raised as far as it lets us.

use crate::config::Config;
use crate::engine::streams;
use crate::wire::Limits;
use crate::wire::http::HeadLimits;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that are not for links: stores, pollers, files, dials, a spare.
const RESERVED: u64 = 128;

/// Raises the number of descriptors to what the system allows; answers how many links fit.
pub(crate) fn raise_descriptors() -> u64 {
    let before = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: before.maximum, maximum: before.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        log::warn!(target: "towpath/limit_not_raised", "the limit of open files stays at {:?}: {error}", before.current);
    }
    descriptors()
}

/// How many descriptors there are for links.
pub(crate) fn descriptors() -> u64 {
    // No limit at all is as good as more than any machine has addresses for.
    let now = getrlimit(Resource::Nofile).current.unwrap_or(1 << 20);
    now.saturating_sub(RESERVED).max(now / 4)
}

/// Mappings below which threads and the store may run out of them: a thread takes two, the store and the allocator
/// some more.
const MAPPINGS_MIN: u64 = 4_096;

/// Says it when the system allows few mappings: what runs out of them fails with "out of memory", which misleads.
pub(super) fn warn_of_few_mappings() {
    // Other systems have no such limit.
    let Ok(text) = std::fs::read_to_string("/proc/sys/vm/max_map_count") else { return };
    if let Some(allowed) = too_few(&text) {
        log::warn!(target: "towpath/few_mappings", "vm.max_map_count is {allowed}; {MAPPINGS_MIN} or more is safe");
    }
}

fn too_few(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|&allowed| allowed < MAPPINGS_MIN)
}

/// What links may use, as the settings say.
pub(super) fn of_links(config: &Config, links: u64) -> Limits {
    let (limits, number) = (&config.limits, |number| u32::try_from(number).unwrap_or(u32::MAX));
    let head = HeadLimits {
        head_bytes: limits.head.in_memory(),
        target_bytes: limits.target.in_memory(),
        ..HeadLimits::default()
    };
    Limits {
        head,
        head_wait: limits.head_wait,
        idle_wait: limits.idle_wait,
        body_wait: limits.body_wait,
        write_wait: limits.write_wait,
        heartbeat: limits.heartbeat,
        queue_bytes: limits.queue.in_memory(),
        links: usize::try_from(links).unwrap_or(usize::MAX),
        links_per_address: number(limits.links_per_address),
        accepts_per_second: number(limits.accepts_per_second),
        messages_per_second: limits.messages_per_second.on().copied(),
        bytes_per_second: limits.bytes_per_second.on().map(|size| size.bytes()),
        ..Limits::default()
    }
}

/// What streams may use, as the settings say.
pub(super) fn of_streams(config: &Config) -> streams::Limits {
    let limits = &config.limits;
    streams::Limits {
        message_bytes_max: limits.message.in_memory(),
        turn_bytes_max: limits.turn.in_memory(),
        queue_bytes_max: limits.queue.in_memory(),
        inputs_max: usize::try_from(limits.inputs).unwrap_or(usize::MAX),
        followers_max: usize::try_from(limits.followers).unwrap_or(usize::MAX),
        lease: config.streams.lease,
        renew_every: config.streams.renew_every,
        producer_silence_max: config.streams.producer_silence,
        ..streams::Limits::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_own_number_of_mappings_is_enough_and_a_thousand_is_not() {
        assert_eq!(too_few("65530\n"), None);
        assert_eq!(too_few("1000\n"), Some(1_000));
        assert_eq!(too_few("what?"), None, "what cannot be read is not judged");
    }
}
