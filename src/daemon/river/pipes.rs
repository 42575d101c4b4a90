//! The service `pipes`: what `/v1/pipes` does, as procedures. Pipes are borne by links of their own, never by a
//! session.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Late, caller, must_be};
use crate::engine::pipes::{PipeInfo, PipesHandle};
use crate::front::Role;
use crate::service::schema::{any, array, integer, object, text};
use crate::service::{Call, Failure, Procedure, Service};
use crate::state::pipe::{End, Ending, PipeId};

/// How long the threads of pipes may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
struct Nothing {}

#[derive(Deserialize)]
struct One {
    id: String,
}

#[derive(Serialize)]
struct Pipe {
    id: String,
    state: &'static str,
    principal: String,
    target: String,
    peer: Option<String>,
    epoch: u64,
    resumes: u64,
    bytes_to_target: u64,
    bytes_from_target: u64,
}

impl From<&PipeInfo> for Pipe {
    fn from(info: &PipeInfo) -> Pipe {
        Pipe {
            id: info.id.to_string(),
            state: if info.attached { "attached" } else { "detached" },
            principal: info.principal.to_string(),
            target: info.target.to_string(),
            peer: info.peer.as_ref().and_then(|peer| peer.ip).map(|ip| ip.to_string()),
            epoch: info.epoch,
            resumes: info.resumes,
            bytes_to_target: info.bytes_to_target,
            bytes_from_target: info.bytes_from_target,
        }
    }
}

#[derive(Serialize)]
struct Listed {
    pipes: Vec<Pipe>,
}

/// Those the caller may see: others do not exist for it.
fn own(pipes: &PipesHandle, call: &Call) -> Result<Vec<PipeInfo>, Failure> {
    must_be(call, &[Role::Pipe])?;
    let who = caller(call);
    let mut infos = wait(call, |done| pipes.list(done))?;
    infos.retain(|info| who.has(Role::Admin) || *info.principal == *who.name);
    Ok(infos)
}

fn find(pipes: &PipesHandle, call: &Call, ask: &One) -> Result<PipeId, Failure> {
    let id = PipeId::parse(&ask.id);
    let id = id.ok_or_else(|| Failure::new("bad_id", "a pipe's id is 32 hexadecimal digits"))?;
    match own(pipes, call)?.iter().any(|info| info.id == id) {
        true => Ok(id),
        false => Err(gone()),
    }
}

fn gone() -> Failure {
    Failure::new("not_found", "there is no such pipe here (any more)")
}

/// Waits for what the threads of pipes say.
fn wait<T: Send + 'static>(call: &Call, ask: impl FnOnce(Box<dyn FnOnce(T) + Send>)) -> Result<T, Failure> {
    let (tell, told) = call.rt().channel("pipes", 1);
    ask(Box::new(move |answer| {
        // Whoever asked may have gone.
        let _ = tell.try_send(answer);
    }));
    // Woken by the answer.
    told.recv_deadline(call.rt().now() + PATIENCE)
        .map_err(|_| Failure::new("timed_out", "the pipes did not answer in time"))
}

pub(super) fn service(behind: &Late) -> Service {
    let (lists, kills, cuts) = (behind.clone(), behind.clone(), behind.clone());
    let list = Procedure::rpc(move |call, _: Nothing| {
        let infos = own(&lists.get()?.pipes, call)?;
        Ok(Listed { pipes: infos.iter().map(Pipe::from).collect() })
    });
    let kill = Procedure::rpc(move |call, ask: One| {
        let pipes = &kills.get()?.pipes;
        let id = find(pipes, call, &ask)?;
        let end = End::new(Ending::Killed, "somebody ended it by hand");
        if wait(call, |done| pipes.kill(id, end, done))? { Ok(()) } else { Err(gone()) }
    });
    let cut = Procedure::rpc(move |call, ask: One| {
        let pipes = &cuts.get()?.pipes;
        let id = find(pipes, call, &ask)?;
        if wait(call, |done| pipes.cut(id, done))? { Ok(()) } else { Err(gone()) }
    });
    let one = || object([("id", text())]);
    let pipe = object([
        ("id", text()),
        ("state", text()),
        ("principal", text()),
        ("target", text()),
        ("peer", any()),
        ("epoch", integer()),
        ("resumes", integer()),
        ("bytes_to_target", integer()),
        ("bytes_from_target", integer()),
    ]);
    Service::new("pipes")
        .with("list", list.about("Lists pipes.").takes(object([])).gives(object([("pipes", array(pipe))])))
        .with("kill", kill.about("Ends a pipe; both sides are told.").takes(one()))
        .with("cut", cut.about("Cuts the carrier of a pipe, to watch it recover.").takes(one()))
}
