//! `towpath demo`

mod boat;

use std::collections::HashMap;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::{Api, Failure, say};
use crate::rt::{Receiver, RecvTimeoutError, Rt, Sender, Thread};

/// Serve, and play: chats with viewers, a fleet of agents, a pipe on a bad network, visitors
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  towpath demo\n  towpath demo --listen 127.0.0.1:8080\n\n\
    Then open the address in a browser, or `towpath follow demo/chat-1`, or `towpath top`. Nothing is\n\
    kept: the store is in memory. In the third chat a worker goes now and then, in the middle of a\n\
    turn; half a minute later its lease is over and a second worker takes the stream. A pipe's link is cut every\n\
    few seconds; no byte of it is lost.")]
pub(super) struct Demo {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:7700", value_name = "ADDRESS")]
    listen: String,
    /// How much the daemon says: error, warn, info, debug or trace
    #[arg(long, default_value = "warn", value_name = "LEVEL")]
    log: String,
}

/// The players and the way to stop them.
struct Stage {
    /// Dropped first: the players see it and end.
    _stop: Vec<Sender<()>>,
    _players: Vec<Thread<()>>,
}

impl Demo {
    pub(super) fn run(self) -> Result<(), Failure> {
        let harbour = boat::Harbour::open(&Rt::real())?;
        let data = std::env::temp_dir().join(format!("towpath-demo-{}", std::process::id()));
        let mut stage = None;
        let served = super::serve::serve_with(
            None,
            &[
                ("--listen", "server.listen", self.listen.clone()),
                ("--log", "log.level", self.log.clone()),
                ("--data", "store.data", data.to_string_lossy().into_owned()),
                ("--store", "store.url", "memory".to_owned()),
                ("--allow", "pipes.allow", harbour.target()),
            ],
            &mut |url| {
                match Stage::set(url, &harbour.target()) {
                    Ok(set) => stage = Some(set),
                    // The daemon serves all the same.
                    Err(error) => log::warn!("the demo cannot play: {error:?}"),
                }
                let _ = say(format!("open {url}/ in a browser, or: towpath follow demo/chat-1 --url {url}"));
            },
        );
        drop(stage);
        drop(harbour);
        put_away(&data);
        served
    }
}

fn put_away(data: &PathBuf) {
    if let Err(error) = std::fs::remove_dir_all(data) {
        log::warn!("{} stays behind: {error}", data.display());
    }
}

impl Stage {
    fn set(url: &str, harbour: &str) -> Result<Stage, Failure> {
        let rt = Rt::real();
        let mut stage = Stage { _stop: Vec::new(), _players: Vec::new() };
        let mut play =
            |name: String, player: Box<dyn FnOnce(Rt, Api, Receiver<()>) + Send>| -> Result<(), Failure> {
                let (stop, stopped) = rt.channel("stop", 1);
                let (rt_of, api) = (rt.clone(), Api::new(url, None)?);
                stage._players.push(rt.spawn(name, move || player(rt_of, api, stopped))?);
                stage._stop.push(stop);
                Ok(())
            };
        for number in 1..=3 {
            play(
                format!("demo-chat-{number}"),
                Box::new(move |rt, api, stopped| chat(&rt, &api, &stopped, number)),
            )?;
        }
        // Two people read the first chat, one each of the others.
        for (viewer, number) in [1, 1, 2, 3].into_iter().enumerate() {
            play(
                format!("demo-viewer-{viewer}"),
                Box::new(move |rt, api, stopped| view(&rt, &api, &stopped, number)),
            )?;
        }
        play("demo-rescue".to_owned(), Box::new(|rt, api, stopped| rescue(&rt, &api, &stopped)))?;
        for (name, flaky) in [("demo-boat-flaky", true), ("demo-boat-calm", false)] {
            let (url, target) = (url.to_owned(), harbour.to_owned());
            play(
                name.to_owned(),
                Box::new(move |rt, _, stopped| boat::sail(&rt, &stopped, &url, &target, flaky)),
            )?;
        }
        play("demo-fleet".to_owned(), Box::new(|rt, api, stopped| fleet(&rt, &api, &stopped)))?;
        play("demo-visitors".to_owned(), Box::new(|rt, api, stopped| visitors(&rt, &api, &stopped)))?;
        Ok(stage)
    }
}

/// Waits; false when it is over.
fn pause(rt: &Rt, stopped: &Receiver<()>, millis: u64) -> bool {
    let until = rt.now() + Duration::from_millis(millis);
    matches!(stopped.recv_deadline(until), Err(RecvTimeoutError::Timeout))
}

const QUESTIONS: &[&str] = &[
    "What is a towpath?",
    "Why do my followers never see a part twice?",
    "What happens when I close the lid?",
    "Who pulls the boat?",
];
const ANSWERS: &[&str] = &[
    "A towpath is the path beside a canal from which boats are pulled. The boat may stop, the rope may slip, the load still arrives.",
    "Every part has a turn and a number in it. Whoever comes back says the last number seen and goes on behind it.",
    "The daemon keeps exactly what your end has not said it has. Open the lid: the rest arrives, nothing twice.",
    "A worker claims the stream, holds a lease on it, and says what it makes. If the worker goes, the lease runs out and another may pull.",
];

/// One chat: a question, an answer part by part; now and then the worker goes in the middle.
fn chat(rt: &Rt, api: &Api, stopped: &Receiver<()>, number: usize) {
    let name = format!("demo/chat-{number}");
    let at = format!("/v1/streams/{name}");
    // It may be there from before; what follows says if anything else is wrong.
    let _ = api.put(&at, &json!({ "labels": { "demo": "yes" } }));
    let mut rand = rt.rand("demo-chat");
    let mut round = number;
    while pause(rt, stopped, 500 + rand.below(4_000)) {
        // The worker before this one went without a word: another takes the stream when the lease is over.
        if !matches!(api.get(&format!("{at}/state")), Ok(state) if state["turn"].is_null()) {
            continue;
        }
        round += 1;
        let _ = api.post(
            &format!("{at}/messages"),
            &json!({ "role": "user", "content": QUESTIONS[round % QUESTIONS.len()] }),
        );
        let Ok(claimed) = api.post(&format!("{at}/turns"), &json!({})) else { continue };
        // The third chat has the worker that does not last.
        let goes = number == 3 && rand.below(4) == 0;
        produce(rt, api, stopped, &name, &claimed, ANSWERS[round % ANSWERS.len()], goes);
    }
}

/// Whatever a worker left behind, this one finishes.
fn rescue(rt: &Rt, api: &Api, stopped: &Receiver<()>) {
    while pause(rt, stopped, 1_000) {
        let Ok(claimed) = api.post("/v1/turns/next", &json!({ "labels": { "demo": "yes" } })) else {
            continue;
        };
        let Some(id) = claimed["stream"].as_str() else { continue };
        let answer = "The worker before me went away in the middle of its turn, and its lease ran out. \
                      I took the stream and go on.";
        produce(rt, api, stopped, id, &claimed, answer, false);
    }
}

/// Says an answer word by word under a claim; with `goes`, stops in the middle without a word.
fn produce(
    rt: &Rt,
    api: &Api,
    stopped: &Receiver<()>,
    stream: &str,
    claimed: &Value,
    answer: &str,
    goes: bool,
) {
    let (turn, lease) = (claimed["turn"].to_string(), claimed["lease"].as_str().unwrap_or_default());
    let send = |what: &str, kind: &str, text: String| {
        let headers = [("towpath-lease", lease), ("content-type", kind)];
        api.send(
            "POST",
            &format!("/v1/streams/{stream}/turns/{turn}/{what}"),
            &headers,
            Some(&mut text.as_bytes()),
        )
    };
    let mut rand = rt.rand("demo-words");
    let words = answer.split_inclusive(' ').count();
    for (at_word, word) in answer.split_inclusive(' ').enumerate() {
        let lost = send("parts", "application/x-ndjson", format!("{}\n", Value::from(word))).is_err();
        if lost || goes && at_word > words / 2 {
            return;
        }
        // Told to end: what was said so far is what there is.
        if !pause(rt, stopped, 40 + rand.below(160)) {
            break;
        }
    }
    let body = json!({ "role": "assistant", "content": answer });
    let _ = send("commit", "application/json", body.to_string());
    let _ = send("finish", "application/json", json!({ "status": "done" }).to_string());
}

/// Somebody who reads along, and comes back after any end of the connection.
fn view(rt: &Rt, api: &Api, stopped: &Receiver<()>, number: usize) {
    let path = format!("/v1/streams/demo/chat-{number}/events");
    while pause(rt, stopped, 1_000) {
        let Ok(answer) = api.send("GET", &path, &[("accept", "text/event-stream")], None) else { continue };
        let (mut events, mut page) = (answer.into_reader(), [0; 4_096]);
        // Ends when the daemon does.
        while events.read(&mut page).is_ok_and(|read| read > 0) {}
    }
}

/// Twelve agents that say how they are every second or so.
fn fleet(rt: &Rt, api: &Api, stopped: &Receiver<()>) {
    let mut rand = rt.rand("demo-fleet");
    let agents: Vec<String> = (1..=12).map(|n| format!("00000000-0000-4000-8000-{n:012}")).collect();
    for (at, agent) in agents.iter().enumerate() {
        let _ = api.put(&format!("/v1/agents/{agent}"), &json!({ "name": format!("demo-{:02}", at + 1) }));
    }
    let mut load: HashMap<&str, u64> = HashMap::new();
    while pause(rt, stopped, 1_000) {
        for agent in &agents {
            let cpu = load.entry(agent).or_insert(30);
            *cpu = (*cpu + rand.below(21)).saturating_sub(10).clamp(1, 99);
            let rows = json!({ "metadata": [
                { "key": "cpu", "value": format!("{cpu} %") },
                { "key": "memory", "value": format!("{} MiB", 200 + *cpu * 7) },
                { "key": "state", "value": if *cpu > 90 { "busy" } else { "well" } },
            ] });
            let _ = api.post(&format!("/v1/agents/{agent}/metadata"), &rows);
        }
    }
}

/// Connections that come and go.
fn visitors(rt: &Rt, api: &Api, stopped: &Receiver<()>) {
    const KINDS: &[&str] = &["ssh", "vscode", "jetbrains", "reconnecting_pty"];
    let mut rand = rt.rand("demo-visitors");
    let mut here: Vec<Value> = Vec::new();
    while pause(rt, stopped, 700 + rand.below(1_500)) {
        let leaves = !here.is_empty() && rand.below(2) == 0;
        let mut record = if leaves {
            let at = rand.below(here.len() as u64) as usize;
            here.swap_remove(at)
        } else {
            let record = json!({
                "connection_id": rt.uuid_v4(),
                "type": KINDS[rand.below(KINDS.len() as u64) as usize],
                "agent_name": format!("demo-{:02}", 1 + rand.below(12)),
                "ip": format!("192.0.2.{}", 1 + rand.below(250)),
            });
            here.push(record.clone());
            record
        };
        record["id"] = json!(rt.uuid_v7());
        record["time"] = json!(
            jiff::Timestamp::from_microsecond(rt.wall().as_micros())
                .map(|t| t.to_string())
                .unwrap_or_default()
        );
        record["status"] = json!(if leaves { "disconnected" } else { "connected" });
        if leaves {
            record["disconnect_reason"] = json!("left");
        }
        let _ = api.post("/v1/connections", &record);
    }
}
