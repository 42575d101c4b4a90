//! Pipes over the paths that users have: proxies, portals, signals, sleep, and what the program says and
//! exits with on each.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::cli_pipe::{Killed, echo, forward};
use crate::effort::not_run;
use crate::flaky::{Fault, Flaky, Weather};
use crate::process::{Daemon, PATIENCE, program, run, told, towpath};

/// A running `towpath connect` to an echo.
pub(crate) struct Connect {
    child: Killed,
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    said: Receiver<String>,
}

impl Connect {
    pub(crate) fn start(command: &mut Command) -> Connect {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let (tell, said) = sync_channel(10_000);
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().expect("piped"));
        Connect { child: Killed(child), stdin, stdout, said }
    }

    pub(crate) fn ask(&mut self, text: &str) {
        self.stdin.as_mut().expect("open").write_all(text.as_bytes()).expect("it reads");
        let mut got = vec![0; text.len()];
        self.stdout.read_exact(&mut got).expect("it comes back");
        assert_eq!(got, text.as_bytes());
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.0.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }

    /// Waits for a line that contains `text`.
    fn wait_for(&self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        while let Ok(line) = self.said.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if line.contains(text) {
                return line;
            }
            seen.push(line);
        }
        panic!("nothing about {text:?} within {PATIENCE:?}: {seen:#?}");
    }

    /// Ends its input, and gives the exit code and whatever it said that nobody has read.
    pub(crate) fn end(mut self) -> (i32, String) {
        self.stdin = None;
        let mut rest = Vec::new();
        self.stdout.read_to_end(&mut rest).expect("it ends");
        assert!(rest.is_empty(), "{} bytes nobody sent", rest.len());
        let status = self.child.0.wait().expect("it can be waited for");
        let said: Vec<String> = self.said.iter().collect();
        (status.code().expect("it exits by itself"), said.join("\n"))
    }
}

/// One row of `pipe ls`.
fn only_pipe(daemon: &Daemon) -> serde_json::Value {
    let (exit, said) = told(&run(&["pipe", "ls", "--json", "--url", &daemon.url]));
    assert_eq!(exit, 0, "{said}");
    let pipes: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(pipes.as_array().map(Vec::len), Some(1), "{pipes}");
    pipes[0].clone()
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Passes bytes both ways until both have ended.
fn join(one: TcpStream, other: TcpStream) {
    let (one_too, other_too) = (one.try_clone().expect("a clone"), other.try_clone().expect("a clone"));
    let pass = |mut from: TcpStream, mut to: TcpStream| {
        // Whichever breaks takes the other one along.
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(std::net::Shutdown::Both);
        let _ = from.shutdown(std::net::Shutdown::Both);
    };
    thread::spawn(move || pass(one, other));
    thread::spawn(move || pass(other_too, one_too));
}

/// Reads up to the end of an HTTP head.
fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            break;
        }
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// A proxy on a real socket. Whatever it is asked to connect to, it connects to `to`; what it was asked is
/// told.
fn proxy(
    to: SocketAddr,
    agree: impl Fn(&mut TcpStream) -> Option<String> + Send + Clone + 'static,
) -> (SocketAddr, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (tell, asked) = sync_channel(1_000);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(mut stream), agree, tell) = (stream, agree.clone(), tell.clone()) else { continue };
            thread::spawn(move || {
                if let Some(question) = agree(&mut stream) {
                    tell.send(question).expect("somebody listens");
                    join(stream, TcpStream::connect(to).expect("the daemon listens"));
                }
            });
        }
    });
    (address, asked)
}

/// CONNECT, for those who bring `me:pw`.
fn http_proxy(stream: &mut TcpStream) -> Option<String> {
    let head = head(stream);
    let known = head.contains("Proxy-Authorization: Basic bWU6cHc=\r\n");
    let answer = match known {
        true => "HTTP/1.1 200 Connection established\r\n\r\n",
        false => "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n",
    };
    stream.write_all(answer.as_bytes()).expect("it reads");
    known.then(|| head.lines().next().unwrap_or_default().to_owned())
}

/// RFC 1928 and 1929, for those who bring `me` and `pw`, by name or by address.
fn socks_proxy(stream: &mut TcpStream) -> Option<String> {
    let mut take = |count: usize| {
        let mut bytes = vec![0; count];
        stream.read_exact(&mut bytes).ok().map(|()| bytes)
    };
    let methods = take(2)?[1];
    assert!(take(usize::from(methods))?.contains(&2), "it offers to log in");
    stream.write_all(&[5, 2]).ok()?;
    let mut take = |count: usize| {
        let mut bytes = vec![0; count];
        stream.read_exact(&mut bytes).ok().map(|()| bytes)
    };
    let user = take(2)?[1];
    let user = take(usize::from(user))?;
    let password = take(1)?[0];
    let password = take(usize::from(password))?;
    let known = (&user[..], &password[..]) == (b"me", b"pw");
    stream.write_all(&[1, u8::from(!known)]).ok()?;
    if !known {
        return None;
    }
    let mut take = |count: usize| {
        let mut bytes = vec![0; count];
        stream.read_exact(&mut bytes).ok().map(|()| bytes)
    };
    let host = match take(4)?[3] {
        1 => take(4)?.iter().map(u8::to_string).collect::<Vec<_>>().join("."),
        _ => {
            let length = take(1)?[0];
            String::from_utf8(take(usize::from(length))?).ok()?
        }
    };
    let port = take(2)?;
    stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).ok()?;
    Some(format!("{host}:{}", u16::from_be_bytes([port[0], port[1]])))
}

#[test]
fn pipes_pass_http_proxies_and_socks_proxies_and_resume_through_them() {
    let target = echo().to_string();
    // Asked for by a name that is not this machine's.
    let daemon = Daemon::start(&["--allow", &target, "--insecure"]);
    let to = daemon.address().parse().expect("an address");
    let (http, http_asked) = proxy(to, http_proxy);
    let (socks, socks_asked) = proxy(to, socks_proxy);
    for (proxy, asked, expected) in [
        (format!("http://me:pw@{http}"), &http_asked, "CONNECT edge.example:80 HTTP/1.1"),
        (format!("socks5://me:pw@{socks}"), &socks_asked, "edge.example:80"),
    ] {
        // The name means nothing here: whoever resolves it is the proxy.
        let mut connect =
            Connect::start(&mut towpath(&["connect", "http://edge.example", &target, "--proxy", &proxy]));
        connect.ask("through a proxy");
        assert_eq!(asked.recv_timeout(PATIENCE).expect("it was asked"), expected);
        let id = only_pipe(&daemon)["id"].as_str().expect("an id").to_owned();
        assert_eq!(run(&["pipe", "cut", &id, "--url", &daemon.url]).status.code(), Some(0));
        connect.ask("and again");
        assert_eq!(asked.recv_timeout(PATIENCE).expect("it was asked again"), expected);
        let (exit, said) = connect.end();
        assert_eq!(exit, 0, "{said}");
        wait_until("the pipe is gone", || {
            let (_, said) = told(&run(&["pipe", "ls", "--json", "--url", &daemon.url]));
            said.trim() == "[]"
        });
    }
}

#[test]
fn a_proxy_in_the_environment_is_used_but_not_for_this_machine() {
    let target = echo().to_string();
    // Asked for by a name that is not this machine's.
    let daemon = Daemon::start(&["--allow", &target, "--insecure"]);
    let (address, asked) = proxy(daemon.address().parse().expect("an address"), http_proxy);
    let proxy = format!("http://me:pw@{address}");
    let with_proxy = |url: &str| {
        let mut command = towpath(&["connect", url, &target, "--connect-timeout", "2"]);
        command.env("HTTP_PROXY", &proxy).env("HTTPS_PROXY", &proxy);
        Connect::start(&mut command)
    };
    let mut connect = with_proxy("http://edge.example");
    connect.ask("through the proxy");
    assert_eq!(asked.recv_timeout(PATIENCE).expect("it was asked"), "CONNECT edge.example:80 HTTP/1.1");
    assert_eq!(connect.end().0, 0);
    let mut connect = with_proxy(&daemon.url);
    connect.ask("directly");
    assert_eq!(connect.end().0, 0);
    assert!(asked.try_recv().is_err(), "nothing on this machine goes through a proxy");
    // There is no TLS behind this one: what counts is where it was asked for.
    let connect = with_proxy("https://edge.example");
    assert_eq!(asked.recv_timeout(PATIENCE).expect("it was asked"), "CONNECT edge.example:443 HTTP/1.1");
    assert_eq!(connect.end().0, 6, "never connected");
}

#[test]
fn a_proxy_that_wants_a_login_is_said_so_at_once() {
    let target = echo().to_string();
    let daemon = Daemon::start(&["--allow", &target]);
    let (address, _asked) = proxy(daemon.address().parse().expect("an address"), http_proxy);
    let proxy = format!("http://{address}");
    let (exit, said) = told(&run(&["connect", "http://edge.example", &target, "--proxy", &proxy]));
    assert_eq!(exit, 3, "{said}");
    assert!(said.contains("wants a login"), "{said}");
}

#[test]
fn a_portal_and_a_balancer_without_a_server_are_waited_out() {
    let target = echo().to_string();
    let daemon = Daemon::start(&["--allow", &target]);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let to: SocketAddr = daemon.address().parse().expect("an address");
    thread::spawn(move || {
        let portal = "HTTP/1.1 302 Found\r\nLocation: http://portal/\r\nContent-Length: 24\r\n\r\n<html>Pay first.</html>\n";
        let balancer = "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n";
        // Each attempt asks twice: for the upgrade, and then for a WebSocket.
        for (number, stream) in listener.incoming().enumerate() {
            let mut stream = stream.expect("a connection");
            match number {
                0..4 => {
                    head(&mut stream);
                    let answer = if number < 2 { portal } else { balancer };
                    stream.write_all(answer.as_bytes()).expect("it reads");
                }
                _ => join(stream, TcpStream::connect(to).expect("the daemon listens")),
            }
        }
    });
    let mut connect = Connect::start(&mut towpath(&["connect", &format!("http://{address}"), &target]));
    connect.ask("at last");
    connect.wait_for("302");
    let (exit, said) = connect.end();
    assert_eq!(exit, 0, "{said}");
}

#[test]
fn hanging_up_dials_at_once_in_connect_and_in_forward() {
    let target = echo().to_string();
    let daemon = Daemon::start(&["--allow", &target]);
    let flaky = Flaky::start("127.0.0.1:0", daemon.address(), 1, Weather::default()).expect("a free port");
    let url = format!("http://{}", flaky.address());
    let mut connect = Connect::start(&mut towpath(&["connect", &url, &target]));
    connect.ask("before");
    // Nothing passes any more, which an idle pipe finds out by itself only after 25 seconds.
    flaky.strike(Fault::Hole);
    let begun = Instant::now();
    connect.signal("HUP");
    wait_until("another connection bears it", || only_pipe(&daemon)["resumes"] == 1);
    connect.ask("after");
    assert!(begun.elapsed() < Duration::from_secs(20), "it did not wait for its own doubts");
    assert_eq!(connect.end().0, 0);

    let (running, address) = forward(&url, &target, &["--quiet"]);
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut got = [0; 2];
    stream.write_all(b"hi").expect("the pipe takes it");
    stream.read_exact(&mut got).expect("it comes back");
    wait_until("the first pipe is gone", || {
        let (_, said) = told(&run(&["pipe", "ls", "--json", "--url", &daemon.url]));
        said.matches("\"id\"").count() == 1
    });
    let sent = Command::new("kill").args(["-s", "HUP", &running.0.id().to_string()]).status();
    assert!(sent.expect("kill runs").success());
    wait_until("another connection bears it", || only_pipe(&daemon)["resumes"] == 1);
    stream.write_all(b"ho").expect("the pipe takes it");
    stream.read_exact(&mut got).expect("it comes back");
    assert_eq!(&got, b"ho");
}

#[test]
fn a_loss_and_its_recovery_are_one_line_each_and_a_replacement_is_none() {
    let target = echo().to_string();
    let daemon = Daemon::start(&["--allow", &target]);
    let cut = || {
        let id = only_pipe(&daemon)["id"].as_str().expect("an id").to_owned();
        assert_eq!(run(&["pipe", "cut", &id, "--url", &daemon.url]).status.code(), Some(0));
    };
    let mut connect = Connect::start(&mut towpath(&["connect", &daemon.url, &target, "--carrier-age", "1"]));
    connect.ask("first");
    wait_until("it was replaced twice", || only_pipe(&daemon)["resumes"].as_u64() >= Some(2));
    connect.ask("replaced");
    cut();
    connect.ask("after a cut");
    let recovered = connect.wait_for("replayed");
    assert!(recovered.starts_with("towpath: ") && recovered.contains("link lost"), "{recovered}");
    let (exit, said) = connect.end();
    assert_eq!(exit, 0, "{said}");
    assert_eq!(said, "", "a replacement is nobody's business");
    wait_until("the pipe is gone", || {
        let (_, said) = told(&run(&["pipe", "ls", "--json", "--url", &daemon.url]));
        said.trim() == "[]"
    });

    let mut quiet = Connect::start(&mut towpath(&["connect", &daemon.url, &target, "-q"]));
    quiet.ask("first");
    cut();
    quiet.ask("second");
    assert_eq!(quiet.end(), (0, String::new()));
}

#[test]
fn exit_codes_tell_who_was_not_let_in_from_what_was_lost() {
    let target = echo().to_string();
    let tokens = tempfile::NamedTempFile::new().expect("a file");
    let daemon = {
        // A digest of nobody's token: whoever comes without the right one stays out.
        std::fs::write(tokens.path(), "").expect("written");
        Daemon::start(&["--allow", &target, "--token-file", &tokens.path().display().to_string()])
    };
    let (exit, said) = told(&run(&["connect", &daemon.url, &target]));
    assert_eq!(exit, 3, "{said}");
    assert!(said.contains("auth"), "{said}");
    drop(daemon);

    let daemon = Daemon::start(&["--allow", &target]);
    let flaky = Flaky::start("127.0.0.1:0", daemon.address(), 1, Weather::default()).expect("a free port");
    let url = format!("http://{}", flaky.address());
    let mut connect = Connect::start(&mut towpath(&["connect", &url, &target, "--grace", "1"]));
    connect.ask("hello");
    drop(flaky);
    connect.wait_for("link lost");
    let (exit, said) = connect.end();
    assert_eq!(exit, 5, "{said}");
    assert!(said.contains("grace_expired"), "{said}");
}

#[test]
fn a_daemon_that_is_stopped_says_so_to_its_pipes() {
    let target = echo().to_string();
    let daemon = Daemon::start(&["--allow", &target]);
    let mut connect = Connect::start(&mut towpath(&["connect", &daemon.url, &target, "--grace", "5"]));
    connect.ask("hello");
    daemon.signal("TERM");
    let (exit, text) = daemon.wait();
    assert_eq!(exit, 0, "{text}");
    let (exit, said) = connect.end();
    assert_eq!(exit, 5, "{said}");
    // A client that was just then on its way to another carrier finds nobody there, and gives up.
    assert!(said.contains("shutdown") || said.contains("grace_expired"), "{said}");
}

#[test]
fn a_pipe_is_a_row_of_the_connection_log_from_its_beginning_to_its_end() {
    let target = echo().to_string();
    let daemon = Daemon::start(&["--allow", &target]);
    let mut connect = Connect::start(&mut towpath(&["connect", &daemon.url, &target]));
    connect.ask("hello");
    let rows = || {
        let (status, body) = daemon.get("/v1/connections");
        assert_eq!(status, 200, "{body}");
        serde_json::from_str::<serde_json::Value>(&body).expect("JSON")
    };
    let of_pipes = |body: &serde_json::Value| {
        let text = body.to_string();
        (text.matches("\"pipe\"").count(), text.matches(&target).count(), text.contains("eof"))
    };
    // The target stands in the row as what was connected to, and as a label to filter by.
    wait_until("its beginning is written", || of_pipes(&rows()) == (1, 2, false));
    assert_eq!(connect.end().0, 0);
    wait_until("its end is written to the same row", || of_pipes(&rows()) == (1, 2, true));
}

#[test]
fn standard_input_may_end_before_standard_output() {
    // A target that answers only once it has heard everything.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let target = listener.local_addr().expect("bound").to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).expect("it ends");
            heard.reverse();
            stream.write_all(&heard).expect("it reads");
        }
    });
    let daemon = Daemon::start(&["--allow", &target]);
    let mut command = towpath(&["connect", &daemon.url, &target]);
    let mut child: Child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("towpath starts");
    child.stdin.take().expect("piped").write_all(b"\x00\xff\r\n4321").expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"1234\n\r\xff\x00"[..]));
}

#[test]
fn a_unix_socket_is_a_target_like_any_other() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("echo");
    let listener = UnixListener::bind(&path).expect("a path of its own");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.expect("a connection");
            // Whoever breaks off is broken off.
            thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
        }
    });
    let target = format!("unix:{}", path.display());
    let other = format!("unix:{}", folder.path().join("other").display());
    let daemon = Daemon::start(&["--allow", &target]);
    let flaky = Flaky::start("127.0.0.1:0", daemon.address(), 1, Weather::default()).expect("a free port");
    let url = format!("http://{}", flaky.address());
    let mut connect = Connect::start(&mut towpath(&["connect", &url, &target]));
    connect.ask("before");
    flaky.strike(Fault::Reset);
    connect.ask("after");
    connect.wait_for("replayed");
    assert_eq!(connect.end(), (0, String::new()));
    let (exit, said) = told(&run(&["connect", &url, &other]));
    assert_eq!(exit, 4, "{said}");
    assert!(said.contains("not_allowed"), "{said}");
}

#[test]
fn a_machine_that_slept_asks_at_once_whether_the_other_end_is_there() {
    let library = ["x86_64-linux-gnu", "aarch64-linux-gnu"]
        .map(|arch| format!("/usr/lib/{arch}/faketime/libfaketimeMT.so.1"))
        .into_iter()
        .find(|path| std::path::Path::new(path).exists());
    let Some(library) = library else {
        return not_run("a machine that slept: libfaketime is not installed (tests/setup.sh)");
    };
    let target = echo().to_string();
    let daemon = Daemon::start(&["--allow", &target]);
    let flaky = Flaky::start("127.0.0.1:0", daemon.address(), 1, Weather::default()).expect("a free port");
    let url = format!("http://{}", flaky.address());
    let clock = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(clock.path(), "+0s\n").expect("written");
    let mut command = Command::new(program());
    command.args(["connect", &url, &target]);
    // The calendar is the file's; the clock that stops in sleep is the system's.
    command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", clock.path());
    command
        .env("FAKETIME_NO_CACHE", "1")
        .env("DONT_FAKE_MONOTONIC", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let mut connect = Connect::start(&mut command);
    connect.ask("before");
    flaky.strike(Fault::Hole);
    let begun = Instant::now();
    std::fs::write(clock.path(), "+3600s\n").expect("written");
    connect.wait_for("link lost");
    connect.ask("after");
    // An idle pipe asks by itself after 15 seconds, and waits 10 for the answer.
    assert!(begun.elapsed() < Duration::from_secs(15), "it asked after {:?}", begun.elapsed());
    assert_eq!(connect.end().0, 0);
}

#[test]
fn doctor_says_how_pipes_get_through_and_whether_an_idle_one_lasts() {
    let target = echo().to_string();
    let nobody = {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.local_addr().expect("bound").to_string()
    };
    let daemon = Daemon::start(&["--allow", &target, "--allow", &nobody]);
    let look = |flags: &[&str]| {
        let (exit, said) = told(&run(&[&["doctor", &daemon.url, "--json"], flags].concat()));
        let said = said.lines().next().expect("a line of JSON");
        let findings: Vec<serde_json::Value> = serde_json::from_str(said).expect("JSON");
        (exit, findings)
    };
    let about = |findings: &[serde_json::Value], what: &str| {
        let finding = findings.iter().find(|finding| finding["what"] == what);
        let finding = finding.unwrap_or_else(|| panic!("nothing about {what} in {findings:?}"));
        (finding["well"] == true, finding["found"].as_str().expect("text").to_owned())
    };
    let (exit, findings) = look(&["--pipe", &target, "--idle", "1"]);
    assert_eq!(exit, 0, "{findings:?}");
    let (well, found) = about(&findings, "pipes");
    assert!(well && found.starts_with("the upgrade passes, no proxy, "), "{found}");
    assert_eq!(about(&findings, "pipe idle"), (true, "kept for 1 s without a byte".to_owned()));
    assert!(about(&findings, "ssh").0);
    let (exit, findings) = look(&["--pipe", &nobody]);
    let (well, found) = about(&findings, "pipe idle");
    assert!(exit == 1 && !well && found.contains("target_refused"), "{found}");
}
