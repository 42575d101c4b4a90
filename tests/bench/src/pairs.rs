//! Ours and the floor in turn, and what came of it.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// What one side of one pair did.
#[derive(Clone, Copy)]
pub(crate) struct Sample {
    units: f64,
    wall: Duration,
    cpu: Duration,
}

impl Sample {
    /// Runs `work`, which says how many units it did. The processor time is that of this process.
    pub(crate) fn take(work: impl FnOnce() -> u64) -> Sample {
        let (cpu, wall) = (process_cpu(), Instant::now());
        let units = black_box(work());
        Sample { units: units as f64, wall: wall.elapsed(), cpu: process_cpu().saturating_sub(cpu) }
    }

    /// What another process did and what it cost it.
    pub(crate) fn of(units: u64, wall: Duration, cpu: Duration) -> Sample {
        Sample { units: units as f64, wall, cpu }
    }

    /// A rate that was measured elsewhere and written down, where the floor cannot run in this process.
    pub(crate) fn recorded(rate: f64) -> Sample {
        Sample { units: rate, wall: Duration::from_secs(1), cpu: Duration::from_secs(1) }
    }

    /// How long one unit took.
    pub(crate) fn micros(&self) -> f64 {
        1e6 / self.rate()
    }

    fn rate(&self) -> f64 {
        self.units / self.wall.as_secs_f64()
    }

    fn cpu_per_million(&self) -> f64 {
        self.cpu.as_secs_f64() / self.units * 1e6
    }
}

pub(crate) fn process_cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// What a case measures, and how good it has to be.
pub(crate) struct Case {
    /// `part/what`, as `BENCH=` selects it.
    pub(crate) name: &'static str,
    /// What the floor is, in a few words.
    pub(crate) floor: &'static str,
    /// What is counted.
    pub(crate) unit: &'static str,
    /// The rate of ours over the rate of the floor must reach this.
    pub(crate) goal: f64,
}

/// Runs cases and keeps what came of them.
pub(crate) struct Bench {
    wanted: Option<String>,
    pairs: usize,
    rows: Vec<String>,
    short: Vec<String>,
    check: bool,
}

impl Bench {
    pub(crate) fn from_environment() -> Bench {
        let pairs = std::env::var("BENCH_PAIRS").ok().and_then(|pairs| pairs.parse().ok()).unwrap_or(5);
        let wanted = std::env::var("BENCH").ok().filter(|wanted| !wanted.is_empty());
        let check = std::env::args().any(|argument| argument == "--check");
        Bench { wanted, pairs, rows: Vec::new(), short: Vec::new(), check }
    }

    /// Whether a case of this name, or a part it is in, is asked for; ask before preparing what is costly.
    pub(crate) fn wants(&self, name: &str) -> bool {
        let part = |wanted: &str| wanted.strip_prefix(name).is_some_and(|case| case.starts_with('/'));
        self.wanted.as_deref().is_none_or(|wanted| name.contains(wanted) || part(wanted))
    }

    /// Runs both sides in turn, once to warm up and then pair by pair. A case during which the
    /// processors changed their distance is repeated, twice at most.
    pub(crate) fn pair(
        &mut self,
        case: &Case,
        mut floor: impl FnMut() -> Sample,
        mut ours: impl FnMut() -> Sample,
    ) {
        if !self.wants(case.name) {
            return;
        }
        for attempt in 0..3 {
            let before = probe();
            floor();
            ours();
            let pairs: Vec<_> = (0..self.pairs).map(|_| (floor(), ours())).collect();
            let after = probe();
            let flipped = before.max(after) > 2.0 * before.min(after);
            if flipped && attempt < 2 {
                println!("{}: the probe went from {before:.0} to {after:.0} ns; again", case.name);
                continue;
            }
            self.keep(case, &pairs, (before, after));
            return;
        }
    }

    fn keep(&mut self, case: &Case, pairs: &[(Sample, Sample)], probe: (f64, f64)) {
        let ratio = spread(pairs.iter().map(|(floor, ours)| ours.rate() / floor.rate()));
        let floor = spread(pairs.iter().map(|(floor, _)| floor.rate()));
        let ours = spread(pairs.iter().map(|(_, ours)| ours.rate()));
        let cpu = spread(pairs.iter().map(|(floor, ours)| ours.cpu_per_million() / floor.cpu_per_million()));
        let verdict = if ratio[1] >= case.goal { "ok" } else { "short" };
        let row = format!(
            "| {} | {} | {} | {} | {:.2} ({:.2}–{:.2}) | {:.2} | ≥ {} | {verdict} | {:.0}/{:.0} |",
            case.name,
            case.floor,
            rate(floor[1], case.unit),
            rate(ours[1], case.unit),
            ratio[1],
            ratio[0],
            ratio[2],
            cpu[1],
            case.goal,
            probe.0,
            probe.1,
        );
        println!("{row}");
        if verdict == "short" {
            self.short.push(format!("{}: {:.2} of its floor, goal {}", case.name, ratio[1], case.goal));
        }
        self.rows.push(row);
        let json = serde_json::json!({
            "case": case.name, "unit": case.unit, "goal": case.goal, "probe_ns": [probe.0, probe.1],
            "floor": {"what": case.floor, "rate": floor}, "ours": {"rate": ours}, "ratio": ratio, "cpu_ratio": cpu,
        });
        let path = format!("target/bench/{}.json", case.name.replace('/', "-"));
        let text = format!("{json:#}\n");
        let kept = std::fs::create_dir_all("target/bench").and_then(|()| std::fs::write(&path, text));
        kept.unwrap_or_else(|error| panic!("writing {path}: {error}"));
    }

    pub(crate) fn finish(self) {
        println!(
            "\n| case | floor | floor rate | ours | ratio, median (min–max) | CPU ratio | goal | | probe ns |"
        );
        println!("|---|---|---|---|---|---|---|---|---|");
        for row in &self.rows {
            println!("{row}");
        }
        for short in &self.short {
            println!("short of its goal: {short}");
        }
        if self.check && !self.short.is_empty() {
            std::process::exit(1);
        }
    }
}

/// Minimum, median, maximum.
fn spread(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    [values[0], values[values.len() / 2], values[values.len() - 1]]
}

fn rate(rate: f64, unit: &str) -> String {
    match rate {
        r if r >= 1e6 => format!("{:.2} M {unit}/s", r / 1e6),
        r if r >= 1e3 => format!("{:.1} k {unit}/s", r / 1e3),
        r => format!("{r:.1} {unit}/s"),
    }
}

/// How long a cache line takes from one thread to another, one way, in nanoseconds: what moves when
/// the two processors are placed differently.
fn probe() -> f64 {
    const ROUNDS: u64 = 20_000;
    let line = Arc::new(AtomicU64::new(0));
    let other = line.clone();
    let begun = Instant::now();
    let echo = std::thread::spawn(move || {
        for round in 0..ROUNDS {
            while other.load(Ordering::Acquire) != 2 * round + 1 {
                std::hint::spin_loop();
            }
            other.store(2 * round + 2, Ordering::Release);
        }
    });
    for round in 0..ROUNDS {
        line.store(2 * round + 1, Ordering::Release);
        while line.load(Ordering::Acquire) != 2 * round + 2 {
            std::hint::spin_loop();
        }
    }
    echo.join().expect("the echo only counts");
    begun.elapsed().as_nanos() as f64 / (2 * ROUNDS) as f64
}
