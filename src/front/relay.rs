//! The relay's door: where other replicas fetch the parts of streams that run here.
//!
//! It stands on a listener of its own. What opens it is a ticket that only replicas of the same store can
//! sign, for one stream, once. No user's credential comes this way.

use uuid::Uuid;

use super::{Reply, Request, Route, Router};
use crate::engine::replicas::Replicas;
use crate::engine::streams::{RELAY_MESSAGE_MAX, RELAY_TICKET, Streams};
use crate::wire::Owner;

/// Adds the one route there is.
pub fn relay_routes(router: &mut Router, streams: &Streams, replicas: &Replicas) {
    let (streams, replicas) = (streams.clone(), replicas.clone());
    let route = Route::get("/relay/v1/streams/{id}")
        .about("Brings another replica the parts of a stream that runs here")
        .open()
        .answers(&[101, 401])
        .to(move |request, reply| serve(&streams, &replicas, &request, reply));
    router.add(route);
}

fn serve(streams: &Streams, replicas: &Replicas, request: &Request, reply: Reply) {
    let Ok(stream) = request.param("id").parse::<Uuid>() else {
        return reply.problem(404, "not_found", "there is nothing at this path");
    };
    let accepted = match request.header(RELAY_TICKET) {
        None => return reply.problem(401, "ticket_missing", "replicas show a ticket here"),
        Some(ticket) => replicas.accept(ticket),
    };
    match accepted {
        Ok(ticket) if ticket.stream == stream => {}
        Ok(_) => return reply.problem(401, "ticket_refused", "the ticket is for another stream"),
        Err(why) => return reply.problem(401, "ticket_refused", &why.to_string()),
    }
    let tag = streams.next_follower();
    let owner = Owner::new(&streams.outlet(stream), tag);
    let Some(link) = reply.websocket(&[], RELAY_MESSAGE_MAX, owner) else { return };
    if let Err(error) = streams.serve_relay(tag, stream, link.clone()) {
        log::warn!("relay refused stream={stream} error={error}");
        link.close(1013, "try again later");
    }
}
