//! `towpath demo`

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::{Api, Failure, say};
use crate::client::http::ApiError;
use crate::rt::{Receiver, RecvTimeoutError, Rt, Sender, Thread};

/// Serve, and play: chats with a slow model, a fleet of agents, connections that come and go
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  towpath demo\n  towpath demo --listen 127.0.0.1:8080\n\n\
    Then open the address in a browser, or `towpath follow demo/chat-1`. Nothing is kept: the store\n\
    is in memory. Every so often a worker is dropped in the middle of a turn, to watch what followers\n\
    see.")]
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
        let data = std::env::temp_dir().join(format!("towpath-demo-{}", std::process::id()));
        let mut stage = None;
        let served = super::serve::serve_with(
            None,
            &[
                ("--listen", "server.listen", self.listen.clone()),
                ("--log", "log.level", self.log.clone()),
                ("--data", "store.data", data.to_string_lossy().into_owned()),
                ("--store", "store.url", "memory".to_owned()),
            ],
            &mut |url| {
                match Stage::set(url) {
                    Ok(set) => stage = Some(set),
                    // The daemon serves all the same.
                    Err(error) => log::warn!("the demo cannot play: {error:?}"),
                }
                let _ = say(format!("open {url}/ in a browser, or: towpath follow demo/chat-1 --url {url}"));
            },
        );
        drop(stage);
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
    fn set(url: &str) -> Result<Stage, Failure> {
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
    let name = format!("/v1/streams/demo/chat-{number}");
    // It may be there from before; what follows says if anything else is wrong.
    let _ = api.put(&name, &json!({ "labels": { "demo": "yes" } }));
    let mut rand = rt.rand("demo-chat");
    let mut round = number;
    while pause(rt, stopped, 500 + rand.below(4_000)) {
        round += 1;
        let _ = api.post(
            &format!("{name}/messages"),
            &json!({ "role": "user", "content": QUESTIONS[round % QUESTIONS.len()] }),
        );
        let claimed = match api.post(&format!("{name}/turns"), &json!({})) {
            Ok(claimed) => claimed,
            // The worker before this one went without a word: its lease runs out in a while.
            Err(ApiError::Problem { status: 409, .. }) => continue,
            Err(_) => continue,
        };
        let (turn, lease) =
            (claimed["turn"].to_string(), claimed["lease"].as_str().unwrap_or_default().to_owned());
        let at = |what: &str| format!("{name}/turns/{turn}/{what}");
        let with_lease = |path: &str, kind: &str, text: String| {
            api.send(
                "POST",
                path,
                &[("towpath-lease", &lease), ("content-type", kind)],
                Some(&mut text.as_bytes()),
            )
        };
        let answer = ANSWERS[round % ANSWERS.len()];
        let goes = rand.below(12) == 0;
        let words = answer.split_inclusive(' ').count();
        for (at_word, word) in answer.split_inclusive(' ').enumerate() {
            let lost =
                with_lease(&at("parts"), "application/x-ndjson", format!("{}\n", Value::from(word))).is_err();
            if lost || goes && at_word > words / 2 || !pause(rt, stopped, 40 + rand.below(160)) {
                break;
            }
        }
        if goes {
            continue;
        }
        let _ = with_lease(
            &at("commit"),
            "application/json",
            json!({ "role": "assistant", "content": answer }).to_string(),
        );
        let _ = with_lease(&at("finish"), "application/json", json!({ "status": "done" }).to_string());
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
