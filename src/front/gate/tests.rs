use super::*;
use crate::front::{Op, Role, Scope};
use crate::wire::http::{HeadLimits, HeadReader};
use std::net::IpAddr;

const TOKEN: &str = "a-token-that-is-thirty-two-bytes-long";

fn head(text: &str) -> Head {
    let text = text.replace('\n', "\r\n");
    HeadReader::default().read(text.as_bytes(), &HeadLimits::default()).unwrap().unwrap().0
}

fn peer() -> Peer {
    Peer { ip: Some(IpAddr::from([127, 0, 0, 1])), port: 1, tls: false, listener: 0 }
}

fn gate(credentials: Credentials) -> Gate {
    let gate = Gate::new(&Rt::real(), credentials, vec!["https://app.example".into()]);
    gate.set_tokens(Tokens::parse(&line()).unwrap());
    gate
}

fn line() -> String {
    let scopes = [Scope { matches: "chat/*".into(), ops: vec![Op::Follow] }];
    Tokens::line("f", &Secret::new(TOKEN), &[Role::Follower], &scopes).unwrap()
}

fn admit(gate: &Gate, text: &str, need: Need) -> Result<Principal, u16> {
    let head = head(text);
    let query = Query::parse(&head.query).unwrap();
    gate.admit(&head, &query, &peer(), need).map_err(|response| response.status())
}

#[test]
fn a_foreign_name_for_loopback_is_refused_where_nobody_has_to_show_a_token() {
    let open = gate(Credentials::Off { loopback_hosts: true });
    for (host, fine) in [
        ("localhost:8080", true),
        ("127.0.0.1", true),
        ("[::1]:80", true),
        ("a.localhost", true),
        ("evil.example", false),
        ("127.0.0.1.evil.example", false),
        ("localhost.evil.example", false),
        ("10.0.0.1", false),
    ] {
        let head = head(&format!("GET / HTTP/1.1\nHost: {host}\n\n"));
        assert_eq!(
            open.origin(&head, &peer()).map_err(|refused| refused.status()).err(),
            (!fine).then_some(421),
            "{host}"
        );
        assert!(gate(Credentials::Needed).origin(&head, &peer()).is_ok());
    }
}

#[test]
fn a_page_of_another_site_is_refused_unless_it_is_on_the_list() {
    let gate = gate(Credentials::Needed);
    for (origin, answer) in [
        ("http://towpath.example:8080", Ok(0)),
        ("https://towpath.example:8080", Ok(0)),
        ("https://app.example", Ok(4)),
        ("http://app.example", Err(403)),
        ("https://app.example.evil", Err(403)),
        ("null", Err(403)),
        ("http://towpath.example", Err(403)),
        ("", Err(403)),
    ] {
        let head = head(&format!("GET / HTTP/1.1\nHost: towpath.example:8080\nOrigin: {origin}\n\n"));
        let answered =
            gate.origin(&head, &peer()).map(|extra| extra.len()).map_err(|refused| refused.status());
        assert_eq!(answered, answer, "{origin:?}");
    }
    let twice = head("GET / HTTP/1.1\nHost: a\nOrigin: http://a\nOrigin: http://a\n\n");
    assert_eq!(gate.origin(&twice, &peer()).unwrap_err().status(), 403);
}

#[test]
fn a_token_is_found_wherever_it_may_stand() {
    let gate = gate(Credentials::Needed);
    let follower = Need::Roles(&[Role::Follower]);
    for (headers, answer) in [
        (format!("Authorization: Bearer {TOKEN}\n"), Ok("f")),
        (format!("Authorization: bearer  {TOKEN}\n"), Ok("f")),
        (format!("Sec-WebSocket-Protocol: towpath.v1, towpath.bearer.{TOKEN}\n"), Ok("f")),
        (format!("Cookie: a=b; towpath_token={TOKEN}\n"), Ok("f")),
        (String::new(), Err(401)),
        (format!("Authorization: Basic {TOKEN}\n"), Err(401)),
        (format!("Authorization: Bearer {TOKEN}x\n"), Err(401)),
        (format!("Authorization: Bearer {TOKEN}\nAuthorization: Bearer {TOKEN}\n"), Err(401)),
        (format!("Cookie: xtowpath_token={TOKEN}\n"), Err(401)),
    ] {
        let text = format!("GET /v1 HTTP/1.1\nHost: a\n{headers}\n");
        let answered = admit(&gate, &text, follower).map(|who| who.name);
        assert_eq!(answered.as_deref(), answer.as_deref().map_err(|status: &u16| status), "{headers}");
    }
    let text = format!("GET /v1?token={TOKEN} HTTP/1.1\nHost: a\n\n");
    assert_eq!(admit(&gate, &text, follower), Err(401), "never in a URL");
    let text = format!("GET /v1 HTTP/1.1\nHost: a\nAuthorization: Bearer {TOKEN}\n\n");
    assert_eq!(admit(&gate, &text, Need::Roles(&[Role::Producer, Role::Pipe])), Err(403));
    assert_eq!(admit(&gate, "GET /healthz HTTP/1.1\nHost: a\n\n", Need::Nothing).unwrap().roles, []);
}

#[test]
fn a_cookie_alone_changes_nothing() {
    let gate = gate(Credentials::Needed);
    let post = format!("POST /v1 HTTP/1.1\nHost: a\nCookie: towpath_token={TOKEN}\n");
    assert_eq!(admit(&gate, &format!("{post}\n"), Need::Anybody), Err(401));
    assert!(admit(&gate, &format!("{post}Origin: http://a\n\n"), Need::Anybody).is_ok());
    let socket = format!(
        "GET /v1 HTTP/1.1\nHost: a\nConnection: upgrade\nUpgrade: websocket\nCookie: towpath_token={TOKEN}\n\n"
    );
    assert_eq!(admit(&gate, &socket, Need::Anybody), Err(401));
}

#[test]
fn a_ticket_is_good_once() {
    let gate = gate(Credentials::Needed);
    let who = gate.holder(TOKEN).unwrap();
    let ticket = gate.issue_ticket(&who).unwrap();
    let text = format!("GET /v1?ticket={} HTTP/1.1\nHost: a\n\n", ticket.reveal());
    assert_eq!(admit(&gate, &text, Need::Anybody).unwrap(), who);
    assert_eq!(admit(&gate, &text, Need::Anybody), Err(401));
    assert_eq!(format!("{ticket:?} {ticket}"), "[redacted] [redacted]");
}

#[test]
fn there_are_only_so_many_tickets() {
    let gate = gate(Credentials::Needed);
    let who = Principal::anonymous();
    for _ in 0..TICKETS_MAX {
        gate.issue_ticket(&who).unwrap();
    }
    assert_eq!(gate.issue_ticket(&who).unwrap_err().status(), 503);
}

#[test]
fn replaced_tokens_are_forgotten() {
    let gate = gate(Credentials::Needed);
    let pass = gate.holder(TOKEN).and_then(|who| who.pass).expect("a static token has one");
    let same = Tokens::line("g", &Secret::new("x".repeat(40)), &[Role::Follower], &[]).unwrap();
    let with_both = format!("{same}\n{}", line());
    assert!(!gate.set_tokens(Tokens::parse(&with_both).unwrap()), "it is there as it was");
    assert!(pass.is_good() && gate.pass(pass.mark()).is_some());
    assert!(gate.set_tokens(Tokens::default()));
    assert!(gate.holder(TOKEN).is_none() && !pass.is_good() && gate.pass(pass.mark()).is_none());
}

#[test]
fn without_authentication_everybody_is_an_admin() {
    let gate = gate(Credentials::Off { loopback_hosts: false });
    let who = admit(&gate, "GET / HTTP/1.1\nHost: a\n\n", Need::Roles(&[Role::Admin])).unwrap();
    assert!(who.has(Role::Admin) && who.may(Op::Manage, "anything"));
}

#[test]
fn a_preflight_is_answered_with_what_may_be_sent() {
    let gate = gate(Credentials::Needed);
    let head = head(
        "OPTIONS /v1 HTTP/1.1\nHost: a\nOrigin: https://app.example\nAccess-Control-Request-Method: PUT\n\n",
    );
    let response = gate.preflight(&head, "GET, PUT");
    assert_eq!(response.header_value("access-control-allow-methods"), Some("GET, PUT"));
    assert!(response.header_value("access-control-allow-headers").unwrap().contains("towpath-lease"));
}
