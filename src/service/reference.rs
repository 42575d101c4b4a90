//! The reference services of River's test kits: one service with a procedure for each shape, and for each way a
//! call can fail. They are what `examples/river_reference.rs` serves and what our own tests call.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::schema::{any, integer, number, object, optional, text};
use super::{Failure, Procedure, Service};
use crate::state::value::Value;

#[derive(Deserialize)]
struct Divide {
    a: f64,
    b: f64,
}

#[derive(Serialize)]
struct Quotient {
    result: Value,
}

#[derive(Deserialize)]
struct Nothing {}

#[derive(Deserialize)]
struct Slow {
    ms: f64,
}

#[derive(Serialize)]
struct Aborted {
    aborted: bool,
}

#[derive(Serialize)]
struct WhoAmI {
    from: String,
    #[serde(rename = "sessionId")]
    session_id: String,
}

#[derive(Serialize)]
struct Stats {
    #[serde(rename = "openStreams")]
    open_streams: u64,
}

#[derive(Deserialize)]
struct Count {
    n: f64,
    #[serde(rename = "intervalMs")]
    interval_ms: Option<f64>,
}

#[derive(Deserialize)]
struct Forever {
    #[serde(rename = "intervalMs")]
    interval_ms: f64,
}

#[derive(Serialize)]
struct Tick {
    i: i64,
}

#[derive(Deserialize)]
struct Summand {
    n: f64,
}

#[derive(Serialize)]
struct Total {
    total: Value,
    count: i64,
}

#[derive(Deserialize)]
struct Prefix {
    prefix: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    i: Value,
    msg: String,
}

/// A number as JavaScript would send it: whole where it is whole.
fn plain(number: f64) -> Value {
    Value::Float(number).as_i64().map_or(Value::Float(number), Value::Int)
}

fn millis(ms: f64) -> Duration {
    // What is negative or not a number waits not at all; a day is as good as for ever.
    Duration::from_millis(ms.clamp(0.0, 86_400_000.0) as u64)
}

/// The service `interop`.
pub fn interop() -> Service {
    let nothing = || object([]);
    Service::new("interop")
        .with(
            "echo",
            Procedure::rpc(|_, init: Value| Ok(init)).takes(any()).inline().about("Gives back its init."),
        )
        .with("divide", divide())
        .with(
            "throws",
            Procedure::rpc(|_, _: Nothing| Err::<(), _>(Failure::uncaught("boom"))).takes(nothing()).inline(),
        )
        .with(
            "cancels",
            Procedure::rpc(|_, _: Nothing| Err::<(), _>(Failure::cancel("server says no")))
                .takes(nothing())
                .inline(),
        )
        .with(
            "slow",
            Procedure::rpc(|call, init: Slow| Ok(Aborted { aborted: call.wait(millis(init.ms)) }))
                .takes(object([("ms", number())])),
        )
        .with(
            "whoami",
            Procedure::rpc(|call, _: Nothing| {
                Ok(WhoAmI { from: call.from().into(), session_id: call.session().into() })
            })
            .takes(nothing())
            .inline(),
        )
        .with(
            "stats",
            Procedure::rpc(|call, _: Nothing| Ok(Stats { open_streams: call.open_calls() as u64 }))
                .takes(nothing())
                .inline(),
        )
        .with("count", count())
        .with("forever", forever())
        .with(
            "subErr",
            Procedure::subscription::<Nothing, (), _>(|_, _, out| {
                out.write_failure(Failure::new("NOT_FOUND", "no such thing"))?;
                Ok(())
            })
            .takes(nothing()),
        )
        .with("sum", sum())
        .with("capped", capped())
        .with("echoStream", echo_stream())
        .with(
            "throwStream",
            Procedure::stream::<Nothing, Value, (), _>(|_, _, mut requests, _| match requests.next() {
                Some(_) => Err(Failure::uncaught("stream boom")),
                None => Ok(()),
            })
            .takes(nothing())
            .requests(any()),
        )
}

fn divide() -> Procedure {
    Procedure::rpc(|_, ask: Divide| {
        if ask.b == 0.0 {
            let extras = Value::map([("test", "abc".into())]);
            return Err(Failure::new("DIV_BY_ZERO", "Cannot divide by zero").with(extras));
        }
        Ok(Quotient { result: plain(ask.a / ask.b) })
    })
    .takes(object([("a", number()), ("b", number())]))
    .gives(object([("result", number())]))
    .inline()
}

fn count() -> Procedure {
    Procedure::subscription(|call, init: Count, out| {
        for i in 0..init.n as i64 {
            if i > 0 && init.interval_ms.is_some_and(|ms| call.wait(millis(ms))) {
                break;
            }
            out.write(&Tick { i })?;
        }
        Ok(())
    })
    .takes(object([("n", number()), ("intervalMs", optional(number()))]))
    .gives(object([("i", integer())]))
}

fn forever() -> Procedure {
    Procedure::subscription(|call, init: Forever, out| {
        let mut i = 0;
        // Nobody listens any more once the call is over: there is no one to tell that a write failed.
        while out.write(&Tick { i }).is_ok() && !call.wait(millis(init.interval_ms)) {
            i += 1;
        }
        Ok(())
    })
    .takes(object([("intervalMs", number())]))
    .gives(object([("i", integer())]))
}

fn sum() -> Procedure {
    Procedure::upload(|_, _: Nothing, requests| {
        let (mut total, mut count) = (0.0, 0);
        for request in requests {
            let Summand { n } = request?;
            total += n;
            count += 1;
        }
        Ok(Total { total: plain(total), count })
    })
    .takes(object([]))
    .requests(object([("n", number())]))
    .gives(object([("total", number()), ("count", integer())]))
}

fn capped() -> Procedure {
    Procedure::upload(|_, _: Nothing, requests| {
        let (mut total, mut count) = (0.0, 0);
        for request in requests {
            let Summand { n } = request?;
            total += n;
            count += 1;
            if total > 10.0 {
                return Err(Failure::cancel("can't add more than 10"));
            }
        }
        Ok(Total { total: plain(total), count })
    })
    .takes(object([]))
    .requests(object([("n", number())]))
    .gives(object([("total", number()), ("count", integer())]))
}

fn echo_stream() -> Procedure {
    Procedure::stream(|_, init: Prefix, requests, out| {
        let prefix = init.prefix.unwrap_or_default();
        for request in requests {
            // A call that broke has nobody left to answer.
            let Ok(Line { i, msg }) = request else { break };
            out.write(&Line { i, msg: format!("{prefix}{msg}") })?;
        }
        Ok(())
    })
    .takes(object([("prefix", optional(text()))]))
    .requests(object([("i", number()), ("msg", text())]))
    .gives(object([("i", number()), ("msg", text())]))
}
