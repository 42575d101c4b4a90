//! `towpath follow NAME`

use std::io::{self, BufRead, BufReader, Write};

use clap::Args;
use serde_json::Value;

use super::remote::COME_BACK;
use super::{Exit, Failure, Remote};
use crate::client::http::{ApiError, path_of};
use crate::rt::Rt;
use crate::state::backoff::{Backoff, Next};

/// Print a stream as it happens, through any number of broken connections
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    towpath follow chat/7                       everything there is, then what comes\n  \
    towpath follow chat/7 --since now --json    one event a line, from now on\n  \
    towpath follow chat/7 --until-done          until the turn that runs has finished")]
pub(super) struct Follow {
    #[command(flatten)]
    remote: Remote,
    /// The stream
    name: String,
    /// Where to begin: a token from an earlier event, `-1` for the beginning, `now` for the end
    #[arg(long, default_value = "-1", allow_hyphen_values = true)]
    since: String,
    /// One event a line, as JSON
    #[arg(long)]
    json: bool,
    /// Messages only, no parts of what is being produced
    #[arg(long)]
    no_parts: bool,
    /// End when the stream is done, failed or idle
    #[arg(long)]
    until_done: bool,
}

/// When to stop.
#[derive(Default)]
struct End {
    until_done: bool,
    /// Nothing runs and nothing waits.
    quiet: bool,
    /// The snapshot is complete: what was missed has been printed.
    live: bool,
}

impl End {
    fn reached(&mut self, event: &Value) -> bool {
        match event["t"].as_str() {
            Some("closed") => return true,
            Some("hello") => self.live = false,
            Some("live") => self.live = true,
            Some("status") => {
                self.quiet = matches!(event["d"]["status"].as_str(), Some("done" | "failed" | "idle"));
            }
            _ => {}
        }
        self.until_done && self.quiet && self.live
    }
}

/// What is printed where a draft is on the line.
#[derive(Default)]
struct Printer {
    json: bool,
    /// Characters of a draft stand on the line.
    draft: bool,
}

impl Follow {
    pub(super) fn run(self) -> Result<(), Failure> {
        let api = self.remote.api()?;
        let rt = Rt::real();
        let mut wait = Backoff::new(COME_BACK);
        let mut rand = rt.rand("follow");
        let mut since = self.since.clone();
        let mut end = End { until_done: self.until_done, ..End::default() };
        let mut printer = Printer { json: self.json, ..Printer::default() };
        loop {
            let parts = u8::from(!self.no_parts);
            let path =
                format!("/v1/streams/{}/events?since={}&parts={parts}", path_of(&self.name), path_of(&since));
            let headers = [("accept", "text/event-stream")];
            let lost = match api.send("GET", &path, &headers, None) {
                // At the tail of a closed stream.
                Ok(answer) if answer.status == 204 => return Ok(()),
                Ok(answer) => {
                    let mut events = BufReader::new(answer.into_reader());
                    loop {
                        match next_event(&mut events) {
                            Ok(Some(event)) => {
                                wait.healthy(rt.now());
                                if let Some(token) = event["o"].as_str() {
                                    token.clone_into(&mut since);
                                }
                                printer.print(&event)?;
                                if end.reached(&event) {
                                    return Ok(());
                                }
                            }
                            Ok(None) => break "the daemon ended the connection".to_owned(),
                            Err(error) => break error.to_string(),
                        }
                    }
                }
                // The daemon is there and says no: asking again would not change its mind.
                Err(error @ ApiError::Problem { status, .. }) if status != 503 && status != 429 => {
                    return Err(error.into());
                }
                Err(error) => error.to_string(),
            };
            // Standard output is for the stream; without standard error there is nobody to tell.
            let _ = writeln!(io::stderr(), "towpath: link lost ({lost}), coming back");
            if let Next::TryAt(moment) = wait.failed(rt.now(), rand.next_u64()) {
                rt.sleep_until(moment);
            }
        }
    }
}

/// The `data` of the next event, or `None` at the end.
pub(super) fn next_event(lines: &mut impl BufRead) -> io::Result<Option<Value>> {
    let mut data = String::new();
    let mut line = String::new();
    loop {
        line.clear();
        if lines.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let text = line.trim_end_matches(['\n', '\r']);
        if let Some(more) = text.strip_prefix("data:") {
            if !data.is_empty() {
                data.push('\n');
            }
            data.push_str(more.strip_prefix(' ').unwrap_or(more));
        } else if text.is_empty() && !data.is_empty() {
            return serde_json::from_str(&data).map(Some).map_err(io::Error::other);
        }
    }
}

impl Printer {
    fn print(&mut self, event: &Value) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{event}")?;
            return Ok(out.flush()?);
        }
        let d = &event["d"];
        match event["t"].as_str().unwrap_or_default() {
            "part" => {
                write!(out, "{}", text_of(d))?;
                self.draft = true;
            }
            "message" => {
                // The draft on the line was this message as it came.
                let shown = self.draft && d["turn"].is_u64();
                self.end_line(&mut out)?;
                if !shown {
                    let said = text_of(&d["content"]);
                    writeln!(out, "{}: {}", d["role"].as_str().unwrap_or("-"), said.trim_end_matches('\n'))?;
                }
            }
            "reset" => {
                self.end_line(&mut out)?;
                writeln!(out, "[cleared: {}]", text_of(&d["reason"]))?;
            }
            "error" if !d["error"].is_null() => {
                self.end_line(&mut out)?;
                writeln!(out, "[error: {}]", text_of(&d["error"]))?;
            }
            "closed" => {
                self.end_line(&mut out)?;
                writeln!(out, "[closed: {}]", text_of(&d["reason"]))?;
            }
            _ => {}
        }
        Ok(out.flush()?)
    }

    fn end_line(&mut self, out: &mut impl Write) -> io::Result<()> {
        if std::mem::take(&mut self.draft) { writeln!(out) } else { Ok(()) }
    }
}

/// What a person reads of a content or a part.
fn text_of(value: &Value) -> String {
    let said =
        value.as_str().or_else(|| ["text", "delta", "content"].iter().find_map(|key| value[*key].as_str()));
    said.map_or_else(|| value.to_string(), str::to_owned)
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Failure {
        Failure::new(Exit::Failed, "bad_json", error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_behind_the_snapshot() {
        let mut end = End { until_done: true, ..End::default() };
        let told = |t: &str, status: &str| serde_json::json!({ "t": t, "d": { "status": status } });
        assert!(!end.reached(&told("status", "done")));
        assert!(end.reached(&told("live", "")));
        assert!(!end.reached(&told("status", "running")));
        assert!(end.reached(&told("status", "failed")));
    }

    #[test]
    fn events_are_read_with_their_comments_and_ids_left_out() {
        let text = ": hello\n\nid: t\nevent: part\ndata: {\"t\":\"part\",\"d\":\"a\"}\n\ndata: {\"t\":\ndata: 1}\n\n";
        let mut lines = text.as_bytes();
        assert_eq!(next_event(&mut lines).expect("reads").expect("an event")["d"], "a");
        assert_eq!(next_event(&mut lines).expect("reads").expect("an event")["t"], 1);
        assert!(next_event(&mut lines).expect("reads").is_none());
    }
}
