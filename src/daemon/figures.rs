//! Figures that no room keeps: of the process, of its doors.

use crate::metrics::Metrics;
use crate::rt::Rt;
use crate::wire::{Counts, Doors};

/// How long it runs, what memory and descriptors it holds.
pub(super) fn of_the_process(metrics: &mut Metrics, rt: &Rt) {
    let (began, clock) = (rt.now(), rt.clone());
    metrics.gauge_from("uptime_seconds", "How long the process has served.", move || {
        i64::try_from(clock.now().since(began).as_secs()).unwrap_or(i64::MAX)
    });
    metrics.gauge_from("resident_bytes", "Memory that the process has in use.", resident_bytes);
    metrics.gauge_from("descriptors", "Files and sockets that are open.", || {
        std::fs::read_dir("/proc/self/fd").map_or(0, |entries| i64::try_from(entries.count()).unwrap_or(0))
    });
    let info = metrics.gauges("build_info", "1, with the version as a label.");
    info.get_or_create_owned(&vec![("version", env!("CARGO_PKG_VERSION"))]).set(1);
}

/// The second field of `/proc/self/statm`, in pages; 0 where there is none.
fn resident_bytes() -> i64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split_whitespace().nth(1)?.parse::<i64>().ok());
    let page = i64::try_from(rustix::param::page_size()).unwrap_or(4096);
    pages.unwrap_or(0) * page
}

/// What the I/O threads count.
pub(super) fn of_the_doors(metrics: &mut Metrics, doors: &Doors) {
    let sum = |count: fn(&Counts) -> u64| {
        let doors = doors.clone();
        move || doors.counts().map(count).sum::<u64>()
    };
    let links = sum(|c| c.links.get());
    metrics.gauge_from("links", "Connections that are open.", move || {
        i64::try_from(links()).unwrap_or(i64::MAX)
    });
    metrics.counter_from("links_accepted", "Connections taken in.", sum(|c| c.accepted.get()));
    metrics.counter_from(
        "links_turned_away",
        "Connections turned away because of a limit.",
        sum(|c| c.turned_away.get()),
    );
    metrics.counter_from("requests", "Requests whose head was accepted.", sum(|c| c.requests.get()));
    metrics.counter_from(
        "requests_refused",
        "Requests refused before a route was looked up: malformed, too large, too slow.",
        sum(|c| c.refused.get()),
    );
    metrics.counter_from(
        "deliveries",
        "Frames queued for links, a fan-out counted for each.",
        sum(|c| c.deliveries.get()),
    );
    metrics.counter_from("bytes_in", "Bytes read from links.", sum(|c| c.bytes_in.get()));
    metrics.counter_from("bytes_out", "Bytes written to links.", sum(|c| c.bytes_out.get()));
    metrics.counter_from(
        "links_cut_slow",
        "Links cut because their peer did not keep up.",
        sum(|c| c.cut_slow.get()),
    );
    metrics.counter_from(
        "links_cut_full",
        "Links cut, or groups reset, because an I/O thread's inbox was full.",
        sum(|c| c.cut_full.get()),
    );
    metrics.counter_from(
        "links_slowed",
        "Times a WebSocket said more than it may in a second, and was read later.",
        sum(|c| c.slowed.get()),
    );
    metrics.counter_from(
        "links_parked",
        "Times a room was full and its links had to wait.",
        sum(|c| c.parked.get()),
    );
}
