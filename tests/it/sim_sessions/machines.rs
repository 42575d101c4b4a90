//! The two machines of a session over links that do what they like, without anything else between them.
//!
//! A link carries what was written to it in order, up to where it broke, as TCP does; each end learns that it
//! broke when it will, or never. A server says nothing before it has heard something on the session: it answers
//! streams, and clients open those. On that, and on the numbers in the handshake, rests that a server which lost
//! its sessions never passes for the one that had them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use towpath::codec::{Bounds, Codec};
use towpath::rt::Rand;
use towpath::state::envelope::{Envelope, Flags, Message, Outgoing};
use towpath::state::handshake::{Decision, Request, Response, SecondClient, decide};
use towpath::state::seq::SendBounds;
use towpath::state::session::client::{self, Retry};
use towpath::state::session::{Action, Event, Options, Timing, server};
use towpath::state::time::Moment;
use towpath::state::value::Value;
use towpath::testing::{Sweep, Test};

type Found = Result<(), String>;

const CODEC: Codec = Codec::Binary;

/// What one side said and the other heard, in one session.
#[derive(Default)]
struct Talk {
    said: [Vec<i64>; 2],
    heard: [Vec<i64>; 2],
}

/// A link: frames on their way, and whether each end knows that it is gone. A half-open link is one of which
/// only one end knows.
#[derive(Default)]
struct Link {
    up: VecDeque<Bytes>,
    down: VecDeque<Bytes>,
    /// What is written from now on goes nowhere.
    broken: bool,
    client_gone: bool,
    server_gone: bool,
    /// The server waits for its handshake.
    waiting: bool,
}

/// The two machines and everything between them, driven by draws.
struct World {
    now: u64,
    draw: Rand,
    client: client::Client,
    server: Option<server::Session>,
    links: BTreeMap<u64, Link>,
    dials: Vec<u64>,
    options: Options,
    next: i64,
    talks: BTreeMap<String, Talk>,
    session: Option<String>,
    /// By session, life of the server, and number.
    acks: [BTreeSet<(String, u64, u64)>; 2],
    /// Either side may be restarted.
    restarts: bool,
    /// How many clients there have been; the number of a link is that of its dial and, above it, of its client.
    lives: u64,
    /// How many sessions the server has begun.
    begun: u64,
}

const CLIENT: usize = 0;
const SERVER: usize = 1;
/// No client dials as often.
const LIFE: u64 = 1_000_000;

impl World {
    fn new(draw: Rand) -> World {
        let timing = Timing { grace: Duration::from_secs(1_000_000), ..Timing::default() };
        let options = Options { timing, bounds: SendBounds::default(), encode: CODEC.encoder() };
        World {
            now: 0,
            draw,
            client: client::Client::new("client", "server", options, Retry::default()),
            server: None,
            links: BTreeMap::new(),
            dials: Vec::new(),
            options,
            next: 0,
            talks: BTreeMap::new(),
            session: None,
            acks: Default::default(),
            restarts: false,
            lives: 0,
            begun: 0,
        }
    }

    /// The number of a link, from that of the client's dial.
    fn number(&self, dial: u64) -> u64 {
        self.lives * LIFE + dial
    }

    /// The number the client knows it by, if it is this client's.
    fn dial_of(&self, link: u64) -> Option<u64> {
        (link / LIFE == self.lives).then_some(link % LIFE)
    }

    fn moment(&self) -> Moment {
        Moment::from_millis(self.now)
    }

    fn read(frame: &Bytes) -> Envelope {
        CODEC.decode(frame, Bounds::default()).expect("a machine writes good frames")
    }

    fn said(envelope: &Envelope) -> Result<i64, String> {
        let number = envelope.payload.as_ref().ok().and_then(Value::as_i64);
        number.ok_or_else(|| format!("{envelope:?} was said by nobody"))
    }

    fn client(&mut self, input: client::Input) -> Found {
        let mut sink = Vec::new();
        let draw = self.draw.next_u64();
        self.client.step(self.moment(), draw, input, &mut sink);
        for action in sink {
            match action {
                Action::Dial { dial } => self.dials.push(self.number(dial)),
                Action::AskMetadata { link } => {
                    self.client(client::Input::Metadata { link, metadata: Ok(None) })?
                }
                Action::Write { link, frame } => {
                    self.note_ack(CLIENT, &frame);
                    let number = self.number(link);
                    if let Some(link) = self.links.get_mut(&number).filter(|link| !link.broken) {
                        link.up.push_back(frame);
                    }
                }
                Action::Close { link, .. } => {
                    let number = self.number(link);
                    if let Some(link) = self.links.get_mut(&number) {
                        link.client_gone = true;
                    }
                }
                Action::Deliver(envelope) => self.heard(CLIENT, &envelope)?,
                Action::Began { session } => {
                    self.session = Some(session.clone());
                    self.talks.insert(session, Talk::default());
                }
                Action::Ended { cause, .. } if !self.restarts => {
                    return Err(format!("the client's session ended: {cause}"));
                }
                Action::Tell(Event::Duplicate) => {
                    return Err("the client got what it had said it has".into());
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn server(&mut self, input: server::Input) -> Found {
        let Some(session) = &mut self.server else { return Ok(()) };
        let mut sink = Vec::new();
        session.step(Moment::from_millis(self.now), input, &mut sink);
        for action in sink {
            match action {
                Action::Write { link, frame } => {
                    self.note_ack(SERVER, &frame);
                    if let Some(link) = self.links.get_mut(&link).filter(|link| !link.broken) {
                        link.down.push_back(frame);
                    }
                }
                Action::Close { link, .. } => {
                    if let Some(link) = self.links.get_mut(&link) {
                        link.server_gone = true;
                    }
                }
                Action::Deliver(envelope) => self.heard(SERVER, &envelope)?,
                Action::Ended { cause, .. } if !self.restarts => {
                    return Err(format!("the server's session ended: {cause}"));
                }
                _ => {}
            }
        }
        if self.server.as_ref().is_some_and(server::Session::is_ended) {
            self.server = None;
        }
        Ok(())
    }

    /// A client answers acknowledgements and says none by itself, as long as there is little to acknowledge.
    fn note_ack(&mut self, side: usize, frame: &Bytes) {
        let envelope = World::read(frame);
        if envelope.flags.has(Flags::ACK) {
            let session = self.session.clone().unwrap_or_default();
            self.acks[side].insert((session, self.begun, envelope.seq));
        }
    }

    fn heard(&mut self, side: usize, envelope: &Envelope) -> Found {
        let session = match side {
            CLIENT => self.session.clone().unwrap_or_default(),
            _ => self.server.as_ref().map(|server| server.id().to_owned()).unwrap_or_default(),
        };
        let talk = self.talks.entry(session).or_default();
        talk.heard[side].push(World::said(envelope)?);
        let (heard, said) = (&talk.heard[side], &talk.said[1 - side]);
        if said.starts_with(heard) { Ok(()) } else { Err(format!("{heard:?} is not how {said:?} begins")) }
    }

    fn say(&mut self, side: usize) -> Found {
        self.next += 1;
        let message = Message::new("s", Flags::NONE, Value::Int(self.next));
        match side {
            CLIENT => {
                self.client(client::Input::Connect)?;
                let session = self.session.clone().unwrap_or_default();
                self.talks.entry(session).or_default().said[CLIENT].push(self.next);
                self.client(client::Input::Say(message))
            }
            _ => {
                let Some(server) = &self.server else { return Ok(()) };
                if server.known().received == 0 {
                    return Ok(());
                }
                let session = server.id().to_owned();
                self.talks.entry(session).or_default().said[SERVER].push(self.next);
                self.server(server::Input::Say(message))
            }
        }
    }

    /// A dial comes through, or fails; not always the newest.
    fn dialed(&mut self) -> Found {
        if self.dials.is_empty() {
            return Ok(());
        }
        let at = self.draw.below(self.dials.len() as u64) as usize;
        let dial = self.dials.remove(at);
        match (self.draw.below(5), self.dial_of(dial)) {
            (4, Some(dial)) => self.client(client::Input::DialFailed { dial }),
            _ => self.connect(dial),
        }
    }

    fn connect(&mut self, link: u64) -> Found {
        // What a client dialed that is gone comes to nothing.
        let Some(dial) = self.dial_of(link) else { return Ok(()) };
        self.links.insert(link, Link { waiting: true, ..Link::default() });
        self.client(client::Input::Dialed { dial })
    }

    /// Some link, not always the newest.
    fn some_link(&mut self) -> Option<u64> {
        let newest = *self.links.keys().next_back()?;
        if self.draw.below(4) > 0 {
            return Some(newest);
        }
        let at = self.draw.below(self.links.len() as u64) as usize;
        self.links.keys().copied().nth(at)
    }

    fn up(&mut self, number: u64) -> Found {
        let Some(link) = self.links.get_mut(&number) else { return Ok(()) };
        let Some(frame) = link.up.pop_front() else {
            // The end of what was said is the end of the link, once the client has gone.
            if link.client_gone && !link.server_gone {
                link.server_gone = true;
                return self.server(server::Input::Detached { link: number, goodbye: false });
            }
            return Ok(());
        };
        // A server that has gone, or closed it, reads no more.
        if link.server_gone {
            return Ok(());
        }
        let envelope = World::read(&frame);
        // Nobody waits for the answer any more: a handshake that was long on its way.
        let stale = link.client_gone;
        if !std::mem::take(&mut link.waiting) {
            return self.server(server::Input::Frame { link: number, envelope: Ok(envelope) });
        }
        let request = Request::read(&envelope).map_err(|refusal| refusal.to_string())?;
        let known = self.server.as_ref().map(server::Session::known);
        match decide(&request, known, SecondClient::TakesOver, true) {
            Decision::Resume => {}
            Decision::Begin => {
                // A server that was restarted may be asked for a session on which nothing had arrived: it begins
                // again, and what was said on it before, and heard here, is as lost as the server.
                self.begun += 1;
                let talk = self.talks.entry(request.session.clone()).or_default();
                talk.said[SERVER].clear();
                talk.heard[SERVER].clear();
                let draw = self.draw.next_u64();
                let mut sink = Vec::new();
                self.server =
                    Some(server::Session::begin("server", "client", &request, draw, self.options, &mut sink));
            }
            Decision::Refuse(refusal) if self.restarts || stale => {
                let message = Response::Refused(refusal).message("r".into());
                let (id, from, to) = ("r", "server", "client");
                let outgoing = Outgoing { id, from, to, seq: 0, ack: 0, message: &message };
                if let Some(link) = self.links.get_mut(&number) {
                    if !link.broken {
                        link.down.push_back(CODEC.encode(outgoing));
                    }
                    link.server_gone = true;
                }
                return Ok(());
            }
            Decision::Refuse(refusal) => {
                return Err(format!("a client that lost nothing was refused: {refusal}"));
            }
        }
        let peer_has = request.peer_has();
        self.server(server::Input::Attached { link: number, peer_has, refresh_at: None })
    }

    fn down(&mut self, number: u64) -> Found {
        let Some(link) = self.links.get_mut(&number) else { return Ok(()) };
        let frame = link.down.pop_front();
        let told = link.client_gone;
        link.client_gone |= frame.is_none() && link.server_gone;
        let gone = link.client_gone;
        // What comes after a client was restarted is for nobody.
        let Some(dial) = self.dial_of(number) else { return Ok(()) };
        match frame {
            Some(frame) => {
                let envelope = Ok(World::read(&frame));
                self.client(client::Input::Frame { link: dial, envelope })
            }
            None if gone && !told => self.client(client::Input::Detached { link: dial }),
            None => Ok(()),
        }
    }

    /// A link breaks: what is on its way is lost, some of it or all, and each end learns of it when it will.
    fn cut(&mut self) -> Found {
        let Some(number) = self.some_link() else { return Ok(()) };
        let (keep_up, keep_down) = (self.draw.below(4) as usize, self.draw.below(4) as usize);
        let halves = self.draw.below(3);
        let link = self.links.get_mut(&number).expect("it was picked from them");
        link.up.truncate(keep_up);
        link.down.truncate(keep_down);
        link.broken = true;
        // In the third case neither end knows: a black hole, until a watchdog finds it.
        match halves {
            0 if !link.client_gone => {
                link.client_gone = true;
                match self.dial_of(number) {
                    Some(dial) => self.client(client::Input::Detached { link: dial }),
                    None => Ok(()),
                }
            }
            1 if !link.server_gone => {
                link.server_gone = true;
                self.server(server::Input::Detached { link: number, goodbye: false })
            }
            _ => Ok(()),
        }
    }

    /// The server is another, which knows of nothing; its system closes what links there were.
    fn restart_server(&mut self) {
        self.server = None;
        for link in self.links.values_mut() {
            link.server_gone = true;
            link.broken = true;
            link.up.clear();
        }
    }

    /// The client is another with the same id; what the one before had written may still arrive.
    fn restart_client(&mut self) {
        for link in self.links.values_mut() {
            link.client_gone = true;
            link.broken = true;
        }
        self.lives += 1;
        self.client = client::Client::new("client", "server", self.options, Retry::default());
        self.session = None;
    }

    fn alarms(&mut self) -> Found {
        self.client(client::Input::Alarm)?;
        self.server(server::Input::Alarm)
    }

    fn step(&mut self) -> Found {
        match self.draw.below(if self.restarts { 42 } else { 40 }) {
            0..8 => self.say(CLIENT),
            8..15 => self.say(SERVER),
            15..20 => self.dialed(),
            20..27 => self.some_link().map_or(Ok(()), |link| self.up(link)),
            27..34 => self.some_link().map_or(Ok(()), |link| self.down(link)),
            34..36 => self.cut(),
            36..40 => {
                self.now += self.draw.below(900);
                self.alarms()
            }
            40 => {
                self.restart_server();
                Ok(())
            }
            _ => {
                self.restart_client();
                Ok(())
            }
        }
    }

    fn check(&self) -> Found {
        let [ours, theirs] = [self.acks[CLIENT].len(), self.acks[SERVER].len()];
        // Whoever only listens says one of its own after 256 messages; these talks are shorter.
        if ours > theirs { Err(format!("{ours} acknowledgements to {theirs} questions")) } else { Ok(()) }
    }

    /// Everything is carried, until nothing is left to say again.
    fn heal(&mut self) -> Found {
        for _ in 0..160 {
            // More rounds than the longest wait between dials needs.
            self.now += 400;
            for dial in std::mem::take(&mut self.dials) {
                self.connect(dial)?;
            }
            let links: Vec<u64> = self.links.keys().copied().collect();
            for _ in 0..60 {
                for link in &links {
                    self.up(*link)?;
                    self.down(*link)?;
                }
            }
            self.alarms()?;
        }
        let Some(talk) = self.session.as_ref().and_then(|session| self.talks.get(session)) else {
            return Ok(());
        };
        for side in [CLIENT, SERVER] {
            let (heard, said) = (talk.heard[side].len(), talk.said[1 - side].len());
            if heard != said {
                return Err(format!("{heard} of {said} arrived at the {}", ["client", "server"][side]));
            }
        }
        Ok(())
    }
}

fn machines(test: &Test) -> Found {
    let mut draw = test.rt().rand("world");
    let restarts = draw.below(3) == 0;
    let mut world = World::new(draw);
    world.restarts = restarts;
    for _ in 0..250 {
        world.step()?;
        world.check()?;
    }
    world.heal()
}

#[test]
fn sim_session_machines_lose_double_and_reorder_nothing() {
    Sweep::new("sim_session_machines_lose_double_and_reorder_nothing", 1_000).run(machines).assert_ok();
}

#[test]
fn sim_bugs_planted_in_sessions_are_found() {
    for bug in [
        "session_seq_off_by_one",
        "session_ack_before_processing",
        "session_resend_without_trim",
        "session_stale_link_delivers",
        "session_client_heartbeats",
    ] {
        let swept = Sweep::new("sim_bugs_planted_in_sessions_are_found", 2_000)
            .exactly()
            .sim(move |sim| sim.plant(bug))
            .run(machines);
        assert!(swept.first_failure().is_some(), "{bug} passed {} seeds", swept.runs());
    }
}
