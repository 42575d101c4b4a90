//! The relay's door: where other replicas fetch the parts of streams that run here.
//!
//! It stands on a listener of its own. What opens it is a ticket that only replicas of the same store can
//! sign, for one stream, once. No user's credential comes this way.

use uuid::Uuid;

use super::{Reply, Request, Response, Route, Router};
use crate::codec::ticket::RelayTicket;
use crate::engine::replicas::Replicas;
use crate::engine::streams::{CarriedHere, RELAY_MESSAGE_MAX, RELAY_TICKET, Streams};
use crate::wire::Owner;

/// Adds the routes of streams: parts that flow to other replicas, and what is asked of turns that run here.
pub fn relay_routes(router: &mut Router, streams: &Streams, replicas: &Replicas) {
    let (parts, keys) = (streams.clone(), replicas.clone());
    let route = Route::get("/relay/v1/streams/{id}")
        .about("Brings another replica the parts of a stream that runs here")
        .open()
        .answers(&[101, 401])
        .to(move |request, reply| serve(&parts, &keys, &request, reply));
    router.add(route);
    let (turns, keys) = (streams.clone(), replicas.clone());
    let route = Route::get("/relay/v1/turns/{id}")
        .about("Takes what another replica was asked of a turn that runs here")
        .open()
        .answers(&[101, 401])
        .to(move |request, reply| take_errands(&turns, &keys, &request, reply));
    router.add(route);
}

/// What lets a replica in: a ticket of this store, for this replica and this subject, that was not used before.
/// Whatever else replicas ask of one another over this listener is let in the same way.
///
/// # Errors
/// A 401 to send, or a 404 if the path names no subject.
pub fn admit(replicas: &Replicas, request: &Request) -> Result<RelayTicket, Response> {
    let refused = |code: &str, why: &str| Response::problem(401, code, why);
    let Ok(subject) = request.param("id").parse::<Uuid>() else {
        return Err(Response::problem(404, "not_found", "there is nothing at this path"));
    };
    let ticket = request
        .header(RELAY_TICKET)
        .ok_or_else(|| refused("ticket_missing", "replicas show a ticket here"))?;
    let ticket = replicas.accept(ticket).map_err(|why| refused("ticket_refused", &why.to_string()))?;
    if ticket.stream == subject {
        Ok(ticket)
    } else {
        Err(refused("ticket_refused", "the ticket is for something else"))
    }
}

fn serve(streams: &Streams, replicas: &Replicas, request: &Request, reply: Reply) {
    let stream = match admit(replicas, request) {
        Ok(ticket) => ticket.stream,
        Err(response) => return reply.send(response),
    };
    let tag = streams.next_follower();
    let owner = Owner::new(&streams.outlet(stream), tag);
    let Some(link) = reply.websocket(&[], RELAY_MESSAGE_MAX, owner) else { return };
    if let Err(error) = streams.serve_relay(tag, stream, link.clone()) {
        log::warn!("relay refused stream={stream} error={error}");
        link.close(1013, "try again later");
    }
}

fn take_errands(streams: &Streams, replicas: &Replicas, request: &Request, reply: Reply) {
    let stream = match admit(replicas, request) {
        Ok(ticket) => ticket.stream,
        Err(response) => return reply.send(response),
    };
    let carried = CarriedHere::new(streams, stream);
    let owner = Owner::new(&carried.outlet(), 0);
    if let Some(link) = reply.websocket(&[], RELAY_MESSAGE_MAX, owner) {
        carried.opened(link);
    }
}
