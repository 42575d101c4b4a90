//! Whether a client may have a session, and what its handlers learn of it.

use std::time::Duration;

use crate::state::handshake::{Refusal, RefusalCode};
use crate::state::value::Value;

/// Whether a client may have a session, and what its handlers learn of it.
pub trait Admission: Send + Sync {
    /// Looks at what a handshake brought, or a refresh (`before` is then what the last one made).
    ///
    /// # Errors
    /// The refusal the client is told: `MALFORMED_HANDSHAKE_META` or `REJECTED_BY_CUSTOM_HANDLER`, usually.
    fn admit(
        &self,
        client: &str,
        metadata: Option<&Value>,
        before: Option<&Value>,
    ) -> Result<Admitted, Refusal>;

    /// Whether what it made of a handshake still holds. Asked before a session gets it, and of every session
    /// when it is looked at again; who is not good any more is asked for fresh metadata.
    fn holds(&self, _made: &Value) -> bool {
        true
    }

    /// Whether it answers without waiting for anything, so that the room may ask it on its own thread.
    fn is_quick(&self) -> bool {
        false
    }
}

/// A client that was let in.
#[derive(Clone, Debug, PartialEq)]
pub struct Admitted {
    /// What handlers learn of it.
    pub metadata: Value,
    /// How long that holds; the client is asked for fresh metadata before it ends.
    pub expires_in: Option<Duration>,
}

/// Lets everybody in and keeps what they bring.
#[derive(Clone, Copy, Debug, Default)]
pub struct Anybody;

impl Admission for Anybody {
    fn admit(&self, _: &str, metadata: Option<&Value>, _: Option<&Value>) -> Result<Admitted, Refusal> {
        Ok(Admitted { metadata: metadata.cloned().unwrap_or(Value::Null), expires_in: None })
    }
    fn is_quick(&self) -> bool {
        true
    }
}

/// Asks the admission; should it panic, that is a refusal.
pub(super) fn admit(
    admission: &dyn Admission,
    client: &str,
    metadata: Option<&Value>,
    before: Option<&Value>,
) -> Result<Admitted, Refusal> {
    let admit = std::panic::AssertUnwindSafe(|| admission.admit(client, metadata, before));
    std::panic::catch_unwind(admit).unwrap_or_else(|_| {
        Err(Refusal::new(RefusalCode::RejectedByCustomHandler, "the handshake handler failed"))
    })
}
