//! The service `pipes`: what `/v1/pipes` does, as procedures. Pipes are borne by links of their own, never by a
//! session.

use super::Late;
use super::mirror::Mirror;
use crate::service::Service;
use crate::service::schema::{Schema, array, integer, null, object, one_of, text};

const ONE: &[(&str, &str)] = &[("id", "id")];

fn one() -> Schema {
    object([("id", text())])
}

fn pipe() -> Schema {
    let or_null = |schema| one_of([schema, null()]);
    object([
        ("id", text()),
        ("state", text().about("attached or detached")),
        ("detached_ms", or_null(integer())),
        ("principal", text()),
        ("target", text()),
        ("peer", or_null(text())),
        ("created_at", text()),
        ("epoch", integer()),
        ("resumes", integer()),
        ("replayed_bytes", integer()),
        ("duplicate_bytes", integer()),
        ("buffered_bytes", integer()),
        ("bytes_to_target", integer()),
        ("bytes_from_target", integer()),
        ("round_trip_us", or_null(integer())),
    ])
}

pub(super) fn service(behind: &Late) -> Service {
    let list = Mirror::get("/v1/pipes").procedure(behind);
    let read = Mirror::get("/v1/pipes/{id}").params(ONE).procedure(behind);
    let kill = Mirror::delete("/v1/pipes/{id}").params(ONE).procedure(behind);
    let cut = Mirror::post("/v1/pipes/{id}/cut").params(ONE).procedure(behind);
    let about_cut = "Cuts the carrier of a pipe, to watch it recover.";
    Service::new("pipes")
        .with("list", list.about("Lists pipes.").takes(object([])).gives(object([("pipes", array(pipe()))])))
        .with("read", read.about("One pipe.").takes(one()).gives(pipe()))
        .with("kill", kill.about("Ends a pipe; both sides are told.").takes(one()).gives(null()))
        .with("cut", cut.about(about_cut).takes(one()).gives(null()))
}
