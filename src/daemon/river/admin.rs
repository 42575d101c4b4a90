//! The service `admin`: what operators ask.

use serde::Deserialize;
use serde_json::json;

use super::Late;
use super::mirror::Mirror;
use crate::service::schema::{any, array, boolean, integer, null, object, one_of, optional, text};
use crate::service::{Procedure, Service};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

pub(super) fn service(behind: &Late) -> Service {
    let pings = behind.clone();
    let ping = Procedure::rpc(move |_, _: Nothing| {
        let replicas = pings.get()?.replicas.list().len();
        Ok(json!({ "version": env!("CARGO_PKG_VERSION"), "replicas": replicas }))
    });
    let of = |mirror: Mirror| mirror.procedure(behind).takes(object([]));
    let or_null = |schema| one_of([schema, null()]);
    let replica = object([
        ("id", text()),
        ("hostname", text()),
        ("relay_url", or_null(text())),
        ("version", text()),
        ("started_at", text()),
        ("updated_at", text()),
        ("stopped_at", or_null(text())),
        ("alive", boolean()),
        ("error", text()),
    ]);
    let living = object([
        ("stream", text()),
        ("followers", integer()),
        ("turn", or_null(integer())),
        ("parts", or_null(integer())),
    ]);
    let scope = object([("match", text()), ("ops", array(text()))]);
    let who = object([
        ("name", text()),
        ("roles", array(text())),
        ("streams", or_null(array(scope))),
        ("expires_at", or_null(text())),
    ]);
    Service::new("admin")
        .with(
            "ping",
            ping.about("Says which version answers, and how many replicas it knows.")
                .takes(object([]))
                .gives(object([("version", text()), ("replicas", integer())])),
        )
        .with(
            "replicas",
            of(Mirror::get("/v1/replicas"))
                .about("The replicas of this store, as of the last sync.")
                .gives(object([("replicas", array(replica))])),
        )
        .with(
            "live",
            of(Mirror::get("/v1/admin/live"))
                .about("How many follow each stream on this replica, and how many parts its newest turn has here.")
                .gives(object([("replica", text()), ("streams", array(living))])),
        )
        .with(
            "reload",
            of(Mirror::post("/v1/admin/reload"))
                .about("Reads the configuration again, all or nothing; answers which settings need a restart.")
                .gives(object([("needs_restart", array(text()))])),
        )
        .with(
            "whoami",
            of(Mirror::get("/v1/whoami")).about("Who these credentials are of and what they allow.").gives(who),
        )
        .with(
            "ticket",
            of(Mirror::post("/v1/ticket"))
                .about("A ticket for one request over HTTP, for callers that can set no header there.")
                .gives(object([("ticket", text()), ("expires_in_s", integer())])),
        )
        .with(
            "health",
            of(Mirror::get("/healthz"))
                .about("Whether the daemon lives.")
                .gives(object([("healthy", boolean()), ("reasons", array(text()))])),
        )
        .with(
            "ready",
            of(Mirror::get("/readyz"))
                .about("Whether the daemon can take work.")
                .gives(object([
                    ("ready", boolean()),
                    ("reasons", array(text())),
                    ("peers", optional(array(any()))),
                ])),
        )
        .with("metrics", of(Mirror::get("/metrics")).about("Figures as OpenMetrics text.").gives(text()))
}
