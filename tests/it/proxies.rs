//! The proxy configurations of examples/deploy, as they stand there but for names, addresses and certificates:
//! what is live comes through them at once, and pipes pass.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::effort::not_run;
use crate::ports::free_port;
use crate::process::{Daemon, PATIENCE, certificate, told, towpath};

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A proxy that runs until it is dropped.
struct Proxy {
    child: Child,
    url: String,
}

impl Proxy {
    fn start(mut command: Command, port: u16) -> Proxy {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("it was found");
        let mut proxy = Proxy { child, url: format!("https://localhost:{port}") };
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = proxy.child.try_wait().expect("it can be asked");
            assert!(ended.is_none() && Instant::now() < deadline, "the proxy does not listen: {ended:?}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        proxy
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = towpath(arguments);
        command.env("TOWPATH_URL", &self.url).env("SSL_CERT_FILE", certificate("authority.pem"));
        command
    }

    fn run(&self, arguments: &[&str]) {
        let (exit, said) = told(&self.command(arguments).output().expect("runs"));
        assert_eq!(exit, 0, "{arguments:?} {said}");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended, and then the test has failed elsewhere.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A configuration with these words replaced, each of which has to be there.
fn with(text: &str, replaced: &[(&str, &str)]) -> String {
    replaced.iter().fold(text.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "there is no {from:?} to replace in\n{text}");
        text.replace(from, to)
    })
}

/// Whether the program is there; says so if not.
fn is_there(program: &str) -> bool {
    let found = Command::new(program).arg(if program == "nginx" { "-v" } else { "version" }).output().is_ok();
    if !found {
        not_run(&format!("there is no {program} to stand before a daemon (`make setup` installs it)"));
    }
    found
}

/// Chain and key.
fn identity() -> (String, String) {
    let at = |name: &str| certificate(name).to_str().expect("UTF-8").to_owned();
    (at("localhost.pem"), at("localhost.key"))
}

/// What has to come through.
fn carries(proxy: &Proxy) {
    proxy.run(&["stream", "create", "chat/1"]);
    let mut follow = proxy.command(&["follow", "chat/1"]).stdout(Stdio::piped()).spawn().expect("runs");
    let mut lines = BufReader::new(follow.stdout.take().expect("piped"));
    let mut line = || {
        let mut line = String::new();
        lines.read_line(&mut line).expect("text");
        line
    };
    for said in ["one", "two"] {
        proxy.run(&["stream", "append", "chat/1", said]);
        // Were it held back, this would wait for ever.
        assert!(line().contains(said), "it comes as it is written");
    }
    follow.kill().and_then(|()| follow.wait()).expect("it was there");
    // Round trips, live reads, and whether a pipe's upgrade passes.
    proxy.run(&["doctor"]);
}

#[test]
fn nginx_as_the_example_has_it_holds_nothing_back() {
    if !is_there("nginx") {
        return;
    }
    let daemon = Daemon::start(&[]);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (port, (chain, key)) = (free_port(), identity());
    let example = std::fs::read_to_string(root("examples/deploy/nginx.conf")).expect("it is there");
    let site = with(
        &example,
        &[
            ("127.0.0.1:7700", daemon.address()),
            ("listen 443 ssl", &format!("listen 127.0.0.1:{port} ssl")),
            ("server_name edge.example.com", "server_name localhost"),
            ("/etc/ssl/edge.example.com.pem", &chain),
            ("/etc/ssl/edge.example.com.key", &key),
        ],
    );
    let at = folder.path().display();
    let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|what| format!("{what}_temp_path {at}/{what};\n"))
        .concat();
    let whole = format!(
        "pid {at}/pid;\nerror_log stderr;\nevents {{ worker_connections 64; }}\n\
         http {{\naccess_log off;\n{paths}{site}}}\n"
    );
    let file = folder.path().join("nginx.conf");
    std::fs::write(&file, whole).expect("written");
    let mut command = Command::new("nginx");
    command.arg("-p").arg(folder.path()).arg("-c").arg(&file).args(["-g", "daemon off;"]);
    carries(&Proxy::start(command, port));
}

#[test]
fn caddy_as_the_example_has_it_holds_nothing_back() {
    if !is_there("caddy") {
        return;
    }
    let daemon = Daemon::start(&[]);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (port, (chain, key)) = (free_port(), identity());
    let example = std::fs::read_to_string(root("examples/deploy/Caddyfile")).expect("it is there");
    let site = format!("https://localhost:{port} {{\n\tbind 127.0.0.1\n\ttls {chain} {key}\n");
    let site = with(&example, &[("127.0.0.1:7700", daemon.address()), ("edge.example.com {\n", &site)]);
    let file = folder.path().join("Caddyfile");
    std::fs::write(&file, format!("{{\n\tadmin off\n\tauto_https disable_redirects\n}}\n{site}"))
        .expect("written");
    let mut command = Command::new("caddy");
    command.args(["run", "--adapter", "caddyfile", "--config"]).arg(&file);
    command.env("HOME", folder.path()).env_remove("XDG_DATA_HOME").env_remove("XDG_CONFIG_HOME");
    command.stderr(Stdio::null());
    carries(&Proxy::start(command, port));
}
