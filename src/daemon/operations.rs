//! The routes for whoever operates the daemon: `/healthz`, `/readyz`, `/metrics`, `/openapi.json`,
//! tickets and reading the configuration again.

use std::sync::{Arc, OnceLock};

use serde_json::{Value, json};

use super::condition::Condition;
use super::signals::Asked;
use crate::engine::replicas::{PeerSeen, Replicas};
use crate::front::{Gate, Response, Role, Route, Router, TICKET_LIFE};
use crate::metrics::{self, Exposition};
use crate::rt::{Sender, TrySendError};

fn peer(peer: &PeerSeen) -> Value {
    json!({ "id": peer.id, "hostname": peer.hostname, "relay_url": peer.relay_url, "error": peer.error })
}

/// Adds the routes. Called after all others, so that `/openapi.json` knows them.
pub(super) fn add_routes(
    router: &mut Router,
    condition: &Arc<Condition>,
    gate: &Arc<Gate>,
    replicas: &Replicas,
    exposition: Exposition,
    asked: Option<Sender<Asked>>,
) {
    let well = condition.clone();
    router.add(
        Route::get("/healthz").about("Whether the daemon lives").open().answers(&[200, 503]).to_whole(
            move |_, reply| {
                let reasons = well.ails();
                let status = if reasons.is_empty() { 200 } else { 503 };
                reply.send(Response::json(
                    status,
                    &json!({ "healthy": reasons.is_empty(), "reasons": reasons }),
                ));
            },
        ),
    );
    let (ready, peers) = (condition.clone(), replicas.clone());
    router.add(
        Route::get("/readyz").about("Whether the daemon can take work").open().answers(&[200, 503]).to_whole(
            move |_, reply| {
                let mut reasons = ready.hinders();
                let is_ready = reasons.is_empty();
                reasons.append(&mut ready.remarks());
                let status = if is_ready { 200 } else { 503 };
                let mut told = json!({ "ready": is_ready, "reasons": reasons });
                // One that cannot be reached hinders nobody here; who wonders why parts are late sees it.
                let seen: Vec<_> = peers.peers().iter().map(peer).collect();
                if !seen.is_empty() {
                    told["peers"] = seen.into();
                }
                reply.send(Response::json(status, &told));
            },
        ),
    );
    router.add(Route::get("/metrics").about("Figures as OpenMetrics text").to_whole(move |_, reply| {
        reply.send(Response::bytes(200, metrics::CONTENT_TYPE, exposition.text().into_bytes()));
    }));
    let issuer = gate.clone();
    let about = "A ticket for one request, for callers that can set no header (EventSource)";
    router.add(Route::post("/v1/ticket").about(about).answers(&[201]).to_whole(move |request, reply| {
        match issuer.issue_ticket(request.who()) {
            Ok(ticket) => {
                let told = json!({ "ticket": ticket.reveal(), "expires_in_s": TICKET_LIFE.as_secs() });
                reply.send(Response::json(201, &told).header("cache-control", "no-store"));
            }
            Err(response) => reply.send(response),
        }
    }));
    let about = "Who these credentials are of and what they allow";
    router.add(Route::get("/v1/whoami").about(about).to_whole(|request, reply| {
        let told = Response::json(200, &request.who().told());
        reply.send(told.header("cache-control", "no-store"));
    }));
    let about = "Reads the configuration again, all or nothing; answers which settings need a restart";
    router.add(
        Route::post("/v1/admin/reload").about(about).needs(Role::Admin).answers(&[200, 409, 503]).to_whole(
            move |_, reply| match &asked {
                None => reply.problem(
                    409,
                    "no_configuration",
                    "the program around this daemon holds its settings",
                ),
                // Answered by the thread that holds the settings.
                Some(asked) => {
                    if let Err(TrySendError::Full(left) | TrySendError::Disconnected(left)) =
                        asked.try_send(Asked::ReloadFor(reply))
                        && let Asked::ReloadFor(reply) = left
                    {
                        reply.problem(503, "full", "the daemon is busy with other signals: try again");
                    }
                }
            },
        ),
    );
    let document = Arc::new(OnceLock::<String>::new());
    let told = document.clone();
    router.add(Route::get("/openapi.json").about("This description").open().to(move |_, reply| {
        let text = told.get().cloned().unwrap_or_default();
        reply.send(Response::bytes(200, "application/json", text.into_bytes()));
    }));
    document.set(router.openapi().to_string()).expect("it is described once, here");
}
