//! Signals, turned into messages on a channel.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::{Handle, Signals};

use crate::Result;
use crate::front::Answer;
use crate::rt::{Receiver, Rt, Sender, Thread};

/// What somebody outside asks of the process.
pub(super) enum Asked {
    /// SIGTERM or SIGINT: stop; a second one: at once.
    Stop,
    /// SIGHUP: read the configuration again.
    Reload,
    /// `POST /v1/admin/reload`: the same, and say how it went.
    ReloadFor(Answer),
    /// SIGUSR1: write down what is going on.
    Dump,
}

/// Signals nobody has taken yet. More of them say nothing that these do not.
const WAITING_MAX: usize = 8;

/// The thread that listens for signals. Dropping it ends the listening and joins it.
pub(super) struct Listener {
    handle: Handle,
    tell: Sender<Asked>,
    // Joined when dropped, after `handle` was closed in `drop`.
    thread: Option<Thread<()>>,
}

impl Listener {
    pub(super) fn start(rt: &Rt) -> Result<(Listener, Receiver<Asked>)> {
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1])?;
        let handle = signals.handle();
        let (teller, asked) = rt.channel("signals", WAITING_MAX);
        let tell = teller.clone();
        // Blocks in the iterator; `handle.close` wakes it for the last time.
        let thread = rt.spawn("signals", move || {
            for signal in signals.forever() {
                let what = match signal {
                    SIGHUP => Asked::Reload,
                    SIGUSR1 => Asked::Dump,
                    _ => Asked::Stop,
                };
                // Full: whoever reads them has as many to answer already, a stop among them if there
                // was one. Disconnected: the daemon is on its way out.
                let _ = tell.try_send(what);
            }
        })?;
        Ok((Listener { handle, tell: teller, thread: Some(thread) }, asked))
    }

    /// For whoever asks the same by other ways than a signal.
    pub(super) fn teller(&self) -> Sender<Asked> {
        self.tell.clone()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.handle.close();
        self.thread = None;
    }
}
