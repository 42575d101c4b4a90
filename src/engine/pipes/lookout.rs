//! Where a thread that wants a pipe's bytes waits for them: at the carrier itself.
//!
//! The pipes' thread could wait in its place, and call it: that is one thread more to wake before the bytes are where
//! they are wanted, which costs more than reading them. So the carrier leaves the poller of the pipes for as long as
//! somebody looks out for it.
//!
//! *Invariant:* whoever looks out stands in line to be called as well, so that what comes on another way (an end,
//! another carrier, bytes that the pipes' thread has read) is not waited for here in vain.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{read, write};

/// A place to wait at.
pub(super) struct Lookout {
    calls: OwnedFd,
}

impl Lookout {
    /// Nothing if the system has no descriptor for it.
    pub(super) fn new() -> Option<Lookout> {
        let calls = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        calls
            .inspect_err(|error| log::debug!("pipes: no descriptor to wait with: {error}"))
            .ok()
            .map(|calls| Lookout { calls })
    }

    /// Has whoever waits here, or comes to wait, look up.
    pub(super) fn call(&self) {
        // It fails only where it was called 2⁶⁴ times and did not look up.
        let _ = write(&self.calls, &1_u64.to_ne_bytes());
    }

    /// Waits for a call, and for bytes of the carrier if there is one; now and then for nothing. False when the
    /// time is over.
    pub(super) fn wait(&self, carrier: Option<&OwnedFd>, time: Option<Duration>) -> bool {
        let call = PollFd::new(&self.calls, PollFlags::IN);
        let time = time.and_then(|time| Timespec::try_from(time).ok());
        // Woken by a call, by bytes, by the end of the carrier, or by the clock.
        let (events, called) = match carrier {
            Some(carrier) => {
                let both = &mut [call, PollFd::new(carrier, PollFlags::IN | PollFlags::RDHUP)];
                (poll(both, time.as_ref()), !both[0].revents().is_empty())
            }
            None => {
                let alone = &mut [call];
                (poll(alone, time.as_ref()), !alone[0].revents().is_empty())
            }
        };
        if called {
            // Somebody else's call may have been in between; what it was about is looked at now.
            let _ = read(&self.calls, &mut [0; 8]);
        }
        match events {
            Ok(0) => false,
            Ok(_) => true,
            Err(error) => {
                let error = io::Error::from(error);
                if error.kind() != io::ErrorKind::Interrupted {
                    log::warn!("pipes: waiting for a carrier: {error}");
                }
                true
            }
        }
    }
}
