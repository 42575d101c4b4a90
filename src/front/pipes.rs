//! `/v1/pipe` and `/v1/pipes`: the door of pipes.
//!
//! An upgraded connection leaves the I/O threads for the threads that own pipes, so that a byte of a
//! pipe crosses no thread. Who may open one is decided here, by the role `pipe`; where it may lead, there.

use std::sync::Arc;

use serde_json::{Value, json};

use super::relay::admit;
use super::{Answer, Reply, Request, Role, Route, Router};
use crate::engine::pipes::carrier::{Carrier, Socket};
use crate::engine::pipes::http::PROTOCOL;
use crate::engine::pipes::relay::Voucher;
use crate::engine::pipes::{CarrierPeer, PipeInfo, PipesHandle};
use crate::engine::replicas::Replicas;
use crate::rt::Rt;
use crate::state::pipe::{End, Ending, PipeId};
use crate::wire::{HandOver, Handed, HandedSocket, websocket};

/// Adds the routes of pipes.
pub fn routes(router: &mut Router, rt: &Rt, pipes: &PipesHandle) {
    let (handle, seeds) = (pipes.clone(), rt.clone());
    router.add(
        Route::get("/v1/pipe")
            .about("Bears a pipe: Upgrade towpath-pipe/1, or a WebSocket with the same frames in binary messages")
            .needs(Role::Pipe)
            .answers(&[101, 426])
            .to(move |request: Request, reply: Reply| open(&handle, &seeds, &request, reply)),
    );
    let handle = pipes.clone();
    router.add(
        Route::get("/v1/pipes")
            .about("Lists pipes")
            .needs(Role::Pipe)
            .answers(&[200])
            .to_whole(move |request: Request, reply: Answer| list(&handle, &request, reply)),
    );
    let handle = pipes.clone();
    router.add(
        Route::get("/v1/pipes/{id}").about("One pipe").needs(Role::Pipe).answers(&[200, 404]).to_whole(
            move |request: Request, reply: Answer| {
                with_own(&handle, &request, reply, |_, info, reply| reply.json(200, &value(&info)));
            },
        ),
    );
    let handle = pipes.clone();
    router.add(
        Route::delete("/v1/pipes/{id}")
            .about("Ends a pipe; both sides are told")
            .needs(Role::Pipe)
            .answers(&[204, 404])
            .to_whole(move |request: Request, reply: Answer| {
                with_own(&handle, &request, reply, |handle, info, reply| {
                    let end = End::new(Ending::Killed, "somebody ended it by hand");
                    handle.kill(info.id, end, move |found| answer(reply, found, 204));
                });
            }),
    );
    let handle = pipes.clone();
    router.add(
        Route::post("/v1/pipes/{id}/cut")
            .about("Cuts the carrier of a pipe, to watch it recover")
            .needs(Role::Pipe)
            .answers(&[202, 404])
            .to_whole(move |request: Request, reply: Answer| {
                with_own(&handle, &request, reply, |handle, info, reply| {
                    handle.cut(info.id, move |found| answer(reply, found, 202));
                });
            }),
    );
}

/// Adds the route of the relay's listener: another replica carries a client on whose pipe is here.
pub fn relay_routes(router: &mut Router, pipes: &PipesHandle, replicas: &Replicas) {
    let (handle, keys) = (pipes.clone(), replicas.clone());
    let route = Route::get("/relay/v1/pipes/{id}")
        .about("Bears a pipe of this replica for a client that came to another one")
        .open()
        .answers(&[101, 401, 426])
        .to(move |request, reply| take_over(&handle, &keys, &request, reply));
    router.add(route);
}

fn take_over(pipes: &PipesHandle, replicas: &Replicas, request: &Request, reply: Reply) {
    let ticket = match admit(replicas, request) {
        Ok(ticket) => ticket,
        Err(response) => return reply.send(response),
    };
    let voucher = Voucher::read(|name| request.header(name));
    let Some(voucher) = voucher.filter(|voucher| voucher.subject() == ticket.stream) else {
        return reply.problem(401, "ticket_refused", "the ticket is for another pipe or another caller");
    };
    let peer = CarrierPeer {
        ip: voucher.ip,
        // Only resumes come this way, and a resume tells no secret.
        confidential: false,
        principal: Some(voucher.principal.into()),
        relayed: true,
    };
    let pipes = pipes.clone();
    let take = move |handed: Handed| {
        let Handed { socket, tls, head, early, .. } = handed;
        let mut carrier = Carrier::raw(socket_of(socket), tls, early);
        carrier.begin_with(head);
        pipes.carrier(carrier, peer);
    };
    reply.hand_over(PROTOCOL, HandOver::new(take));
}

fn socket_of(handed: HandedSocket) -> Socket {
    match handed {
        HandedSocket::Tcp(socket) => Socket::Tcp(socket),
        HandedSocket::Unix(socket) => Socket::Unix(socket),
    }
}

fn open(pipes: &PipesHandle, rt: &Rt, request: &Request, reply: Reply) {
    let peer = request.peer();
    let peer = CarrierPeer {
        ip: peer.ip,
        confidential: peer.tls || peer.is_local(),
        principal: Some(Arc::from(request.who().name.as_str())),
        relayed: false,
    };
    let protocol = if request.wants_websocket() { "websocket" } else { PROTOCOL };
    let (pipes, seed) = (pipes.clone(), u64::from_be_bytes(rt.secret()));
    let is_websocket = protocol == "websocket";
    let take = move |handed: Handed| {
        let Handed { socket, tls, head, early, .. } = handed;
        let socket = socket_of(socket);
        let mut carrier = match is_websocket {
            true => Carrier::websocket(socket, tls, early, websocket::Role::Server, seed),
            false => Carrier::raw(socket, tls, early),
        };
        carrier.begin_with(head);
        pipes.carrier(carrier, peer);
    };
    reply.hand_over(protocol, HandOver::new(take));
}

fn list(pipes: &PipesHandle, request: &Request, reply: Answer) {
    let who = request.who().clone();
    pipes.list(move |infos| {
        let own = |info: &&PipeInfo| who.has(Role::Admin) || *info.principal == *who.name;
        let pipes: Vec<Value> = infos.iter().filter(own).map(value).collect();
        reply.json(200, &json!({ "pipes": pipes }));
    });
}

/// Finds a pipe by its id among those the caller may see: others do not exist for them.
fn with_own(
    pipes: &PipesHandle,
    request: &Request,
    reply: Answer,
    then: impl FnOnce(&PipesHandle, PipeInfo, Answer) + Send + 'static,
) {
    let Some(id) = PipeId::parse(request.param("id")) else {
        return reply.problem(400, "bad_id", "a pipe's id is 32 hexadecimal digits");
    };
    let (who, handle) = (request.who().clone(), pipes.clone());
    pipes.list(move |infos| {
        let own = |info: &PipeInfo| info.id == id && (who.has(Role::Admin) || *info.principal == *who.name);
        match infos.into_iter().find(own) {
            Some(info) => then(&handle, info, reply),
            None => answer(reply, false, 404),
        }
    });
}

fn answer(reply: Answer, found: bool, status: u16) {
    match found {
        true => reply.empty(status),
        false => reply.problem(404, "not_found", "there is no such pipe here (any more)"),
    }
}

fn value(info: &PipeInfo) -> Value {
    let created = jiff::Timestamp::from_microsecond(info.created_at.as_micros());
    json!({
        "id": info.id.to_string(),
        "state": if info.attached { "attached" } else { "detached" },
        "detached_ms": info.detached_for.map(|detached| detached.as_millis() as u64),
        "principal": &*info.principal,
        "target": info.target,
        "peer": info.peer.as_ref().and_then(|peer| peer.ip).map(|ip| ip.to_string()),
        "created_at": created.map(|created| format!("{created:.3}")).unwrap_or_default(),
        "epoch": info.epoch,
        "resumes": info.resumes,
        "replayed_bytes": info.replayed,
        "duplicate_bytes": info.duplicates,
        "buffered_bytes": info.buffered,
        "bytes_to_target": info.bytes_to_target,
        "bytes_from_target": info.bytes_from_target,
        "round_trip_us": info.round_trip.map(|trip| trip.as_micros() as u64),
    })
}
