//! `towpath doctor URL`

mod pipes;

use std::io::Read;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use self::pipes::Grace;
use super::way::Route;
use super::{Api, Exit, Failure, Remote, say};
use crate::client::http::ApiError;
use crate::engine::pipes::http::Proxy;
use crate::rt::Rt;

/// Look at a daemon and at what lies between: reach, readiness, round trip, credentials, live reads,
/// pipes
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  towpath doctor https://edge.example.com\n  towpath doctor --json\n  \
    towpath doctor --pipe host:22 --idle 300 --ssh host.work\n  \
    towpath doctor https://edge.example.com --proxy http://proxy:3128 --ca ours.pem\n\n\
    Each line says what was looked at, what was found, and what to do about it. Exit 1 if anything\n\
    is wrong."
)]
pub(super) struct Doctor {
    /// The daemon's address (the same as --url)
    address: Option<String>,
    #[command(flatten)]
    remote: Remote,
    #[command(flatten)]
    route: Route,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Open a pipe to this target and leave it idle, to see whether anything in between closes it
    #[arg(long, value_name = "TARGET")]
    pipe: Option<String>,
    /// For how many seconds
    #[arg(long, value_name = "SECONDS", default_value = "40", requires = "pipe")]
    idle: u64,
    /// Look at how ssh is set up for this host, as ~/.ssh/config names it
    #[arg(long, value_name = "HOST")]
    ssh: Option<String>,
}

/// What was found about one thing.
struct Finding {
    what: &'static str,
    well: bool,
    found: String,
    advice: Option<&'static str>,
}

impl Finding {
    fn good(what: &'static str, found: impl Into<String>) -> Finding {
        Finding { what, well: true, found: found.into(), advice: None }
    }

    fn bad(what: &'static str, found: impl Into<String>, advice: &'static str) -> Finding {
        Finding { what, well: false, found: found.into(), advice: Some(advice) }
    }
}

/// Round trips that are measured.
const TRIPS: usize = 10;
/// How long the first bytes of a live read may take before something on the way holds them back.
const FIRST_BYTES_WAIT: Duration = Duration::from_secs(5);

impl Doctor {
    pub(super) fn run(mut self) -> Result<(), Failure> {
        if let Some(address) = self.address.take() {
            self.remote.url = address;
        }
        let rt = Rt::real();
        let mut findings = Vec::new();
        match self.api()? {
            Some(api) => {
                findings.push(reach(&api));
                if findings[0].well {
                    findings.extend([
                        readiness(&api),
                        round_trip(&rt, &api),
                        credentials(&api),
                        live(&rt, &api),
                    ]);
                }
            }
            None => findings.push(Finding::good("reach", "not tried: only pipes go through a SOCKS proxy")),
        }
        if findings[0].well {
            let (passage, transport) = pipes::passage(&rt, &self.remote, &self.route)?;
            findings.push(passage);
            let mut grace = Grace::Default;
            if let (Some(transport), Some(target)) = (transport, &self.pipe) {
                let wait = Duration::from_secs(self.idle);
                let dialer = self.route.dialer(&self.remote, transport)?;
                let (finding, told) = pipes::idle(&rt, dialer, target, wait)?;
                findings.push(finding);
                grace = told;
            }
            findings.push(pipes::ssh(self.ssh.as_deref(), grace));
        }
        let ill = findings.iter().filter(|finding| !finding.well).count();
        if self.json {
            let told: Vec<Value> = findings
                .iter()
                .map(|f| json!({ "what": f.what, "well": f.well, "found": f.found, "advice": f.advice }))
                .collect();
            say(Value::from(told).to_string())?;
        } else {
            for finding in &findings {
                let mark = if finding.well { "ok  " } else { "BAD " };
                say(format!("{mark} {:<12} {}", finding.what, finding.found))?;
                if let Some(advice) = finding.advice {
                    say(format!("     {:<12} {advice}", ""))?;
                }
            }
        }
        match ill {
            0 => Ok(()),
            _ => Err(Failure::new(
                Exit::Failed,
                "not_well",
                format!("{ill} of {} things are wrong", findings.len()),
            )),
        }
    }
}

impl Doctor {
    /// A client for the daemon, by the way that its pipes go, if requests can go there.
    fn api(&self) -> Result<Option<Api>, Failure> {
        let proxy = match self.route.proxy(&self.remote.url)? {
            None => None,
            Some(Proxy::Socks5 { .. }) => return Ok(None),
            Some(Proxy::Http { host, port, login }) => {
                let mut proxy = ureq::Proxy::builder(ureq::ProxyProtocol::Http).host(&host).port(port);
                if let Some(login) = &login {
                    let (user, password) = login.split_once(':').unwrap_or((login, ""));
                    proxy = proxy.username(user).password(password);
                }
                let bad = |error: ureq::Error| Failure::new(Exit::Usage, "bad_proxy", error.to_string());
                Some(proxy.build().map_err(bad)?)
            }
        };
        let trusted = self.route.ca.as_deref();
        Ok(Some(Api::by_way(&self.remote.url, self.remote.token()?, trusted, proxy)?))
    }
}

fn reach(api: &Api) -> Finding {
    match api.get("/healthz") {
        Ok(answer) if answer["healthy"] == true => Finding::good("reach", format!("{} answers", api.base())),
        Ok(answer) => Finding::bad(
            "reach",
            format!("it is not well: {}", answer["reasons"]),
            "restart it; its log says why",
        ),
        Err(error @ ApiError::Unreachable { .. }) => Finding::bad(
            "reach",
            error.to_string(),
            "is the daemon running, is the address right, does a firewall lie between?",
        ),
        Err(error) => {
            Finding::bad("reach", error.to_string(), "does another program answer at this address?")
        }
    }
}

fn readiness(api: &Api) -> Finding {
    match api.get("/readyz") {
        Ok(_) => Finding::good("readiness", "takes work"),
        // What is for the inside, a proxy keeps there.
        Err(ApiError::Problem { status: 403 | 404, .. }) => {
            Finding::good("readiness", "not shown to the outside")
        }
        Err(error) => Finding::bad("readiness", error.to_string(), "`curl …/readyz` lists the reasons"),
    }
}

fn round_trip(rt: &Rt, api: &Api) -> Finding {
    let mut trips = Vec::with_capacity(TRIPS);
    for _ in 0..TRIPS {
        let began = rt.now();
        if let Err(error) = api.get("/healthz") {
            return Finding::bad("round trip", error.to_string(), "the connection does not stay up");
        }
        trips.push(rt.now().since(began));
    }
    trips.sort_unstable();
    let millis = |trip: Duration| format!("{:.2} ms", trip.as_secs_f64() * 1e3);
    Finding::good(
        "round trip",
        format!("median {}, worst {}", millis(trips[TRIPS / 2]), millis(trips[TRIPS - 1])),
    )
}

fn credentials(api: &Api) -> Finding {
    match api.get("/v1/whoami") {
        Ok(me) => {
            let roles: Vec<_> =
                me["roles"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let name = me["name"].as_str().unwrap_or("somebody");
            let scoped = if me["streams"].is_null() { "" } else { ", for some streams" };
            Finding::good("credentials", format!("{name}: {}{scoped}", roles.join(", ")))
        }
        Err(ApiError::Problem { status: 401, .. }) => {
            Finding::bad("credentials", "they are needed", "give a token: --token-file FILE or TOWPATH_TOKEN")
        }
        Err(error) => Finding::bad("credentials", error.to_string(), "the token may be for another daemon"),
    }
}

/// Follows the first stream there is: what is looked at is whether bytes come through at once.
fn live(rt: &Rt, api: &Api) -> Finding {
    let listed = api.get("/v1/streams?limit=1").unwrap_or_default();
    let Some(stream) = listed["streams"][0]["id"].as_str() else {
        return Finding::good("live reads", "not tried: these credentials see no stream to follow");
    };
    let began = rt.now();
    let path = format!("/v1/streams/{stream}/events");
    let mut answer = match api.send("GET", &path, &[("accept", "text/event-stream")], None) {
        // At the tail of a closed stream there is nothing to wait for.
        Ok(answer) if answer.status == 204 => {
            return Finding::good("live reads", "answered; the first stream is closed");
        }
        Ok(answer) => answer.into_reader(),
        Err(ApiError::Problem { status: 401 | 403 | 404, .. }) => {
            return Finding::good("live reads", "not tried: these credentials see no stream to follow");
        }
        Err(error) => {
            return Finding::bad("live reads", error.to_string(), "follows need HTTP/1.1 all the way");
        }
    };
    let read = answer.read(&mut [0; 256]);
    let took = rt.now().since(began);
    match read {
        Ok(n) if n > 0 && took < FIRST_BYTES_WAIT => {
            Finding::good("live reads", format!("first bytes after {:.1} ms", took.as_secs_f64() * 1e3))
        }
        _ => Finding::bad(
            "live reads",
            format!("no bytes for {:.1} s", took.as_secs_f64()),
            "a proxy holds answers back: turn buffering off (examples/deploy)",
        ),
    }
}
