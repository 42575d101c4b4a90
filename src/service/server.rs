//! A server of sessions, put together: for programs that embed one.
//!
//! It listens to nothing by itself: links are brought to it. A WebSocket route of the HTTP doors rings its
//! [`Server::doorbell`]; a socket is given to [`Server::serve_stream`]; a client in the same program uses
//! [`Server::memory`].

use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use super::Services;
use crate::engine::handlers::Handlers;
use crate::engine::sessions::{Admission, Anybody, Doorbell, Figures, Message, Sessions, Settings};
use crate::engine::worker::{Bounds, Crew, Inbox, Worker};
use crate::metrics::Metrics;
use crate::rt::{Lock, Rt, Thread};
use crate::state::session::Cause;
use crate::wire::bearer::{self, Bearer, Carriers, Ear, Line};

/// A server of sessions. Dropping it ends every session, cancels every call, and joins its threads.
///
/// ```
/// use std::sync::Arc;
/// use towpath::client::session::{Client, DialWith, Options};
/// use towpath::{Procedure, Rt, Service, Services, Sessions};
///
/// let rt = Rt::real();
/// let math = Service::new("math").with("double", Procedure::rpc(|_, n: u64| Ok(n * 2)));
/// let sessions = Sessions::builder(&rt, Services::new().with(math)).start()?;
/// let memory = sessions.memory_dialer();
/// let dialer = DialWith::new(&rt, move |ear| Ok(memory.dial(ear)?.0));
/// let client = Client::start(&rt, "me", "SERVER", Arc::new(dialer), Options::default())?;
/// assert_eq!(client.rpc::<_, u64>("math", "double", &21)?, 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Server {
    rt: Rt,
    doorbell: Doorbell,
    inbox: Inbox<Message>,
    // Dropped in this order: nothing new comes in; sessions end and cancel their calls; handlers finish; links go.
    listeners: Lock<Vec<UnixListening>>,
    worker: Option<Worker>,
    handlers: Option<Arc<Handlers>>,
    carriers: Carriers,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Server")
    }
}

/// A server before it runs.
pub struct Builder {
    rt: Rt,
    services: Services,
    settings: Settings,
    admission: Arc<dyn Admission>,
    figures: Figures,
    handlers_max: usize,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Builder {
    /// Codec, timings, bounds.
    #[must_use]
    pub fn settings(mut self, settings: Settings) -> Builder {
        self.settings = settings;
        self
    }

    /// Who may have a session. Without it, everybody.
    #[must_use]
    pub fn admission(mut self, admission: impl Admission + 'static) -> Builder {
        self.admission = Arc::new(admission);
        self
    }

    /// Describes what there is to see of it.
    #[must_use]
    pub fn metrics(mut self, metrics: &mut Metrics) -> Builder {
        self.figures = Figures::describe(metrics);
        self
    }

    /// Handlers that may block at once. 256.
    #[must_use]
    pub fn handlers_max(mut self, max: usize) -> Builder {
        self.handlers_max = max;
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(self) -> crate::Result<Server> {
        let Builder { rt, services, settings, admission, figures, handlers_max } = self;
        let crew = Crew::new(&rt);
        let handlers = Arc::new(Handlers::new(&rt, handlers_max));
        let pool = handlers.clone();
        let (worker, inbox) = Worker::spawn_open(&crew, "sessions-0", Bounds::of(16_384), |inbox| {
            Sessions::new(&rt, settings, Arc::new(services), admission, pool, figures, inbox)
        })?;
        let doorbell = Doorbell::new(&inbox);
        let (worker, handlers) = (Some(worker), Some(handlers));
        let (listeners, carriers) = (Lock::default(), Carriers::default());
        Ok(Server { rt, doorbell, inbox, listeners, worker, handlers, carriers })
    }
}

impl Server {
    /// A server of these services.
    pub fn builder(rt: &Rt, services: Services) -> Builder {
        Builder {
            rt: rt.clone(),
            services,
            settings: Settings::default(),
            admission: Arc::new(Anybody),
            figures: Figures::default(),
            handlers_max: 256,
        }
    }

    /// Where links come in.
    pub fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }

    /// Serves sessions over something that reads and writes, with four bytes of length before each message.
    /// `shut` must make a blocked read and a blocked write return.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn serve_stream(
        &self,
        reader: impl Read + Send + 'static,
        writer: impl Write + Send + 'static,
        shut: impl Fn() + Send + Sync + 'static,
    ) -> crate::Result<()> {
        serve_stream(&self.rt, &self.carriers, &self.doorbell, reader, writer, shut)
    }

    /// Serves sessions on a Unix-domain socket, until the server is dropped.
    ///
    /// # Errors
    /// When the socket cannot be made there.
    pub fn listen_unix(&self, path: &Path) -> crate::Result<()> {
        let listener = std::os::unix::net::UnixListener::bind(path)?;
        let (rt, carriers, doorbell) = (self.rt.clone(), self.carriers.clone(), self.doorbell.clone());
        let stopped = rt.cancel_token();
        let (stop, listening) = (stopped.clone(), listener.try_clone()?);
        let thread = self.rt.spawn("sessions-unix", move || {
            for socket in listener.incoming() {
                if stopped.is_cancelled() {
                    return;
                }
                let served = socket.map_err(crate::Error::from).and_then(|socket| {
                    let (reader, writer) = (socket.try_clone()?, socket.try_clone()?);
                    let shut = move || {
                        // A socket that is closed already is as it should be.
                        let _ = socket.shutdown(std::net::Shutdown::Both);
                    };
                    serve_stream(&rt, &carriers, &doorbell, reader, writer, shut)
                });
                if let Err(why) = served {
                    log::warn!("a session's socket was not served: {why}");
                }
            }
        })?;
        self.listeners.lock().push(UnixListening { path: path.to_owned(), listening, stop, _thread: thread });
        Ok(())
    }

    /// A link in memory: `ear` hears what the server says. The line can be cut and stalled by a test.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn memory(&self, ear: Ear) -> crate::Result<(Box<dyn Bearer>, Line)> {
        Memory { rt: self.rt.clone(), carriers: self.carriers.clone(), doorbell: self.doorbell.clone() }
            .dial(ear)
    }

    /// The same for a dialer that outlives this borrow.
    pub fn memory_dialer(&self) -> Memory {
        Memory { rt: self.rt.clone(), carriers: self.carriers.clone(), doorbell: self.doorbell.clone() }
    }

    /// Asks this client, or all, for fresh metadata.
    pub fn refresh(&self, client: Option<&str>) {
        self.tell(Message::Refresh(client.map(str::to_owned)));
    }

    /// Asks those clients for fresh metadata whose old holds no longer ([`Admission::holds`]).
    pub fn recheck(&self) {
        self.tell(Message::Recheck);
    }

    /// Ends a client's session.
    pub fn end(&self, client: &str) {
        self.tell(Message::EndClient(client.to_owned(), Cause::GoingAway));
    }

    /// Cuts the links of this client, or all, and keeps their sessions.
    pub fn cut(&self, client: Option<&str>) {
        self.tell(Message::Cut(client.map(str::to_owned)));
    }

    fn tell(&self, message: Message) {
        if self.inbox.control(message).is_err() {
            log::warn!("the sessions are too busy to be told");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.listeners.get_mut().clear();
        drop(self.worker.take());
        drop(self.handlers.take());
    }
}

/// Dials a server in the same program.
#[derive(Clone)]
pub struct Memory {
    rt: Rt,
    carriers: Carriers,
    doorbell: Doorbell,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Memory")
    }
}

impl Memory {
    /// A new link; `ear` hears what the server says.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn dial(&self, ear: Ear) -> crate::Result<(Box<dyn Bearer>, Line)> {
        let number = self.doorbell.number();
        let (near, far, line) = bearer::pair(&self.rt, &self.carriers, ear, self.doorbell.ear(number))?;
        self.doorbell.ring(number, far);
        Ok((near, line))
    }
}

struct UnixListening {
    path: std::path::PathBuf,
    listening: std::os::unix::net::UnixListener,
    stop: crate::rt::Cancel,
    // Joined after it was woken below.
    _thread: Thread<()>,
}

impl Drop for UnixListening {
    fn drop(&mut self) {
        self.stop.cancel();
        // Wakes it, also when its file is gone or another's by now.
        if socket2::SockRef::from(&self.listening).shutdown(std::net::Shutdown::Both).is_err() {
            // Where a listening socket cannot be shut, a connection wakes it.
            let _ = std::os::unix::net::UnixStream::connect(&self.path);
        }
        // A socket that is gone already is as it should be.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn serve_stream(
    rt: &Rt,
    carriers: &Carriers,
    doorbell: &Doorbell,
    reader: impl Read + Send + 'static,
    writer: impl Write + Send + 'static,
    shut: impl Fn() + Send + Sync + 'static,
) -> crate::Result<()> {
    let number = doorbell.number();
    let (gate, opened) = rt.channel("opened", 1);
    let ear = doorbell.ear(number);
    // The room must know the link before it hears from it.
    let ear = Ear::new({
        let opened = Lock::new(Some(opened));
        move |heard| {
            let waits = opened.lock().take();
            if let Some(opened) = waits {
                // Woken by the ring below, or by its failing, which drops the other end.
                let _ = opened.recv();
            }
            ear.hear(heard)
        }
    });
    let bearer = bearer::stream(rt, carriers, reader, writer, shut, ear)?;
    doorbell.ring(number, bearer);
    // The ear has taken it, or will.
    let _ = gate.try_send(());
    Ok(())
}
