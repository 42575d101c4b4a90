//! Where connection rows go besides the database: a file of JSON lines, the log, a web hook, or what a
//! program brings.
//!
//! Each backend has a thread and a queue of its own, so one that is slow, fails or panics holds up
//! neither the others nor the database. What does not fit into its queue is dropped for that backend
//! alone, and counted: the database is what keeps records.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::retries::Shared;
use super::worker::{Bounds, Crew, Inbox, Room, Worker};
use crate::codec::connection::json_line;
use crate::error::{Code, Error, Result};
use crate::metrics::{Counter, Metrics};
use crate::rt::{Lock, Moment, Rt};
use crate::state::connection::Row;
use crate::wire::http_trust;

/// Batches that may wait for one backend.
const QUEUE: usize = 64;

/// Something that takes connection rows.
pub trait Backend: Send + 'static {
    /// Tells it from the others, in metrics and logs.
    fn name(&self) -> &'static str;

    /// Takes some rows. Must return in bounded time: the engine's end waits for it.
    ///
    /// # Errors
    /// They are not taken; that is logged and counted, and not tried again.
    fn write(&mut self, rows: &[Row]) -> Result<()>;

    /// The last call; nothing is written after it.
    ///
    /// # Errors
    /// Something was not taken after all.
    fn close(&mut self) -> Result<()> {
        Ok(())
    }
}

/// The queues of all backends.
#[derive(Clone, Debug, Default)]
pub(super) struct Fan {
    queues: Arc<[Queue]>,
}

#[derive(Debug)]
struct Queue {
    name: &'static str,
    inbox: Inbox<Arc<[Row]>>,
    dropped: Counter,
    trouble: Trouble,
}

/// Why a backend did not take what it was last given; nothing if it did.
type Trouble = Arc<Lock<Option<String>>>;

impl Fan {
    /// Gives the rows to every backend that has room.
    pub(super) fn send(&self, rows: &[Row]) {
        if self.queues.is_empty() || rows.is_empty() {
            return;
        }
        let rows: Arc<[Row]> = rows.into();
        for queue in self.queues.iter() {
            if queue.inbox.try_data(rows.clone()).is_err() {
                queue.dropped.inc_by(rows.len() as u64);
                queue.trouble.lock().get_or_insert_with(|| "it is too slow".to_owned());
            }
        }
    }

    /// What is wrong with any of them, in one sentence; nothing while all take what they are given.
    pub(super) fn trouble(&self) -> Option<String> {
        let of = |queue: &Queue| Some(format!("{}: {}", queue.name, queue.trouble.lock().as_ref()?));
        let troubles: Vec<String> = self.queues.iter().filter_map(of).collect();
        let (failing, all) = (troubles.len(), self.queues.len());
        let text = format!("{failing} of {all} backends besides the database fail: {}", troubles.join("; "));
        (failing > 0).then_some(text)
    }
}

/// The threads of all backends.
#[derive(Debug)]
pub(super) struct Backends {
    #[allow(dead_code, reason = "dropping a worker is what it is kept for")]
    workers: Vec<Worker>,
}

impl Backends {
    pub(super) fn start(
        crew: &Crew,
        backends: Vec<Box<dyn Backend>>,
        shared: &Arc<Shared>,
        metrics: &mut Metrics,
    ) -> Result<(Backends, Fan)> {
        let written =
            metrics.counters("backend_rows", "Connection rows a backend besides the database took.");
        let failed =
            metrics.counters("backend_failures", "Writes that a backend besides the database refused.");
        let dropped = metrics
            .counters("backend_dropped", "Connection rows a backend besides the database was too slow for.");
        let (mut workers, mut queues) = (Vec::new(), Vec::new());
        for backend in backends {
            let name = backend.name();
            let labels = vec![("backend", name)];
            let trouble = Trouble::default();
            let room = BackendRoom {
                name,
                backend,
                written: written.get_or_create_owned(&labels),
                failed: failed.get_or_create_owned(&labels),
                dropped: dropped.get_or_create_owned(&labels),
                in_a_row: 0,
                trouble: trouble.clone(),
                rt: crew.rt().clone(),
                shared: shared.clone(),
            };
            let bounds = Bounds { data: QUEUE, control: 1, drain: 1 };
            let (worker, inbox) = Worker::spawn(crew, format!("backend-{name}"), bounds, |_| room)?;
            workers.push(worker);
            queues.push(Queue { name, inbox, dropped: dropped.get_or_create_owned(&labels), trouble });
        }
        Ok((Backends { workers }, Fan { queues: queues.into() }))
    }
}

struct BackendRoom {
    name: &'static str,
    backend: Box<dyn Backend>,
    written: Counter,
    failed: Counter,
    dropped: Counter,
    in_a_row: u64,
    trouble: Trouble,
    rt: Rt,
    shared: Arc<Shared>,
}

impl BackendRoom {
    /// Whether they were taken.
    fn write(&mut self, rows: &[Row]) -> bool {
        // A backend is somebody else's code; its panic is its failure and not the engine's.
        let written = catch_unwind(AssertUnwindSafe(|| self.backend.write(rows)))
            .unwrap_or_else(|_| Err(Error::new(Code::Internal, "it panicked")));
        match written {
            Ok(()) => {
                self.written.inc_by(rows.len() as u64);
                self.in_a_row = 0;
                *self.trouble.lock() = None;
            }
            Err(error) => {
                self.failed.inc();
                self.in_a_row += 1;
                *self.trouble.lock() = Some(error.to_string());
                // The first of a row of failures says it all; the counter has the rest.
                if self.in_a_row == 1 {
                    log::warn!("backend {} did not take {} connection rows: {error}", self.name, rows.len());
                }
            }
        }
        self.in_a_row == 0
    }
}

impl Room for BackendRoom {
    type Message = Arc<[Row]>;

    fn wake(&mut self, _: Moment, inbox: &mut Vec<Arc<[Row]>>) {
        for rows in inbox.drain(..) {
            // What was not taken is counted; the next may be.
            let _ = self.write(&rows);
        }
    }

    fn deadline(&self) -> Option<Moment> {
        None
    }

    /// A slow web hook is no reason to restart the daemon.
    fn waits_for_others(&self) -> bool {
        true
    }

    /// What waits is written while that goes well and there is time: a stop does not wait for somebody who
    /// does not answer.
    fn end(&mut self, _: Moment, inbox: &mut Vec<Arc<[Row]>>) {
        let mut batches = inbox.drain(..);
        let in_time = |room: &BackendRoom| room.rt.now() < room.shared.deadline();
        while in_time(self)
            && let Some(rows) = batches.next()
            && self.write(&rows)
        {}
        let left: usize = batches.map(|rows| rows.len()).sum();
        if left > 0 {
            self.dropped.inc_by(left as u64);
            log::warn!("backend {} did not get {left} connection rows before the stop", self.name);
        }
        let closed = catch_unwind(AssertUnwindSafe(|| self.backend.close()))
            .unwrap_or_else(|_| Err(Error::new(Code::Internal, "it panicked")));
        if let Err(error) = closed {
            log::warn!("backend {} did not close: {error}", self.name);
        }
    }
}

/// Writes a line to the program's log for each row.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogBackend;

impl Backend for LogBackend {
    fn name(&self) -> &'static str {
        "log"
    }

    fn write(&mut self, rows: &[Row]) -> Result<()> {
        for row in rows {
            log::info!(target: "towpath::connections", "{}", json_line(row).trim_end());
        }
        Ok(())
    }
}

/// A file of JSON lines. When it has grown to `max_bytes` it becomes `<file>.1`, what was `.1` becomes
/// `.2`, and so on; `keep` of them stay.
#[derive(Debug)]
pub struct LinesBackend {
    path: PathBuf,
    max_bytes: u64,
    keep: u32,
    file: Option<BufWriter<File>>,
    bytes: u64,
}

impl LinesBackend {
    /// Lines appended to the file at `path`, which is made when it is not there.
    pub fn new(path: impl Into<PathBuf>, max_bytes: u64, keep: u32) -> LinesBackend {
        LinesBackend { path: path.into(), max_bytes: max_bytes.max(1), keep, file: None, bytes: 0 }
    }

    fn file(&mut self) -> Result<&mut BufWriter<File>> {
        if self.file.is_none() {
            let (file, bytes) = self.open().map_err(|error| self.failed("opening", &error))?;
            self.bytes = bytes;
            self.file = Some(BufWriter::new(file));
        }
        Ok(self.file.as_mut().expect("it was put there two lines up"))
    }

    /// The file and how long it is. Half a line at its end, of a full disk or a kill, is ended.
    fn open(&self) -> std::io::Result<(File, u64)> {
        use std::os::unix::fs::{FileExt, OpenOptionsExt};
        let mut file =
            OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&self.path)?;
        let bytes = file.metadata()?.len();
        let mut last = [b'\n'];
        if bytes > 0 {
            file.read_exact_at(&mut last, bytes - 1)?;
        }
        if last == [b'\n'] {
            return Ok((file, bytes));
        }
        file.write_all(b"\n")?;
        Ok((file, bytes + 1))
    }

    fn rotate(&mut self) -> Result<()> {
        self.flush()?;
        self.file = None;
        let numbered = |n: u32| -> PathBuf {
            let mut name = self.path.as_os_str().to_owned();
            if n > 0 {
                name.push(format!(".{n}"));
            }
            name.into()
        };
        for n in (0..self.keep).rev() {
            rename_if_there(&numbered(n), &numbered(n + 1))
                .map_err(|error| self.failed("rotating", &error))?;
        }
        if self.keep == 0 {
            std::fs::remove_file(&self.path).map_err(|error| self.failed("rotating", &error))?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let flushed = self.file.as_mut().map_or(Ok(()), Write::flush);
        flushed.map_err(|error| self.gave_up(&error))
    }

    /// What is still in the buffer was not taken, and is not written later either.
    fn gave_up(&mut self, error: &std::io::Error) -> Error {
        if let Some(file) = self.file.take() {
            drop(file.into_parts());
        }
        self.failed("writing", error)
    }

    fn failed(&self, doing: &str, error: &std::io::Error) -> Error {
        Error::new(Code::Io, format!("{doing} {}: {error}", self.path.display()))
    }
}

fn rename_if_there(from: &Path, to: &Path) -> std::io::Result<()> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        renamed => renamed,
    }
}

impl Backend for LinesBackend {
    fn name(&self) -> &'static str {
        "lines"
    }

    fn write(&mut self, rows: &[Row]) -> Result<()> {
        for row in rows {
            let line = json_line(row);
            self.file()?;
            if self.bytes > 0 && self.bytes + line.len() as u64 > self.max_bytes {
                self.rotate()?;
            }
            let written = self.file()?.write_all(line.as_bytes());
            written.map_err(|error| self.gave_up(&error))?;
            self.bytes += line.len() as u64;
        }
        self.flush()
    }

    fn close(&mut self) -> Result<()> {
        self.flush()
    }
}

/// Posts rows as NDJSON to a URL. Tried twice; anything but 2xx is a failure.
pub struct WebhookBackend {
    url: String,
    /// What may be said of it: the rest of a web hook's address is often what opens it.
    place: String,
    agent: ureq::Agent,
}

impl WebhookBackend {
    /// Posts to `url`, and trusts whom the system trusts, or else the certificates of a PEM file. `timeout` is
    /// for one try, the answer included.
    ///
    /// # Errors
    /// If the file cannot be read or holds no certificate.
    pub fn new(url: impl Into<String>, timeout: Duration, trust: Option<&Path>) -> Result<WebhookBackend> {
        let tls = http_trust(trust)?;
        let config = ureq::Agent::config_builder().timeout_global(Some(timeout)).tls_config(tls).build();
        let url = url.into();
        let place = match url.parse::<ureq::http::Uri>() {
            Ok(uri) => format!("{}://{}", uri.scheme_str().unwrap_or("http"), uri.host().unwrap_or_default()),
            Err(_) => String::from("an address that is none"),
        };
        Ok(WebhookBackend { url, place, agent: config.into() })
    }
}

impl std::fmt::Debug for WebhookBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WebhookBackend({})", self.place)
    }
}

/// The error without the address, which some of them repeat.
fn said(error: &ureq::Error) -> String {
    match error {
        ureq::Error::BadUri(_) => "the address is none".to_owned(),
        other => other.to_string(),
    }
}

impl Backend for WebhookBackend {
    fn name(&self) -> &'static str {
        "webhook"
    }

    fn write(&mut self, rows: &[Row]) -> Result<()> {
        const TRIES: u32 = 2;
        let body: String = rows.iter().map(json_line).collect();
        let mut tries = 0;
        loop {
            tries += 1;
            let sent = self.agent.post(&self.url).header("content-type", "application/x-ndjson").send(&body);
            match sent {
                Ok(_) => return Ok(()),
                Err(error) if tries == TRIES => {
                    return Err(Error::new(Code::Io, format!("posting to {}: {}", self.place, said(&error))));
                }
                Err(_) => {}
            }
        }
    }
}
