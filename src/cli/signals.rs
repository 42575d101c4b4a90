//! What signals ask of a command that carries pipes: dial now, or go.

use std::io::{self, IsTerminal};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::Failure;
use crate::engine::pipes::{Pipes, PipesHandle};
use crate::rt::Rt;

/// How long the ends of pipes may take to be told. The pipes' threads give up after one second; what may
/// keep them longer is an attempt to connect that sits in the system's resolver.
const LEAVE_WAIT: Duration = Duration::from_secs(2);

/// SIGHUP dials now: the network changed. The first SIGTERM or SIGINT calls `stop`, a second one ends the
/// process at once. SIGHUP is like the first of them where it means what it meant first: the terminal is gone.
pub(super) fn listen(
    rt: &Rt,
    pipes: &PipesHandle,
    mut stop: impl FnMut(i32) + Send + 'static,
) -> Result<(), Failure> {
    let mut signals = Signals::new([SIGHUP, SIGTERM, SIGINT])?;
    let pipes = pipes.clone();
    let had_terminal = io::stdin().is_terminal();
    let thread = rt.spawn("signals", move || {
        let mut is_told = false;
        for signal in &mut signals {
            match signal {
                SIGHUP if !had_terminal || io::stdin().is_terminal() => pipes.redial(),
                // A shell sends one, and the system another when the shell has gone.
                SIGHUP if is_told => {}
                _ if is_told => std::process::exit(128 + signal),
                _ => {
                    is_told = true;
                    stop(signal);
                }
            }
        }
    })?;
    // It waits for signals until the process ends.
    thread.detach();
    Ok(())
}

/// Ends every pipe with a word to its daemon, which would keep it for its grace otherwise.
pub(super) fn leave(rt: &Rt, pipes: Pipes) {
    let (tell, told) = rt.channel("left", 1);
    let thread = rt.spawn("leaving", move || {
        drop(pipes);
        // One message for a channel of one.
        let _ = tell.try_send(());
    });
    // Without a thread to spare the pipes were dropped with it, here.
    if let Ok(thread) = thread {
        thread.detach();
    }
    // Late or not: the process ends, and takes with it what would not be told.
    let _ = told.recv_deadline(rt.now() + LEAVE_WAIT);
}
