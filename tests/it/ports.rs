//! Ports for who has to be told one.

use std::net::TcpStream;
use std::sync::atomic::{AtomicU32, Ordering};

/// A port where nobody listens, for who has to be told one: below those that the system hands out, so that
/// none of the other tests gets it meanwhile. Nothing is bound to find out: a child forked just then would go
/// on holding it.
pub(crate) fn free_port() -> u16 {
    const FIRST: u32 = 12_000;
    const SPAN: u32 = 20_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        // Runs beside this one begin somewhere else.
        let nth = std::process::id().wrapping_mul(97).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = (FIRST + nth % SPAN) as u16;
        if TcpStream::connect(("127.0.0.1", port)).is_err() {
            return port;
        }
    }
}
