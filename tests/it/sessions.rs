//! River sessions: the recorded exchanges of the reference played against our server, on simulated clocks, and
//! our client, and what the reference's own tests check, on real threads over links in memory that can be cut.
//!
//! What the reference's own tests check, and which test here checks it (`m` is `src/state/session/tests.rs`, `p`
//! `src/state/procedure/tests.rs`, `h` `src/state/handshake.rs`, `sim` `tests/it/sim_sessions`; others stand below):
//!
//! | behaviour | test |
//! |---|---|
//! | constructing never connects | m `constructing_a_client_never_dials` |
//! | each transition; buffer, seq and ack kept | m `a_lost_link_is_dialed_again_…`, `the_handshake_says_where_the_client_stands`, `a_server_keeps_a_session_without_a_link_for_its_grace` |
//! | the grace is consumed through every state | m `the_grace_is_carried_through_every_state_without_a_link` |
//! | a late dial is closed after a close | m `a_dial_that_takes_too_long_is_given_up_and_closed_when_it_comes_through` |
//! | heartbeats, active and passive | m `the_server_beats_and_the_client_answers`; `a_server_beats_and_a_client_answers_so_that_an_idle_session_lives` |
//! | a watchdog closes a silent peer; inbound keeps it | m `a_silent_peer_is_given_up_…`, `whatever_comes_in_keeps_a_link_alive`; `a_link_that_carries_nothing_is_given_up_…` |
//! | acknowledgements are not dispatched | m `the_server_beats_and_the_client_answers` |
//! | a spoofed `from` is rejected | m `what_is_no_message_or_from_somebody_else_ends_the_session`; `each_kind_of_bad_message_does_what_it_should_and_no_more` |
//! | waiters for room survive transitions | m `writers_are_told_when_they_may_go_on`; `a_slow_reader_holds_its_writer_back_and_nothing_is_lost` |
//! | a clean drop is dialed again, consecutive connects share a dial | m `consecutive_connects_use_the_one_dial`; `a_cut_in_the_middle_is_not_noticed_by_any_call` |
//! | buffering while there is no link | `what_is_called_while_there_is_no_link_is_answered_when_there_is_one` |
//! | no dial after the session is gone, a call dials again | m `after_the_grace_nothing_dials_until_there_is_something_to_say`; `a_grace_that_ends_fails_calls_and_the_next_call_begins_anew` |
//! | many clients | `a_hundred_clients_each_have_their_own_session` |
//! | manual reconnect | m `a_client_told_not_to_reconnect_waits_to_be_asked` |
//! | a grace of zero | m `with_no_grace_a_lost_link_ends_the_session`; `with_no_grace_every_drop_is_a_new_session` |
//! | handshake timeouts | m `a_handshake_that_takes_too_long_…`; `a_link_that_says_nothing_is_closed_after_its_handshakes_time` |
//! | a hard disconnect | m `a_hard_disconnect_ends_the_session_at_once`; `a_client_that_leaves_ends_its_calls_at_the_server_at_once` |
//! | the grace ends in a long loop of retries | m `a_spent_budget_is_told_once_and_dialing_goes_on_until_the_grace_ends` |
//! | nothing is sent again after a client lost its state, or to another server | sim `sim_session_machines_…`; `a_client_of_a_server_that_was_restarted_starts_anew_at_once` |
//! | a phantom disconnect | `a_link_taken_over_is_closed_and_its_session_goes_on` |
//! | metadata stored, constructor throws, previous passed, schema, reject | `handlers_learn_what_the_admission_made_of_the_handshake`, `metadata_that_cannot_be_made_…`, `a_client_that_is_not_let_in_…`, `a_client_without_metadata_is_told_that_it_is_malformed` |
//! | disconnects of each kind of call, either side | `a_session_that_ends_at_the_server_fails_every_call_at_the_client`, `a_handler_of_a_client_that_is_gone_…`, `a_client_that_is_dropped_leaves_nothing_at_the_server` |
//! | each kind of call, empty, errors, bytes, order over cuts, many at once | `calls.rs`; `our_server_answers_every_recorded_exchange_as_the_reference_does`, `our_client_says_what_the_reference_says_…` |
//! | what is no object is carried as it is | `bytes_arrive_as_bytes_and_what_is_no_object_arrives_as_it_is` |
//! | re-handshake family | m `a_client_is_asked_for_fresh_metadata_and_answers`, `fresh_metadata_that_is_late_malformed_or_refused_…`, `a_refresh_nobody_asked_for_is_consumed`; `metadata_that_expires_is_refreshed_…`, `a_client_that_cannot_refresh_loses_its_session` |
//! | cleanup: nothing is left on either side | `Stage::settles` after every call; `a_server_that_is_dropped_ends_everything_and_joins_its_threads` |
//! | the abort signal at the end | `a_handlers_token_fires_when_its_call_is_over` |
//! | cancellation, both sides, four kinds, invalid payloads, twice | p `a_client_that_cancels_…`, `a_handler_that_cancels_or_fails_…`, `a_cancellation_that_makes_no_sense_…`, `a_server_that_cancels_ends_both_sides`; `a_client_that_cancels_stops_the_handler_and_gets_its_own_error`, `a_handler_that_cancels_or_fails_ends_the_call_both_ways` |
//! | each cause of `INVALID_REQUEST`; tombstones | p `every_invalid_request_says_what_is_wrong_with_it`, `a_message_after_the_request_side_closed_is_invalid`, `tombstones_evict_the_oldest_and_are_their_sessions`; `what_does_not_fit_the_schema_is_an_invalid_request` |
//! | bad handshakes, versions, future numbers, fatal refusals | h; m `a_fatal_refusal_is_told_and_not_dialed_again`, `a_message_from_the_future_closes_the_link_…`; `a_handshake_that_is_wrong_is_told_why_and_closed` |
//! | waits between dials | m `waits_double_up_to_their_limit_and_jitter_comes_on_top`, `a_link_that_lived_earns_its_dials_back` |
//! | a session that holds too much ends | m `a_session_that_holds_more_than_it_may_ends_with_that_reason`; `what_all_sessions_hold_together_is_bounded_and_whoever_goes_over_pays` |
//! | bad input: undecodable, text, too large, wrong envelope, past and future, wrong `to`, depth, `{"$t":"***"}` | `each_kind_of_bad_message_…`, `a_text_frame_closes_a_link_…`, `what_comes_twice_or_is_for_somebody_else_changes_nothing`, `a_hostile_payload_fails_its_call_and_not_its_session` |
//! | schemas | `schemas_are_served_for_tools_and_for_typescript` |
//! | v1.1 | p `a_v1_1_client_…`; `a_v1_1_client_is_served_in_its_own_way`, `interop_the_reference_client_of_v1_1_…` |
//!
//! Not here, because towpath has no such thing: dispose hooks, middleware, the protobuf router.

mod calls;
pub(crate) mod daemon;
mod disconnects;
mod interop;
mod links;
mod mirror;
mod replay;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use towpath::client::session::{Caller, Client, DialWith, Dialer, Options};
use towpath::engine::sessions::Settings;
use towpath::rt::{Lock, Moment, Receiver, Rt};
use towpath::service::server::{Builder, Memory, Server};
use towpath::service::{Service, Services, reference};
use towpath::state::session::Timing;
use towpath::wire::bearer::Line;

/// How long something that must happen may take before a test says that it does not.
const PATIENCE: Duration = Duration::from_secs(10);

fn patience(rt: &Rt) -> Moment {
    rt.now() + PATIENCE
}

/// What comes out of a channel in time.
#[track_caller]
fn next<T>(rt: &Rt, from: &Receiver<T>) -> T {
    from.recv_deadline(patience(rt)).unwrap_or_else(|_| panic!("nothing came in {PATIENCE:?}"))
}

/// Waits until something holds that nothing rings for.
#[track_caller]
fn until(rt: &Rt, what: &str, holds: impl Fn() -> bool) {
    let deadline = patience(rt);
    while !holds() {
        assert!(rt.now() < deadline, "{what}: not in {PATIENCE:?}");
        std::thread::yield_now();
    }
}

/// A time no test waits for.
const LONG: Duration = Duration::from_secs(100);

/// Heartbeats that come when nobody waits for them; graces, handshakes and dials that do not end by themselves,
/// however late a busy machine gets to them.
fn quiet() -> Timing {
    Timing { heartbeat: LONG, grace: LONG, handshake: LONG, connect: LONG, ..Timing::default() }
}

/// A server and clients of it over lines in memory.
struct Stage {
    rt: Rt,
    server: Server,
    timing: Timing,
}

impl Stage {
    fn new() -> Stage {
        Stage::with(quiet(), Service::new("extra"))
    }

    fn with(timing: Timing, extra: Service) -> Stage {
        Stage::built(timing, extra, |builder| builder)
    }

    fn built(timing: Timing, extra: Service, build: impl FnOnce(Builder) -> Builder) -> Stage {
        Stage::on(Rt::real(), timing, extra, build)
    }

    fn on(rt: Rt, timing: Timing, extra: Service, build: impl FnOnce(Builder) -> Builder) -> Stage {
        let services = Services::new().with(reference::interop()).with(extra);
        let settings = Settings { timing, ..Settings::default() };
        let server = build(Server::builder(&rt, services).settings(settings)).start().expect("threads");
        Stage { rt, server, timing }
    }

    fn client(&self) -> Remote {
        self.client_with("client", Options::default())
    }

    fn client_with(&self, id: &str, options: Options) -> Remote {
        Remote::new(&self.rt, id, self.server.memory_dialer(), Options { timing: self.timing, ..options })
    }

    /// Waits until the server has no call open.
    #[track_caller]
    fn settles(&self, remote: &Remote) {
        let client = &remote.client;
        until(&self.rt, "no call is left open at the client", || client.open_calls() == 0);
        until(&self.rt, "no call is left open at the server", || open_streams(client) == 0);
    }
}

fn open_streams(client: &Client) -> u64 {
    let stats: towpath::state::value::Value =
        client.rpc("interop", "stats", &serde_json::json!({})).expect("stats answers");
    stats.get("openStreams").and_then(towpath::state::value::Value::as_u64).expect("a number")
}

/// A client whose links a test holds.
struct Remote {
    client: Client,
    lines: Arc<Lock<Vec<Line>>>,
    /// Dials that were asked for; one that was given up may still be under way.
    dials: Arc<AtomicUsize>,
    /// Dials fail while this is set.
    unreachable: Arc<std::sync::atomic::AtomicBool>,
}

impl Remote {
    fn new(rt: &Rt, id: &str, memory: Memory, options: Options) -> Remote {
        let (lines, dials) = (Arc::new(Lock::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
        let unreachable = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (kept, refused) = (lines.clone(), unreachable.clone());
        let dialer = DialWith::new(rt, move |ear| {
            if refused.load(Ordering::Acquire) {
                return Err(towpath::Error::new(towpath::Code::Io, "the network is away"));
            }
            let (bearer, line) = memory.dial(ear)?;
            kept.lock().push(line);
            Ok(bearer)
        });
        let dialer = Arc::new(Counting { dialer, dials: dials.clone() });
        let client = Client::start(rt, id, "SERVER", dialer, options).expect("threads");
        Remote { client, lines, dials, unreachable }
    }

    fn cut(&self) {
        for line in self.lines.lock().drain(..) {
            line.cut();
        }
    }

    fn dials(&self) -> usize {
        self.dials.load(Ordering::Acquire)
    }
}

/// Counts dials where the client decides to make one: their threads may run much later.
struct Counting<D> {
    dialer: D,
    dials: Arc<AtomicUsize>,
}

impl<D: Dialer> Dialer for Counting<D> {
    fn dial(&self, dial: u64, deadline: Moment, caller: &Caller) {
        self.dials.fetch_add(1, Ordering::AcqRel);
        self.dialer.dial(dial, deadline, caller);
    }
}
