//! Settings: typed, parsed once, explained from one table.
//!
//! The table below is the only place a setting is named; the struct, the parser, the manual
//! (`docs/configuration.md`), `config init`, `config show` and the environment's names come from it.
//! What is closer to the hand wins: flags, then the environment (`TOWPATH_SECTION__KEY`), then the
//! file, then defaults. An unknown key is an error that names the nearest known one, and all errors are
//! reported at once. Zero is never "off": `"off"` is.

mod load;
mod value;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

pub use load::{ConfigError, Flag, Origin, Problem, Sources};
pub use value::{
    Durability, ListenAt, LogFormat, LogLevel, OrAuto, OrOff, Size, StoreAt, UrlOrAuto, WebAddress, WhenFull,
};
use value::{Raw, Setting};

/// Larger bodies and messages are for files, not for rows.
const MESSAGE_MAX: u64 = 256 << 20;

/// One setting as the manual shows it.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// `section.key`.
    pub name: &'static str,
    /// What can be written.
    pub kind: &'static str,
    /// The default, as text.
    pub default: &'static str,
    /// What it does, when one would change it, what it pulls along.
    pub doc: &'static str,
    /// Whether SIGHUP applies a change, or a restart is needed.
    pub live: bool,
}

/// Sections with what they are about, in the order of the manual.
#[derive(Clone, Copy, Debug)]
pub struct Section {
    /// Its name in brackets.
    pub name: &'static str,
    /// What it is about.
    pub doc: &'static str,
}

macro_rules! live {
    (live) => {
        true
    };
    (restart) => {
        false
    };
}

macro_rules! settings {
    ($(
        $(#[doc = $section_doc:literal])*
        $section:ident: $Section:ident {$(
            $(#[doc = $doc:literal])*
            $key:ident: $kind:ty = $default:literal, $live:ident;
        )*}
    )*) => {
        $(
            $(#[doc = $section_doc])*
            #[derive(Clone, Debug, PartialEq)]
            pub struct $Section {$(
                $(#[doc = $doc])*
                pub $key: $kind,
            )*}

            impl Default for $Section {
                fn default() -> $Section {
                    $Section {$(
                        $key: Setting::read(&Raw::Text($default.to_owned()))
                            .expect(concat!("the default of ", stringify!($section), ".", stringify!($key), " reads")),
                    )*}
                }
            }
        )*

        /// Everything that can be set.
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct Config {
            $($(#[doc = $section_doc])* pub $section: $Section,)*
            /// Where each setting that is not at its default came from.
            origins: BTreeMap<&'static str, Origin>,
        }

        /// Every section, in the order of the manual.
        pub const SECTIONS: &[Section] = &[
            $(Section { name: stringify!($section), doc: concat!($($section_doc, "\n",)*) },)*
        ];

        /// Every setting, in the order of the manual.
        pub const KEYS: &[Key] = &[$($(
            Key {
                name: concat!(stringify!($section), ".", stringify!($key)),
                kind: <$kind as Setting>::KIND,
                default: $default,
                doc: concat!($($doc, "\n",)*),
                live: live!($live),
            },
        )*)*];

        impl Config {
            /// Sets one setting; `None` if there is no such name.
            fn put(&mut self, name: &str, raw: &Raw) -> Option<Result<(), String>> {
                $($(
                    if name == concat!(stringify!($section), ".", stringify!($key)) {
                        return Some(Setting::read(raw).map(|value| self.$section.$key = value));
                    }
                )*)*
                None
            }

            /// Every setting with its value as TOML, secrets taken out.
            pub fn values(&self) -> Vec<(&'static str, String)> {
                vec![$($(
                    (concat!(stringify!($section), ".", stringify!($key)), self.$section.$key.write()),
                )*)*]
            }
        }
    };
}

settings! {
    /// Where the daemon is reached and how it stops.
    server: Server {
        /// Where to listen for everything but replicas. Anything but loopback needs `auth.token_file`
        /// (or `server.insecure`). Port 0 lets the system choose; the choice is printed.
        listen: ListenAt = "127.0.0.1:7700", restart;
        /// Where to listen besides, for the same: a Unix socket next to a port, a second address.
        listen_also: Vec<ListenAt> = "", restart;
        /// Let other daemons listen on the same port: the kernel spreads connections over them. For restarts
        /// that nobody notices, with PostgreSQL as the store.
        reuse_port: bool = "false", restart;
        /// How many threads carry connections. One for each core is right unless the machine does much else.
        io_threads: OrAuto = "auto", restart;
        /// Serve an address that strangers can reach although there is no authentication, and let the secrets
        /// of pipes cross a network in the clear. For closed networks and trials only.
        insecure: bool = "false", restart;
        /// Origins, besides the daemon's own, whose pages may use it from a browser, like
        /// `https://app.example.com`.
        allow_origins: Vec<String> = "", restart;
        /// How long connections are told to go elsewhere before a stop; each is closed at a random
        /// instant within it, so that they do not all come back at once. Part of `server.shutdown_total`.
        drain_window: Duration = "5s", live;
        /// The longest a stop may take, draining and the last writes included. Service managers should
        /// wait a little longer than this before they kill.
        shutdown_total: Duration = "10s", live;
    }

    /// Encryption of connections, both ways. A proxy in front does as well.
    tls: Tls {
        /// The certificate chain that is shown, as PEM. Read again on SIGHUP. With it, every TCP address speaks
        /// TLS and nothing else.
        certificate: OrOff<PathBuf> = "off", live;
        /// The private key of the certificate, as PEM. Read again on SIGHUP.
        key: OrOff<PathBuf> = "off", live;
        /// Whom to trust when the daemon itself dials, as PEM: a web hook, and other replicas unless
        /// `relay.authority` says it for them. Off: whom the system trusts.
        trust: OrOff<PathBuf> = "off", restart;
    }

    /// Where rows live.
    store: Store {
        /// The store. SQLite needs nothing and serves one machine; PostgreSQL serves many replicas.
        url: StoreAt = "sqlite", restart;
        /// The data directory: the SQLite file and the spool. Made if missing, readable by its owner only,
        /// used by one daemon at a time.
        data: PathBuf = "towpath-data", restart;
        /// Threads that read for followers catching up and for lists.
        readers: u64 = "2", restart;
        /// Threads that write what the doors take in.
        writers: u64 = "2", restart;
    }

    /// Streams and who runs them.
    streams: Streams {
        /// How long a replica may be silent before another may take its streams over. Shorter finds a dead
        /// worker sooner and takes a slow one for dead. At least twice `streams.renew_every`.
        lease: Duration = "30s", restart;
        /// How often a replica says that it still runs its streams, and looks for those whose worker is dead.
        renew_every: Duration = "10s", restart;
        /// How long a producer may send neither part nor keepalive before it is taken for gone.
        producer_silence: Duration = "60s", restart;
    }

    /// Several replicas on one PostgreSQL: what runs on one is followed live on the others.
    relay: Relay {
        /// Where other replicas fetch what streams that run here produce. An address that the other replicas
        /// reach and nobody else has to; only they can sign the tickets that open it. Port 0 lets the system
        /// choose. Off: turns that run here are seen elsewhere when they are committed, not part by part.
        listen: OrOff<ListenAt> = "off", restart;
        /// How other replicas reach `relay.listen`, like `http://10.0.0.7:7701` (or `https://…` where it, or
        /// something in front of it, speaks TLS). By itself it is the address that is listened on, with this
        /// machine's name where that is every address.
        url: UrlOrAuto = "auto", restart;
        /// The certificate chain this replica shows to the others, as PEM, whether it is called or calls: good
        /// for both uses, and for the host in `relay.url`. With it the listener speaks TLS and lets nobody in
        /// who shows no certificate of `relay.authority`.
        certificate: OrOff<PathBuf> = "off", restart;
        /// The private key of that certificate, as PEM.
        key: OrOff<PathBuf> = "off", restart;
        /// The authority that signed the certificates of all replicas, as PEM.
        authority: OrOff<PathBuf> = "off", restart;
    }

    /// What agents say of themselves.
    metadata: Metadata {
        /// With this many changed keys they are written at once.
        entries: u64 = "5000", restart;
        /// The oldest change waits no longer than this. A shorter time is fresher and costs more writes.
        interval: Duration = "5s", restart;
        /// Distinct keys that may wait; with more, new ones are refused.
        keys_max: u64 = "1000000", restart;
        /// Whether agents and keys are made when they are first reported. Otherwise only what was
        /// declared (`PUT /v1/agents/{id}/keys`) is kept, and the rest is ignored.
        register: bool = "true", restart;
        /// Values collected longer ago are thrown out, some at a time. `"off"` keeps them for ever.
        max_age: OrOff<Duration> = "off", restart;
        /// Keep the values out of PostgreSQL's write-ahead log: faster, and gone when the server crashes.
        unlogged: bool = "false", restart;
    }

    /// The connection log.
    connections: Connections {
        /// With this many records they are written at once.
        entries: u64 = "1000", restart;
        /// The oldest record waits no longer than this: what a killed process may lose of records that
        /// were taken without a receipt.
        interval: Duration = "5s", restart;
        /// Whether the daemon records its own links: followers, sessions, pipes and relays, when they
        /// begin, when they end, and why.
        own: bool = "true", restart;
        /// What the answer to a record means: `fast`, that it is in memory and written within
        /// `connections.interval`, or `spool-first`, that it is synced to the spool or stored. A caller
        /// asks for the second with `Prefer: durable` in either case.
        durability: Durability = "fast", restart;
        /// Connections that began longer ago are thrown out, the oldest first, some at a time. `"off"`
        /// keeps them for ever.
        max_age: OrOff<Duration> = "off", restart;
        /// A file that gets every row as a line of JSON, besides the database. A relative name lies in
        /// `store.data`. What it cannot keep up with is dropped for it alone, and counted.
        lines: OrOff<PathBuf> = "off", restart;
        /// At this size the file is renamed to `.1`, what was `.1` to `.2`, and so on.
        lines_max: Size = "64MiB", restart;
        /// How many renamed files stay.
        lines_keep: u64 = "5", restart;
        /// Whether every row is also a line of the daemon's own log.
        to_log: bool = "false", restart;
        /// An address that every batch of rows is posted to as NDJSON, besides the database. It is tried
        /// twice. What it cannot keep up with is dropped for it alone, and counted.
        webhook: OrOff<WebAddress> = "off", restart;
        /// How long one post may take, its answer included. A stop waits for the post that is under way, so
        /// twice this should be less than `server.shutdown_total`.
        webhook_timeout: Duration = "3s", restart;
    }

    /// What outlives an outage of the store.
    spool: Spool {
        /// The most it may hold.
        max_bytes: Size = "1GiB", restart;
        /// What stays free on its disk.
        min_free: Size = "256MiB", restart;
        /// What happens to something new when it is full: `refuse` it, or throw the `oldest-out`, counted.
        when_full: WhenFull = "refuse", restart;
        /// How long somebody who brings a record waits for room before it is refused.
        accept_timeout: Duration = "5s", restart;
    }

    /// Who may do what.
    auth: Auth {
        /// A file of tokens (only their hashes; `towpath token new` makes a line). Read again on SIGHUP.
        /// Without it everybody may do everything, which is allowed on loopback only.
        token_file: OrOff<PathBuf> = "off", live;
        /// Files with the keys of JWTs that are good here, each a public key as PEM (Ed25519, RSA) or, as the
        /// only line, a shared secret (HS256). Read again on SIGHUP. Needs a towpath with the feature `jwt`.
        jwt_keys: Vec<String> = "", live;
    }

    /// What one peer, and all of them, may use. Each has an answer that a client can read, and a figure in
    /// `/metrics`.
    limits: Limits {
        /// Connections at once; more are answered 503. `auto` is what the limit of open files leaves, after it
        /// was raised as far as the system allows.
        links: OrAuto = "auto", restart;
        /// Connections at once from one address; more are answered 503. Those from this machine do not count.
        links_per_address: u64 = "4096", restart;
        /// Connections accepted in a second. The others wait in the kernel's queue.
        accepts_per_second: u64 = "10000", restart;
        /// Bytes of a request's head; 431. At most 64 of its lines are headers.
        head: Size = "16KiB", restart;
        /// Bytes of a request's target; 414.
        target: Size = "8KiB", restart;
        /// Bytes of a body, where there is no message in it; 413.
        body: Size = "1MiB", restart;
        /// Bytes of one message of a stream; 413, on a WebSocket 1009.
        message: Size = "1MiB", restart;
        /// Bytes of the parts of one turn that no message holds yet; 413.
        turn: Size = "1MiB", restart;
        /// Inputs that wait in the queue of one stream; 429.
        inputs: u64 = "1000", restart;
        /// Live bytes that wait for one reader. One that is further behind is cut, and goes on from its token.
        queue: Size = "1MiB", restart;
        /// Streams followed and agents watched over one `/v1/ws`; the next is answered `full`.
        follows: u64 = "1000", restart;
        /// Live reads (follows, watches, sockets) that one caller, by the name of its token, has open; the next is a
        /// 429. Without authentication callers are not told apart.
        sessions: u64 = "10000", restart;
        /// Followers of one stream on this replica; the next is told `closed` with the reason `full`.
        followers: u64 = "100000", restart;
        /// Messages that one WebSocket may say in a second. What is more is read later, not refused.
        messages_per_second: OrOff<u64> = "100000", restart;
        /// Bytes that one WebSocket may say in a second. What is more is read later, not refused.
        bytes_per_second: OrOff<Size> = "off", restart;
        /// How long a request's head may take; 408.
        head_wait: Duration = "10s", restart;
        /// How long a body may make no progress; 408.
        body_wait: Duration = "30s", restart;
        /// How long a connection stays without a request.
        idle_wait: Duration = "75s", restart;
        /// How long a reader may take nothing of what waits for it, before it is cut.
        write_wait: Duration = "30s", restart;
        /// Silence after which a live read gets a comment or a ping; after three a WebSocket is given up.
        heartbeat: Duration = "15s", restart;
    }

    /// Byte streams that outlive their connections.
    pipes: Pipes {
        /// What pipes may lead to. Nothing, unless it is listed: `host:port`, `host:1000-2000`,
        /// `10.0.0.0/8:22`, `[fd00::]/8:*`, `*:443`, `unix:/path`. What a name resolves to is what counts;
        /// `*` means neither this machine nor link-local addresses. Pipes whose target is taken off the
        /// list end when their client next comes back.
        allow: Vec<String> = "", live;
        /// How long a pipe without a connection is kept for its client. `"off"` keeps it for ever. Longer
        /// than the longest time a laptop stays closed.
        grace: OrOff<Duration> = "24h", restart;
        /// How much may lie between the two ends of a pipe, in each direction, between 64 KiB and 256 MiB.
        /// 8 MiB carry 560 Mbit/s over a round trip of 120 ms. Held only while it is not acknowledged.
        window: Size = "8MiB", restart;
        /// How much all pipes together may hold; above it the big ones are slowed down.
        budget: Size = "512MiB", restart;
        /// How much the pipes of one caller may hold; above it the big ones among them are slowed down.
        budget_per_caller: Size = "256MiB", restart;
        /// How many pipes one caller may have. One more takes the place of the one that has been without a
        /// connection longest; where there is none it is refused. A pipe that comes back always may.
        per_caller: u64 = "1024", restart;
        /// How many of them may be without a connection; one more ends the one that has been so longest.
        detached_per_caller: u64 = "1024", restart;
        /// How many new pipes a second one caller may ask for.
        new_per_second: u64 = "256", restart;
    }

    /// What the daemon says about itself, on standard error.
    log: Log {
        /// How much.
        level: LogLevel = "info", live;
        /// For people or for machines.
        format: LogFormat = "auto", restart;
    }
}

impl Config {
    /// Where the value of `name` came from.
    pub fn origin(&self, name: &str) -> Origin {
        self.origins.get(name).cloned().unwrap_or(Origin::Default)
    }

    /// The settings that differ between two configurations and that SIGHUP cannot apply.
    pub fn needs_restart(&self, other: &Config) -> Vec<&'static str> {
        let changed = self.values().into_iter().zip(other.values()).filter(|(a, b)| a != b);
        let is_live = |name: &str| KEYS.iter().any(|key| key.name == name && key.live);
        let mut names: Vec<&'static str> =
            changed.map(|((name, _), _)| name).filter(|n| !is_live(n)).collect();
        // Its password does not show in `values`.
        if self.store.url != other.store.url && !names.contains(&"store.url") {
            names.push("store.url");
        }
        names
    }

    /// Whether callers have to show who they are.
    pub fn needs_credentials(&self) -> bool {
        self.auth.token_file != OrOff::Off || !self.auth.jwt_keys.is_empty()
    }

    /// What single values cannot say: settings that contradict one another.
    fn contradictions(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let open = !self.needs_credentials() && !self.server.insecure;
        let also = self.server.listen_also.iter().map(|at| ("server.listen_also", at));
        for (name, at) in std::iter::once(("server.listen", &self.server.listen)).chain(also) {
            if open && !at.is_local() {
                let text = format!(
                    "{at} can be reached by strangers and there is no authentication: set auth.token_file \
                     (`towpath token new`), listen on 127.0.0.1, or say server.insecure = true"
                );
                found.push((name, text));
            }
        }
        if self.tls.certificate.on().is_some() != self.tls.key.on().is_some() {
            let text =
                "a certificate needs its key and a key its certificate: set both or neither".to_owned();
            found.push((if self.tls.key == OrOff::Off { "tls.certificate" } else { "tls.key" }, text));
        }
        let relay = [&self.relay.certificate, &self.relay.key, &self.relay.authority];
        let said = relay.iter().filter(|file| file.on().is_some()).count();
        if said != 0 && said != relay.len() {
            let text = "replicas show certificates to each other with relay.certificate, relay.key and \
                        relay.authority: set all of them or none";
            found.push(("relay.certificate", text.to_owned()));
        }
        if self.server.reuse_port && matches!(self.store.url, StoreAt::Sqlite | StoreAt::Memory) {
            let text = "only daemons that share a PostgreSQL can share a port: set store.url".to_owned();
            found.push(("server.reuse_port", text));
        }
        let sizes = [("limits.message", self.limits.message), ("limits.body", self.limits.body)];
        for (name, size) in sizes {
            if size.bytes() > MESSAGE_MAX {
                found.push((name, format!("is over {} MiB, the most that fits a column", MESSAGE_MAX >> 20)));
            }
        }
        if let Some(ListenAt::Unix(_)) = self.relay.listen.on() {
            let text =
                "is a Unix socket, which other machines cannot reach: write an address and a port".to_owned();
            found.push(("relay.listen", text));
        }
        if self.streams.lease < 2 * self.streams.renew_every {
            let text = "is shorter than twice streams.renew_every: one slow renewal would end every turn";
            found.push(("streams.lease", text.to_owned()));
        }
        if self.server.drain_window > self.server.shutdown_total {
            let text = "is longer than server.shutdown_total, of which it is a part".to_owned();
            found.push(("server.drain_window", text));
        }
        found
    }
}

/// `docs/configuration.md`.
pub fn manual() -> String {
    let mut text = String::from(
        "# Configuration\n\n\
         This page is written by `towpath config doc`; a test holds it to the code.\n\n\
         Flags win over the environment, the environment over the file, the file over defaults. A file is\n\
         TOML: `towpath serve --config towpath.toml`; `towpath config init` prints one with every setting,\n\
         `towpath config check FILE` says what is wrong with yours (exit 78), `towpath config show --origin`\n\
         says what holds and why. In the environment `server.listen` is `TOWPATH_SERVER__LISTEN`.\n\n\
         Unknown names are errors. Zero is never \"off\": `\"off\"` is. SIGHUP reads everything again, all or\n\
         nothing; settings marked *live* change at once, the others at the next start.\n",
    );
    for section in SECTIONS {
        text += &format!("\n## [{}]\n\n{}", section.name, unindented(section.doc));
        for key in keys_of(section) {
            let live = if key.live { " · live" } else { "" };
            let default = default_as_toml(key);
            text += &format!("\n### `{}`\n\n{}", key.name, unindented(key.doc));
            text += &format!("\n{} · default `{default}`{live}\n", key.kind);
        }
    }
    text
}

/// A file with every setting at its default, explained: what `config init` prints.
pub fn sample() -> String {
    let mut text = String::from("# towpath's settings, all at their defaults. Uncomment what you change.\n");
    for section in SECTIONS {
        text += &format!("\n{}[{}]\n", commented(section.doc), section.name);
        for key in keys_of(section) {
            let name = key.name.split_once('.').map_or(key.name, |(_, name)| name);
            text += &format!(
                "\n{}# {}\n# {name} = {}\n",
                commented(key.doc),
                key.kind.replace('`', ""),
                default_as_toml(key)
            );
        }
    }
    text
}

fn keys_of(section: &Section) -> impl Iterator<Item = &'static Key> {
    let name = section.name;
    KEYS.iter().filter(move |key| key.name.split('.').next() == Some(name))
}

fn default_as_toml(key: &Key) -> String {
    let values = Config::default().values();
    values.into_iter().find(|(name, _)| *name == key.name).map(|(_, value)| value).unwrap_or_default()
}

fn unindented(doc: &str) -> String {
    doc.lines().map(|line| format!("{}\n", line.trim())).collect()
}

fn commented(doc: &str) -> String {
    doc.lines().map(|line| format!("# {}\n", line.trim())).collect()
}
