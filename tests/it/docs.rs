//! The manual's generated pages say what the code says. `UPDATE=1 cargo test --test it docs` writes them.

use std::fs;
use std::path::Path;

/// Compares a file with what the code would write; with UPDATE=1, writes it.
fn check(file: &str, expected: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, expected).expect("a page is written");
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    let differs = found.lines().zip(expected.lines()).position(|(a, b)| a != b);
    assert!(
        found == expected,
        "{file} differs from the code at line {:?}: run `UPDATE=1 cargo test --test it docs`",
        differs.map(|line| line + 1)
    );
}

#[test]
fn the_configuration_page_is_what_the_code_says() {
    check("docs/configuration.md", &towpath::config::manual());
}

#[test]
fn the_deployed_sample_has_every_setting() {
    check("examples/deploy/towpath.toml", &towpath::config::sample());
}

#[test]
fn the_metrics_page_lists_every_figure() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let mut config = towpath::config::Config::default();
    config.store.data = data.path().to_owned();
    config.server.listen = towpath::config::ListenAt::Tcp(([127, 0, 0, 1], 0).into());
    let daemon = towpath::daemon::Daemon::start(&towpath::rt::Rt::real(), &config).expect("it starts");
    check("docs/metrics.md", &towpath::metrics::manual(daemon.figures()));
}

#[test]
fn the_board_shows_figures_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| fs::read_to_string(root.join(file)).expect("a file");
    let page = read("docs/metrics.md");
    let board = read("examples/deploy/grafana.json");
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let names: Vec<&str> = board
        .match_indices("towpath_")
        .map(|(at, _)| &board[at..at + board[at..].find(|c| !is_name(c)).unwrap_or(0)])
        .collect();
    assert!(names.len() > 5, "the board has panels");
    for name in names {
        let name = name.trim_end_matches("_bucket").trim_end_matches("_count").trim_end_matches("_sum");
        assert!(page.contains(&format!("`{name}`")), "docs/metrics.md has no {name}");
    }
}

/// What each proxy needs for a follow, a WebSocket, a pipe and an open body to pass as they are written.
#[test]
fn the_proxies_hold_nothing_back() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/deploy");
    let read = |file: &str| fs::read_to_string(root.join(file)).expect("a file");
    for (file, needed) in [
        (
            "nginx.conf",
            &[
                "proxy_http_version 1.1;",
                "proxy_buffering off;",
                "proxy_request_buffering off;",
                "proxy_set_header Upgrade $http_upgrade;",
                "proxy_set_header Connection $connection_upgrade;",
                "proxy_set_header Host $host;",
            ][..],
        ),
        ("Caddyfile", &["flush_interval -1", "versions 1.1"][..]),
    ] {
        let text = read(file);
        for line in needed {
            assert!(text.contains(line), "{file} lacks `{line}`");
        }
        // Longer than a few heartbeats, which come every 15 seconds.
        let timeout = text.lines().find_map(|line| {
            line.trim().strip_prefix("proxy_read_timeout ").or(line.trim().strip_prefix("read_timeout "))
        });
        let seconds: u64 = timeout
            .and_then(|t| t.trim_end_matches(';').strip_suffix('s')?.parse().ok())
            .expect("a time-out in seconds");
        assert!(seconds >= 45, "{file} gives up a live read after {seconds} s");
    }
}

#[test]
fn every_page_of_the_manual_is_in_its_table_and_every_link_leads_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let index = fs::read_to_string(root.join("docs/README.md")).expect("a page");
    let mut pages = vec![root.join("README.md"), root.join("ARCHITECTURE.md"), root.join("PROTOCOL.md")];
    pages.push(root.join("examples/deploy/README.md"));
    for entry in fs::read_dir(root.join("docs")).expect("docs/").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.ends_with(".md") {
            continue;
        }
        assert!(
            name == "README.md" || index.contains(&format!("]({name})")),
            "docs/README.md does not list {name}"
        );
        pages.push(entry.path());
    }
    for page in pages {
        let text = fs::read_to_string(&page).expect("a page");
        let folder = page.parent().expect("a folder");
        for (at, _) in text.match_indices("](") {
            let link = &text[at + 2..at + text[at..].find(')').expect("a link ends")];
            let file = link.split('#').next().unwrap_or_default();
            if file.is_empty() || link.contains("://") {
                continue;
            }
            assert!(folder.join(file).exists(), "{}: {link} leads nowhere", page.display());
        }
    }
}

/// The names that `pub use` lines of the front give away, with the folder or file they come from.
fn front(lib: &str) -> Vec<(String, String)> {
    let mut names = Vec::new();
    for line in lib.split("\npub use ").skip(1) {
        let line = line.split(';').next().unwrap_or_default().replace(['\n', ' '], "");
        let (path, list) = line.rsplit_once("::").expect("a path");
        for name in list.trim_matches(['{', '}']).split(',').filter(|name| !name.is_empty()) {
            // `A as B` without its blanks: a type's name begins with an upper-case letter, `as` stands inside.
            let name = name.split("as").next().filter(|name| !name.is_empty()).unwrap_or(name);
            names.push((name.to_owned(), format!("src/{}", path.replace("::", "/"))));
        }
    }
    names
}

#[test]
fn everything_the_front_gives_away_has_an_example() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let names = front(&fs::read_to_string(root.join("src/lib.rs")).expect("the front"));
    assert!(names.len() > 30, "{names:?}");
    let documented = |name: &str, text: &str| {
        let whole = |end: usize| !text[end..].starts_with(|c: char| c.is_alphanumeric() || c == '_');
        ["struct", "enum"].iter().any(|what| {
            let begin = format!("\npub {what} {name}");
            let at = text.match_indices(&begin).find(|(at, _)| whole(at + begin.len()));
            let before = at.map_or("", |(at, _)| &text[..at]).lines().rev();
            before
                .take_while(|line| line.starts_with("///") || line.starts_with("#["))
                .any(|l| l == "/// ```")
        })
    };
    let sources = |place: &str| {
        let file = root.join(format!("{place}.rs"));
        let folder = fs::read_dir(root.join(place)).into_iter().flatten().flatten().map(|entry| entry.path());
        let files = folder.chain([file]).filter_map(|file| fs::read_to_string(file).ok());
        files.collect::<Vec<String>>()
    };
    // An alias of the standard library's is explained there.
    let without: Vec<_> = names
        .iter()
        .filter(|(name, _)| name != "Result")
        .filter(|(name, place)| !sources(place).iter().any(|text| documented(name, text)))
        .collect();
    assert!(without.is_empty(), "no example stands at {without:?}");
}

/// The handshake that PROTOCOL.md gives to those who write a client, made by the code that speaks it.
#[test]
fn the_handshake_of_a_pipe_in_the_protocol_is_what_is_spoken() {
    use towpath::codec::pipe::{data_head, encode_greeting};
    use towpath::state::pipe::PipeId;
    use towpath::state::pipe::hello::{Challenge, Greeting, Hello, PROTO, Proof, Welcome, Wish};
    use towpath::state::pipe::proof::{Secret, Stand, Transcript, client, server};
    let (secret, id, instance, nonce) = (Secret([7; 32]), PipeId([1; 16]), [2; 16], [4; 16]);
    let transcript = Transcript { id, instance, server_nonce: [3; 16], client_nonce: nonce, epoch: 5 };
    let ours = Stand { recv: 6, fin: false, limit: 7 };
    let theirs = Stand { recv: 9, fin: true, limit: 9 };
    let hello = Hello { proto_min: PROTO, proto_max: PROTO, nonce, auth: None, wish: Wish::Resume { id } };
    let proof = Proof { epoch: 5, stand: ours, tag: client(&secret, &transcript, &ours) };
    let welcome = Welcome {
        proto: PROTO,
        instance,
        id,
        epoch: 5,
        grace: Some(std::time::Duration::from_secs(60)),
        window: 64 * 1024,
        stand: theirs,
        tag: server(&secret, &transcript, &theirs),
        secret: None,
    };
    let spoken = [
        ("HELLO    ", Greeting::Hello(hello)),
        ("CHALLENGE", Greeting::Challenge(Challenge { instance, nonce: transcript.server_nonce })),
        ("PROOF    ", Greeting::Proof(proof)),
        ("WELCOME  ", Greeting::Welcome(welcome)),
    ];
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut lines: Vec<String> = spoken
        .into_iter()
        .map(|(name, greeting)| {
            let mut bytes = Vec::new();
            encode_greeting(&greeting, &mut bytes);
            format!("{name} {}", hex(&bytes))
        })
        .collect();
    lines.push(format!("DATA      {}{}", hex(&data_head(6, 1)), hex(b"h")));
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("PROTOCOL.md")).expect("a page");
    let missing: Vec<_> = lines.iter().filter(|line| !page.contains(*line)).collect();
    assert!(missing.is_empty(), "PROTOCOL.md has not {missing:#?}");
}
