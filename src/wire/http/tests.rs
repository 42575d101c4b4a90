use super::*;

fn read(bytes: &[u8]) -> Result<Option<(Head, usize)>, Refusal> {
    HeadReader::default().read(bytes, &HeadLimits::default())
}

#[test]
fn a_head_is_the_same_however_it_is_cut() {
    let bytes =
        b"POST /v1/streams/a%20b/messages?x=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /";
    let (whole, end) = read(bytes).unwrap().unwrap();
    assert_eq!((whole.path.as_str(), whole.query.as_str()), ("/v1/streams/a%20b/messages", "x=1"));
    assert_eq!((whole.framing, whole.keep_alive), (Framing::Length(3), true));
    assert_eq!(&bytes[end..], b"abcGET /");
    let mut reader = HeadReader::default();
    for upto in 0..end {
        assert!(reader.read(&bytes[..upto], &HeadLimits::default()).unwrap().is_none(), "{upto}");
    }
    let (again, at) = reader.read(&bytes[..end], &HeadLimits::default()).unwrap().unwrap();
    assert_eq!((again.path, at), (whole.path, end));
}

#[test]
fn one_empty_line_before_a_request_is_forgiven() {
    let (_, end) = read(b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap().unwrap();
    assert_eq!(end, 29);
    assert!(read(b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").is_err());
}

#[test]
fn a_chunked_body_ends_where_it_ends() {
    let bytes = b"3;a=b\r\nabc\r\nA\r\n0123456789\r\n0\r\nX-T: 1\r\n\r\nGET /";
    for piece in 1..bytes.len() {
        let mut reader = BodyReader::new(Framing::Chunked);
        let mut out = Vec::new();
        let mut taken = 0;
        while !reader.is_done() {
            let end = (taken + piece).min(bytes.len());
            taken += reader.read(&bytes[taken..end], &mut out, usize::MAX).unwrap();
        }
        assert_eq!((&out[..], &bytes[taken..]), (&b"abc0123456789"[..], &b"GET /"[..]));
    }
}

#[test]
fn a_malformed_chunk_is_refused() {
    for body in [
        "x\r\n",
        "\r\n",
        "3\nabc",
        "3 \r\nabc\r\n",
        "-1\r\n",
        "+3\r\nabc",
        "0x3\r\nabc",
        "3\r\nabcd\r\n",
        "3\r\nabc\n0",
        "3\r\nabc\rX",
        "1000000000000000\r\n",
        "3;\r\nabc",
        "3;a=\x01\r\nabc",
        "0\r\nX : 1\r\n\r\n",
        "0\r\n folded\r\n\r\n",
        "0\r\nnocolon\r\n\r\n",
        "0\n\n",
        "3\r\r\nabc",
    ] {
        let mut out = Vec::new();
        assert!(BodyReader::new(Framing::Chunked).read(body.as_bytes(), &mut out, 100).is_err(), "{body:?}");
    }
}

#[test]
fn nothing_from_outside_begins_a_header_line() {
    let mut out = Vec::new();
    let how = ResponseForm {
        wall: crate::state::time::Wall(784_111_777_000_000),
        body: Framed::Whole,
        close: true,
        head_only: false,
    };
    let body = Response::new(200)
        .header("location", "/a\r\nset-cookie: b")
        .body(Body::Static(b"hi"))
        .write(&mut out, how);
    assert_eq!(body.as_slice(), b"hi");
    let text = String::from_utf8(out).unwrap();
    assert_eq!(
        text,
        "HTTP/1.1 200 OK\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\nlocation: /a  set-cookie: b\r\ncontent-length: 2\r\nconnection: close\r\n\r\n"
    );
}

#[test]
fn a_dialer_reads_the_answer_and_what_follows_it() {
    let mut reader = ResponseReader::default();
    assert_eq!(
        reader.feed(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 101 Sw").map(|found| found.is_none()),
        Ok(true)
    );
    let (head, rest) = reader.feed(b"itching\r\nUpgrade: x\r\n\r\nearly").unwrap().unwrap();
    assert_eq!((head.status, head.header("upgrade"), &rest[..]), (101, Some("x"), &b"early"[..]));
}

#[test]
fn a_date_is_the_calendars() {
    let mut seconds = 0;
    // A step that meets every day of the year and every time of the day sooner or later.
    while seconds < 253_402_300_799 {
        let stamp = jiff::Timestamp::from_second(seconds).unwrap();
        let expected = stamp.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let date = http_date(crate::state::time::Wall(seconds * 1_000_000 + 999_999));
        assert_eq!(std::str::from_utf8(&date), Ok(expected.as_str()));
        seconds += 8_640_937;
    }
    let date = |micros| http_date(crate::state::time::Wall(micros)).to_vec();
    assert_eq!(date(951_782_400_000_000), b"Tue, 29 Feb 2000 00:00:00 GMT");
    assert_eq!(date(-1), b"Thu, 01 Jan 1970 00:00:00 GMT");
    assert_eq!(date(i64::MAX), b"Fri, 31 Dec 9999 23:59:59 GMT");
}
