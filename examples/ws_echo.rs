//! Says back what it hears over a WebSocket: the smallest program on the I/O threads, in both roles.
//!
//! `cargo run --example ws_echo -- serve 127.0.0.1:9001` answers whoever comes. `… -- cases
//! ws://127.0.0.1:9002` dials Autobahn's fuzzing server and plays each of its cases against our client
//! (`make autobahn` runs both). Without arguments it speaks with itself and prints what came back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use towpath::front::{Route, Router};
use towpath::rt::Rt;
use towpath::wire::{
    Dial, Frame, Happened, IoThreads, Limits, LinkHandle, Listener, Outlet, Owner, Running, Speak, Target,
};

/// The largest case has 16 MiB.
const MESSAGE_MAX: u32 = 64 << 20;
/// A case that takes longer has hung.
const PATIENCE: Duration = Duration::from_secs(120);

/// Says back what was heard. Not counted against the link's bound: the peer reads what it sent.
fn echo(link: &LinkHandle, what: Happened) {
    match what {
        Happened::Text(text) => link.send_paced(Frame::text(&text)),
        Happened::Binary(bytes) => link.send_paced(Frame::binary(&bytes)),
        _ => {}
    }
}

fn serve(rt: &Rt, address: &str) -> towpath::Result<Running> {
    let mut router = Router::new();
    router.add(Route::get("/").open().to(|_, reply| {
        let opened = Arc::new(OnceLock::<LinkHandle>::new());
        let mine = opened.clone();
        let outlet = Outlet::new(move |batch| {
            if let Some(link) = mine.get() {
                batch.into_iter().for_each(|event| echo(link, event.what));
            }
            Ok(())
        });
        // Set before anything can be heard: this runs on the link's own thread.
        if let Some(link) = reply.websocket(&[], MESSAGE_MAX, Owner::new(&outlet, 0)) {
            opened.set(link).expect("a reply opens one link");
        }
    }));
    // A peer that pauses inside a case is a case.
    let limits = Limits { write_wait: PATIENCE, ..Limits::default() };
    IoThreads::new(rt, 2, None)?.start(limits, vec![Listener::bind(address)?], Arc::new(router))
}

/// A client that dials, hears, and says back.
struct Client {
    rt: Rt,
    running: Running,
}

impl Client {
    fn start(rt: &Rt) -> towpath::Result<Client> {
        let io = IoThreads::new(rt, 1, None)?;
        let running = io.start(Limits::default(), vec![], Arc::new(Router::new()))?;
        Ok(Client { rt: rt.clone(), running })
    }

    /// Dials, and hands the link (without a message) and then every message on it to `hear`, on the link's own
    /// thread, until it is closed.
    fn play(
        &self,
        url: &str,
        hear: impl FnMut(&LinkHandle, Option<Happened>) + Send + 'static,
    ) -> Result<(), String> {
        let (tell, told) = self.rt.channel("over", 1);
        let state = Mutex::new((hear, None::<LinkHandle>));
        let outlet = Outlet::new(move |batch| {
            let (hear, link) = &mut *state.lock().expect("one thread calls this");
            for event in batch {
                let over = match (event.what, &*link) {
                    (Happened::Closed(_), _) => Ok(()),
                    (Happened::Refused(why), _) => Err(why.to_string()),
                    (Happened::Opened(opened, _), _) => {
                        hear(&opened, None);
                        *link = Some(opened);
                        continue;
                    }
                    (what, Some(link)) => {
                        hear(link, Some(what));
                        continue;
                    }
                    (_, None) => continue,
                };
                // It is over once.
                drop(tell.try_send(over));
            }
            Ok(())
        });
        let target = Target::parse(url).map_err(|error| format!("{url}: {error}"))?;
        let speak = Speak::WebSocket { protocols: vec![], message_max: MESSAGE_MAX };
        let (cancel, deadline) = (self.rt.cancel_token(), self.rt.now() + PATIENCE);
        let owner = Owner::new(&outlet, 0);
        self.running.wire().dial(Dial { target, speak, headers: vec![], deadline, cancel, owner });
        let over = told.recv_deadline(self.rt.now() + PATIENCE);
        over.map_err(|_| format!("{url}: it has not ended after {PATIENCE:?}"))?
            .map_err(|why| format!("{url}: {why}"))
    }
}

/// Plays every case of Autobahn's fuzzing server and has it write its report.
fn cases(rt: &Rt, server: &str) -> Result<(), String> {
    let client = Client::start(rt).map_err(|error| error.to_string())?;
    let told = Arc::new(AtomicU64::new(0));
    let count = told.clone();
    client.play(&format!("{server}/getCaseCount"), move |_, what| {
        if let Some(Happened::Text(text)) = what {
            count.store(text.parse().unwrap_or(0), Ordering::Release);
        }
    })?;
    let count = told.load(Ordering::Acquire);
    for case in 1..=count {
        client.play(&format!("{server}/runCase?case={case}&agent=towpath"), |link, what| {
            if let Some(what) = what {
                echo(link, what);
            }
        })?;
    }
    client.play(&format!("{server}/updateReports?agent=towpath"), |_, _| {})?;
    println!("played {count} cases");
    if count == 0 { Err("the fuzzing server has no cases".into()) } else { Ok(()) }
}

fn itself(rt: &Rt) -> Result<(), String> {
    let running = serve(rt, "127.0.0.1:0").map_err(|error| error.to_string())?;
    let url = format!("ws://{}/", running.addresses()[0]);
    let client = Client::start(rt).map_err(|error| error.to_string())?;
    client.play(&url, |link, what| match what {
        None => link.send(Frame::text("hello")),
        Some(Happened::Text(text)) => {
            println!("it said: {text}");
            link.close(1000, "done");
        }
        Some(_) => {}
    })
}

fn main() -> Result<(), String> {
    let rt = Rt::real();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", address] => {
            let running = serve(&rt, address).map_err(|error| error.to_string())?;
            println!("listening on ws://{}/", running.addresses()[0]);
            // Until whoever started it has ended its side.
            std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).map_err(|error| error.to_string())?;
            Ok(())
        }
        ["cases", server] => cases(&rt, server),
        [] => itself(&rt),
        _ => Err("usage: ws_echo [serve ADDRESS | cases URL]".into()),
    }
}
