//! The door of River sessions: a WebSocket at `/river`, without a subprotocol.

use super::router::Route;
use crate::engine::sessions::Doorbell;
use crate::engine::visits::Caller;
use crate::wire::Owner;

/// Whole messages on a session may be this large.
const MESSAGE_MAX: u32 = 4 << 20;

/// The route. Who may have a session is decided by its handshake, not here.
pub fn route(path: &str, doorbell: Doorbell) -> Route {
    Route::get(path).open().about("River sessions over a WebSocket.").answers(&[101]).to(
        move |request, reply| {
            let number = doorbell.number();
            // Who holds the session its handshake says, and not the upgrade.
            let caller = Caller { principal: None, ..request.caller() };
            // `None` was answered: it was no upgrade.
            if let Some(link) = reply.websocket(&[], MESSAGE_MAX, Owner::new(doorbell.outlet(), number)) {
                doorbell.ring_handle(number, link, caller);
            }
        },
    )
}
