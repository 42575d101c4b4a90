//! Whether credentials are still good that nothing but somebody's word ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Shared by whoever was let in with the same credentials, and ended by whoever takes them back.
///
/// Who ends passes has the links looked at afterwards ([`Doors::recheck`](super::Doors::recheck)); a link that is
/// opened after that looks for itself, so that none slips through between the two.
#[derive(Clone, Debug)]
pub struct Pass {
    mark: u64,
    good: Arc<AtomicBool>,
}

impl Pass {
    /// A good one; the mark tells the credentials from others and gives nothing of them away.
    pub fn new(mark: u64) -> Pass {
        Pass { mark, good: Arc::new(AtomicBool::new(true)) }
    }

    /// What tells the credentials from others.
    pub fn mark(&self) -> u64 {
        self.mark
    }

    /// It is good no longer.
    pub fn end(&self) {
        self.good.store(false, Ordering::Release);
    }

    /// Whether it is good.
    pub fn is_good(&self) -> bool {
        self.good.load(Ordering::Acquire)
    }
}

/// Of the same credentials.
impl PartialEq for Pass {
    fn eq(&self, other: &Pass) -> bool {
        self.mark == other.mark
    }
}

impl Eq for Pass {}
