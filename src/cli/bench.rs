//! `towpath bench`

use std::collections::HashMap;
use std::io::{self, BufReader, Read};
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::follow::next_event;
use super::progress::Progress;
use super::{Api, Exit, Failure, Remote, Table, say};
use crate::rt::{Moment, Receiver, Rt, Thread};

/// Measure a daemon: how long until a message is kept, and until a follower sees it
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    towpath bench\n  \
    towpath bench --url https://edge.example.com --messages 50\n  \
    towpath bench --json | jq .parts.seen_ms.p99\n\n\
    It makes a stream of its own, follows it, appends messages one after the other, produces a turn\n\
    of parts at a steady rate and one as fast as they are taken, and deletes the stream. What it\n\
    measures is the whole way: this program, the network, the daemon, its store, and back.\n\
    Figures of a machine that does other things at the same time say little.")]
pub(super) struct Bench {
    #[command(flatten)]
    remote: Remote,
    /// How many messages
    #[arg(long, value_name = "NUMBER", default_value = "200", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    messages: u64,
    /// How many parts, in each of the two turns
    #[arg(long, value_name = "NUMBER", default_value = "2000", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    parts: u64,
    /// How many parts a second in the steady turn
    #[arg(long, value_name = "NUMBER", default_value = "1000", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    rate: u64,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// How long what was sent may take to be seen before it is said to be missing.
const SEEN_WAIT: Duration = Duration::from_secs(15);

/// What the follower tells.
enum Seen {
    Live,
    /// A message of turn 0, or a part of another turn, by its number.
    Entry {
        turn: u64,
        number: u64,
        at: Moment,
    },
}

impl Bench {
    pub(super) fn run(self) -> Result<(), Failure> {
        let rt = Rt::real();
        let api = self.remote.api()?;
        let stream = format!("/v1/streams/towpath-bench/{}", rt.uuid_v4());
        api.put(&stream, &json!({}))?;
        let measured = self.measure(&rt, &api, &stream);
        // A stream that stays is in the way of nobody but its owner, who is told.
        let removed = api.delete(&stream);
        let (messages, steady, fast) = measured?;
        removed?;
        if self.json {
            let told =
                json!({ "messages": messages.json(), "parts": steady.json(), "parts_unpaced": fast.json() });
            return say(told.to_string());
        }
        let mut table = Table::new(&["", "number", "a second", "taken p50", "p99", "seen p50", "p99"]);
        for (name, phase) in
            [("messages, one by one", &messages), ("parts, steady", &steady), ("parts, unpaced", &fast)]
        {
            let millis = |times: &[Duration], share| match times.is_empty() {
                true => "-".to_owned(),
                false => format!("{:.2} ms", quantile(times, share) * 1e3),
            };
            table.row([
                name.to_owned(),
                phase.number.to_string(),
                format!("{:.0}", phase.per_second()),
                millis(&phase.taken, 0.5),
                millis(&phase.taken, 0.99),
                millis(&phase.seen, 0.5),
                millis(&phase.seen, 0.99),
            ]);
        }
        table.print()
    }

    fn measure(&self, rt: &Rt, api: &Api, stream: &str) -> Result<(Phase, Phase, Phase), Failure> {
        // Room for everything: a follower that waited for us would measure the waiting.
        let room = usize::try_from(self.messages + 2 * self.parts + 16).unwrap_or(usize::MAX);
        let (seen, follower) = follow(rt, api, stream, room)?;
        let measured = self.phases(rt, api, stream, &seen);
        drop(seen);
        if measured.is_err() {
            // Its read ends with the stream, if the daemon still answers; nobody waits for it if not.
            let _ = api.delete(stream);
            follower.detach();
        } else {
            // One more event, which it cannot hand on: it ends.
            let _ = api.post(&format!("{stream}/messages"), &json!({ "role": "bench", "content": "end" }));
            let _ = follower.join();
        }
        measured
    }

    fn phases(
        &self,
        rt: &Rt,
        api: &Api,
        stream: &str,
        seen: &Receiver<Seen>,
    ) -> Result<(Phase, Phase, Phase), Failure> {
        match seen.recv_deadline(rt.now() + SEEN_WAIT) {
            Ok(Seen::Live) => {}
            _ => {
                return Err(missing(
                    "the follower did not become live",
                    "`towpath doctor` looks at live reads",
                ));
            }
        }
        let messages = self.messages(rt, api, stream, seen)?;
        let pace = Some(Duration::from_secs(1) / u32::try_from(self.rate).unwrap_or(u32::MAX));
        let steady = self.turn(rt, api, stream, seen, pace, "steady")?;
        let fast = self.turn(rt, api, stream, seen, None, "unpaced")?;
        Ok((messages, steady, fast))
    }

    fn messages(&self, rt: &Rt, api: &Api, stream: &str, seen: &Receiver<Seen>) -> Result<Phase, Failure> {
        let mut progress = Progress::new("messages", self.messages);
        let (mut sent, mut taken) = (HashMap::new(), Vec::new());
        let began = rt.now();
        for done in 0..self.messages {
            let at = rt.now();
            let answer =
                api.post(&format!("{stream}/messages"), &json!({ "role": "bench", "content": done }))?;
            taken.push(rt.now().since(at));
            sent.insert(answer["id"].as_u64().unwrap_or_default(), at);
            progress.at(done + 1);
        }
        let lasted = rt.now().since(began);
        let seen = gather(rt, seen, 0, &sent)?;
        Ok(Phase::new(self.messages, lasted, taken, seen))
    }

    fn turn(
        &self,
        rt: &Rt,
        api: &Api,
        stream: &str,
        seen: &Receiver<Seen>,
        pace: Option<Duration>,
        what: &'static str,
    ) -> Result<Phase, Failure> {
        let claimed = api.post(&format!("{stream}/turns"), &json!({}))?;
        let turn = claimed["turn"].as_u64().unwrap_or_default();
        let lease = claimed["lease"].as_str().unwrap_or_default().to_owned();
        let began = rt.now();
        let mut parts = Parts {
            rt,
            pace,
            due: began,
            left: self.parts,
            sent: HashMap::new(),
            ready: Vec::new(),
            progress: Progress::new(what, self.parts),
        };
        let headers = [("content-type", "application/x-ndjson"), ("towpath-lease", lease.as_str())];
        drop(api.send("POST", &format!("{stream}/turns/{turn}/parts"), &headers, Some(&mut parts))?);
        let lasted = rt.now().since(began);
        let times = gather(rt, seen, turn, &parts.sent)?;
        let headers = [("content-type", "application/json"), ("towpath-lease", lease.as_str())];
        let body = json!({ "status": "done" }).to_string();
        drop(api.send(
            "POST",
            &format!("{stream}/turns/{turn}/finish"),
            &headers,
            Some(&mut body.as_bytes()),
        )?);
        Ok(Phase::new(self.parts, lasted, Vec::new(), times))
    }
}

/// Parts as a body that stays open, one a line, each when it is due.
struct Parts<'a> {
    rt: &'a Rt,
    pace: Option<Duration>,
    due: Moment,
    left: u64,
    sent: HashMap<u64, Moment>,
    ready: Vec<u8>,
    progress: Progress,
}

impl Read for Parts<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.ready.is_empty() {
            if self.left == 0 {
                return Ok(0);
            }
            if let Some(pace) = self.pace {
                self.rt.sleep_until(self.due);
                self.due += pace;
            }
            self.left -= 1;
            let number = self.sent.len() as u64 + 1;
            self.ready = format!("\"a word of an answer, number {number}\"\n").into_bytes();
            self.sent.insert(number, self.rt.now());
            self.progress.at(number);
        }
        let taken = self.ready.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&self.ready[..taken]);
        self.ready.drain(..taken);
        Ok(taken)
    }
}

/// A thread that follows the stream and tells when each entry arrived.
fn follow(rt: &Rt, api: &Api, stream: &str, room: usize) -> Result<(Receiver<Seen>, Thread<()>), Failure> {
    let answer = api.send("GET", &format!("{stream}/events"), &[("accept", "text/event-stream")], None)?;
    let (tell, seen) = rt.channel("seen", room);
    let clock = rt.clone();
    let thread = rt.spawn("bench-follower", move || {
        let mut events = BufReader::new(answer.into_reader());
        // Whatever ends the read, what was not seen is missed by whoever waits for it.
        while let Ok(Some(event)) = next_event(&mut events) {
            let at = clock.now();
            let told = match event["t"].as_str() {
                Some("live") => Seen::Live,
                Some("message") if event["d"]["turn"].is_null() => {
                    Seen::Entry { turn: 0, number: event["d"]["id"].as_u64().unwrap_or_default(), at }
                }
                Some("part") => Seen::Entry {
                    turn: event["turn"].as_u64().unwrap_or_default(),
                    number: event["n"].as_u64().unwrap_or_default(),
                    at,
                },
                Some("closed") => return,
                _ => continue,
            };
            if tell.send(told).is_err() {
                return;
            }
        }
    })?;
    Ok((seen, thread))
}

/// Waits until everything that was sent was seen; how long each took.
fn gather(
    rt: &Rt,
    seen: &Receiver<Seen>,
    turn: u64,
    sent: &HashMap<u64, Moment>,
) -> Result<Vec<Duration>, Failure> {
    let mut times: HashMap<u64, Duration> = HashMap::new();
    while times.len() < sent.len() {
        let Ok(entry) = seen.recv_deadline(rt.now() + SEEN_WAIT) else {
            let text = format!("{} of {} were not seen", sent.len() - times.len(), sent.len());
            return Err(missing(&text, "the daemon's log and `towpath doctor` may say why"));
        };
        if let Seen::Entry { turn: of, number, at } = entry
            && of == turn
            && let Some(began) = sent.get(&number)
        {
            times.insert(number, at.since(*began));
        }
    }
    Ok(times.into_values().collect())
}

fn missing(text: &str, advice: &str) -> Failure {
    Failure::new(Exit::Failed, "not_seen", text).advice(advice)
}

/// What one part of the measuring found; times are sorted.
struct Phase {
    number: u64,
    lasted: Duration,
    taken: Vec<Duration>,
    seen: Vec<Duration>,
}

impl Phase {
    fn new(number: u64, lasted: Duration, mut taken: Vec<Duration>, mut seen: Vec<Duration>) -> Phase {
        taken.sort_unstable();
        seen.sort_unstable();
        Phase { number, lasted, taken, seen }
    }

    fn per_second(&self) -> f64 {
        self.number as f64 / self.lasted.as_secs_f64().max(1e-9)
    }

    fn json(&self) -> Value {
        let millis = |times: &[Duration]| match times.is_empty() {
            true => Value::Null,
            false => json!({
                "p50": quantile(times, 0.5) * 1e3,
                "p99": quantile(times, 0.99) * 1e3,
                "max": quantile(times, 1.0) * 1e3,
            }),
        };
        json!({
            "number": self.number, "per_second": self.per_second(),
            "taken_ms": millis(&self.taken), "seen_ms": millis(&self.seen),
        })
    }
}

/// The time that this share of sorted times does not exceed, in seconds.
fn quantile(sorted: &[Duration], share: f64) -> f64 {
    let at = (sorted.len() as f64 * share).ceil() as usize;
    sorted[at.clamp(1, sorted.len()) - 1].as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_sorted_times() {
        let times: Vec<Duration> = (1..=100).map(Duration::from_secs).collect();
        assert_eq!([0.5, 0.99, 1.0].map(|share| quantile(&times, share)), [50.0, 99.0, 100.0]);
        assert!((quantile(&times[..1], 0.5) - 1.0).abs() < f64::EPSILON);
    }
}
