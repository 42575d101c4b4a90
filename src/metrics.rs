//! Figures for whoever operates towpath: counters, gauges and histograms as OpenMetrics text.
//!
//! A part describes its figures once, while things are put together, and keeps the handles; a handle is
//! a shared atomic, so counting costs no lock. What [`Metrics::described`] lists is what `docs/metrics.md`
//! must hold.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::exponential_buckets_range;
use prometheus_client::registry::Registry;

pub use prometheus_client::metrics::counter::Counter;
pub use prometheus_client::metrics::gauge::Gauge;
pub use prometheus_client::metrics::histogram::Histogram;

/// What tells the members of one figure apart, for example `[("reason", "capacity")]`.
pub type Labels = Vec<(&'static str, &'static str)>;
/// Counters of one name, told apart by labels. Take the members once and keep them.
pub type Counters = Family<Labels, Counter>;
/// Gauges of one name, told apart by labels.
pub type Gauges = Family<Labels, Gauge>;
/// Histograms of one name, told apart by labels.
pub type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

const PREFIX: &str = "towpath";

/// One figure as the manual shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Described {
    /// The name without the `towpath_` in front and without `_total` behind.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// What it says, in one sentence.
    pub help: &'static str,
}

impl Described {
    /// The name as it is scraped.
    pub fn full_name(&self) -> String {
        let end = if self.kind == "counter" { "_total" } else { "" };
        format!("{PREFIX}_{}{end}", self.name)
    }
}

/// Where parts describe their figures. Turned into an [`Exposition`] once everything is in place.
///
/// ```
/// let mut metrics = towpath::metrics::Metrics::new();
/// let flushed = metrics.counters("flushes", "Batches written, by why they were.");
/// let by_capacity = flushed.get_or_create_owned(&vec![("reason", "capacity")]);
/// by_capacity.inc();
/// let text = metrics.into_exposition().text();
/// assert!(text.contains(r#"towpath_flushes_total{reason="capacity"} 1"#));
/// ```
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    described: Vec<Described>,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

impl Metrics {
    /// No figures yet.
    pub fn new() -> Metrics {
        Metrics { registry: Registry::with_prefix(PREFIX), described: Vec::new() }
    }

    /// Something that only goes up.
    pub fn counter(&mut self, name: &'static str, help: &'static str) -> Counter {
        let counter = Counter::default();
        self.register(name, "counter", help, counter.clone());
        counter
    }

    /// Things that only go up, told apart by labels.
    pub fn counters(&mut self, name: &'static str, help: &'static str) -> Counters {
        let counters = Counters::default();
        self.register(name, "counter", help, counters.clone());
        counters
    }

    /// Something that goes up and down.
    pub fn gauge(&mut self, name: &'static str, help: &'static str) -> Gauge {
        let gauge = Gauge::default();
        self.register(name, "gauge", help, gauge.clone());
        gauge
    }

    /// Things that go up and down, told apart by labels.
    pub fn gauges(&mut self, name: &'static str, help: &'static str) -> Gauges {
        let gauges = Gauges::default();
        self.register(name, "gauge", help, gauges.clone());
        gauges
    }

    /// How long something takes, in seconds, from 50 µs to 30 s.
    pub fn seconds(&mut self, name: &'static str, help: &'static str) -> Histogram {
        let histogram = seconds();
        self.register(name, "histogram", help, histogram.clone());
        histogram
    }

    /// How long things take, in seconds, told apart by labels.
    pub fn seconds_by(&mut self, name: &'static str, help: &'static str) -> Histograms {
        let histograms = Histograms::new_with_constructor(seconds);
        self.register(name, "histogram", help, histograms.clone());
        histograms
    }

    /// How big something is, from 1 to 64 Mi in powers of four.
    pub fn sizes(&mut self, name: &'static str, help: &'static str) -> Histogram {
        let histogram = Histogram::new((0..14).map(|power| 4f64.powi(power)));
        self.register(name, "histogram", help, histogram.clone());
        histogram
    }

    /// A counter that a part keeps in a form of its own, read when somebody looks.
    pub fn counter_from(
        &mut self,
        name: &'static str,
        help: &'static str,
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) {
        self.describe(name, "counter", help);
        let encode = move |mut encoder: DescriptorEncoder<'_>| {
            let described = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(read()).encode(described)
        };
        self.registry.register_collector(Box::new(Read(encode)));
    }

    /// Counters of one name that a part keeps in a form of its own, told apart by one label.
    pub fn counters_from(
        &mut self,
        name: &'static str,
        help: &'static str,
        label: &'static str,
        read: impl Fn() -> Vec<(&'static str, u64)> + Send + Sync + 'static,
    ) {
        self.describe(name, "counter", help);
        let encode = move |mut encoder: DescriptorEncoder<'_>| {
            let mut described = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (value, count) in read() {
                let labels = [(label, value)];
                ConstCounter::new(count).encode(described.encode_family(&labels)?)?;
            }
            Ok(())
        };
        self.registry.register_collector(Box::new(Read(encode)));
    }

    /// A histogram of seconds that a part made before anything was described.
    pub fn seconds_of(&mut self, name: &'static str, help: &'static str, kept: Histogram) {
        self.register(name, "histogram", help, kept);
    }

    /// A gauge that a part keeps in a form of its own, read when somebody looks.
    pub fn gauge_from(
        &mut self,
        name: &'static str,
        help: &'static str,
        read: impl Fn() -> i64 + Send + Sync + 'static,
    ) {
        self.describe(name, "gauge", help);
        let encode = move |mut encoder: DescriptorEncoder<'_>| {
            let described = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(read()).encode(described)
        };
        self.registry.register_collector(Box::new(Read(encode)));
    }

    /// Every figure there is, by name.
    pub fn described(&self) -> Vec<Described> {
        let mut described = self.described.clone();
        described.sort_unstable_by_key(|d| d.name);
        described
    }

    /// Nothing more is described; from here on it is read.
    pub fn into_exposition(self) -> Exposition {
        Exposition { registry: Arc::new(self.registry) }
    }

    fn register(
        &mut self,
        name: &'static str,
        kind: &'static str,
        help: &'static str,
        metric: impl prometheus_client::registry::Metric,
    ) {
        self.describe(name, kind, help);
        self.registry.register(name, without_stop(help), metric);
    }

    fn describe(&mut self, name: &'static str, kind: &'static str, help: &'static str) {
        // A figure described twice would be scraped twice, which readers refuse as a whole.
        assert!(self.described.iter().all(|d| d.name != name), "the figure `{name}` is described twice");
        self.described.push(Described { name, kind, help });
    }
}

/// `docs/metrics.md`.
pub fn manual(described: &[Described]) -> String {
    let mut text = String::from(
        "# Metrics\n\n`/metrics` answers OpenMetrics text. A test holds this page to the code.\n\n\
         | figure | kind | what it says |\n|---|---|---|\n",
    );
    for figure in described {
        text += &format!("| `{}` | {} | {} |\n", figure.full_name(), figure.kind, figure.help);
    }
    text
}

/// What `/metrics` answers, now. Cloning it is cheap.
#[derive(Clone, Debug)]
pub struct Exposition {
    registry: Arc<Registry>,
}

/// The content type that goes with [`Exposition::text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

impl Exposition {
    /// Every figure as OpenMetrics text, ending in `# EOF`.
    pub fn text(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)
            .expect("writing into a String does not fail");
        text
    }
}

pub(crate) fn seconds() -> Histogram {
    Histogram::new(exponential_buckets_range(50e-6, 30.0, 16))
}

/// The registry puts a full stop behind each help text.
fn without_stop(help: &str) -> &str {
    help.strip_suffix('.').unwrap_or(help)
}

/// One figure that is read when somebody looks.
struct Read<F>(F);

impl<F> fmt::Debug for Read<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Read")
    }
}

impl<F> Collector for Read<F>
where
    F: Fn(DescriptorEncoder<'_>) -> fmt::Result + Send + Sync + 'static,
{
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        (self.0)(encoder)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn figures_are_scraped_with_their_prefix_and_kind() {
        let mut metrics = Metrics::new();
        let accepted = metrics.counter("records_accepted", "Records taken in.");
        let open = metrics.gauges("links", "Links open now, by kind.");
        let took = metrics.seconds("flush_seconds", "How long a flush takes.");
        let held = Arc::new(AtomicU64::new(7));
        let seen = held.clone();
        metrics.counter_from("wakes", "Wakes.", move || seen.load(Ordering::Relaxed));
        accepted.inc_by(3);
        open.get_or_create_owned(&vec![("kind", "sse")]).set(2);
        took.observe(0.01);

        let exposition = metrics.into_exposition();
        held.store(8, Ordering::Relaxed);
        let text = exposition.text();
        for line in [
            "# TYPE towpath_records_accepted counter",
            "# HELP towpath_records_accepted Records taken in.",
            "towpath_records_accepted_total 3",
            "towpath_links{kind=\"sse\"} 2",
            "towpath_flush_seconds_count 1",
            "# TYPE towpath_wakes counter",
            "towpath_wakes_total 8",
        ] {
            assert!(text.lines().any(|l| l == line), "no line `{line}` in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn the_manual_lists_figures_by_name_as_they_are_scraped() {
        let mut metrics = Metrics::new();
        metrics.gauge("b", "B.");
        metrics.counter("a", "A.");
        let names: Vec<String> = metrics.described().iter().map(Described::full_name).collect();
        assert_eq!(names, ["towpath_a_total", "towpath_b"]);
    }

    #[test]
    #[should_panic(expected = "`a` is described twice")]
    fn a_figure_is_described_once() {
        let mut metrics = Metrics::new();
        metrics.counter("a", "A.");
        metrics.gauge("a", "A.");
    }
}
