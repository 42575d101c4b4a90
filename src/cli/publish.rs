//! `towpath publish NAME`

use std::io::{self, BufRead, BufReader, Read, Write};

use clap::Args;
use serde_json::{Value, json};

use super::{Api, Failure, Remote, say};
use crate::client::http::{ApiError, path_of};
use crate::rt::Rt;

/// Write standard input into a stream
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    echo hello | towpath publish chat/7                 one message a line\n  \
    my-model | towpath publish chat/7 --turn            each line is a part, at the end a message of all\n  \
    cat notes.txt | towpath publish notes/1 --whole     all of it is one message")]
pub(super) struct Publish {
    #[command(flatten)]
    remote: Remote,
    /// The stream; created if it is not there
    name: String,
    /// Who says it
    #[arg(long)]
    role: Option<String>,
    /// All of standard input is one message
    #[arg(long, conflicts_with = "turn")]
    whole: bool,
    /// Produce a turn: followers see each line at once, and the whole as a message at the end
    #[arg(long)]
    turn: bool,
    /// Lines are JSON, not text
    #[arg(long)]
    json: bool,
}

impl Publish {
    pub(super) fn run(self) -> Result<(), Failure> {
        let api = self.remote.api()?;
        match api.get(&self.at("/state")) {
            Ok(_) => {}
            Err(ApiError::Problem { status: 404, .. }) => {
                api.put(&self.at(""), &json!({}))?;
            }
            Err(error) => return Err(error.into()),
        }
        if self.turn { self.produce(&api) } else { self.append(&api) }
    }

    fn at(&self, rest: &str) -> String {
        format!("/v1/streams/{}{rest}", path_of(&self.name))
    }

    fn content(&self, line: &str) -> Result<Value, Failure> {
        if self.json { Ok(serde_json::from_str(line)?) } else { Ok(line.into()) }
    }

    fn append(&self, api: &Api) -> Result<(), Failure> {
        let rt = Rt::real();
        let role = self.role.as_deref().unwrap_or("user");
        let mut input = BufReader::new(io::stdin().lock());
        let send = |line: &str| -> Result<(), Failure> {
            let body = json!({ "role": role, "content": self.content(line)? }).to_string();
            // The same key on a second try is the same message.
            let key = rt.uuid_v7().to_string();
            let headers = [("content-type", "application/json"), ("idempotency-key", key.as_str())];
            let written = super::remote::retried(&rt, || {
                api.send("POST", &self.at("/messages"), &headers, Some(&mut body.as_bytes()))
            })?;
            drop(written);
            Ok(())
        };
        if self.whole {
            let mut text = String::new();
            input.read_to_string(&mut text)?;
            return send(text.trim_end_matches('\n'));
        }
        for line in input.lines() {
            send(&line?)?;
        }
        Ok(())
    }

    /// The parts go out as they come, in one request that stays open.
    fn produce(&self, api: &Api) -> Result<(), Failure> {
        let claimed = api.post(&self.at("/turns"), &json!({}))?;
        let turn = claimed["turn"].to_string();
        let lease = claimed["lease"].as_str().unwrap_or_default().to_owned();
        let at = |what: &str| self.at(&format!("/turns/{turn}/{what}"));
        let mut lines = Lines {
            publish: self,
            input: BufReader::new(io::stdin().lock()),
            ready: Vec::new(),
            said: String::new(),
        };
        let headers = [("content-type", "application/x-ndjson"), ("towpath-lease", lease.as_str())];
        let sent = api.send("POST", &at("parts"), &headers, Some(&mut lines));
        let said = lines.said;
        let with_lease = |what: &str, body: &Value| {
            let headers = [("content-type", "application/json"), ("towpath-lease", lease.as_str())];
            let text = body.to_string();
            api.send("POST", &at(what), &headers, Some(&mut text.as_bytes()))
        };
        match sent {
            Ok(_) => {
                let role = self.role.as_deref().unwrap_or("assistant");
                with_lease("commit", &json!({ "role": role, "content": said }))?;
                with_lease("finish", &json!({ "status": "done" }))?;
                say(turn)
            }
            Err(error) => {
                // What was said so far is not kept; the turn must not stay open for it.
                let _ = with_lease("finish", &json!({ "status": "failed", "error": error.to_string() }));
                Err(error.into())
            }
        }
    }
}

/// Lines of standard input as NDJSON parts, and everything they said.
struct Lines<'a, R> {
    publish: &'a Publish,
    input: R,
    ready: Vec<u8>,
    said: String,
}

impl<R: BufRead> Read for Lines<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.ready.is_empty() {
            let mut line = String::new();
            if self.input.read_line(&mut line)? == 0 {
                return Ok(0);
            }
            let part = match self.publish.json {
                true => serde_json::from_str::<Value>(&line).map_err(io::Error::other)?,
                false => Value::from(line.as_str()),
            };
            self.said.push_str(part.as_str().unwrap_or(&line));
            writeln!(self.ready, "{part}")?;
        }
        let taken = self.ready.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&self.ready[..taken]);
        self.ready.drain(..taken);
        Ok(taken)
    }
}
