use super::*;

fn read(role: Role, bytes: &[u8]) -> Result<Vec<Message>, Violation> {
    let mut out = Vec::new();
    Reader::new(role, 1 << 20).feed(bytes, &mut out).map(|()| out)
}

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut head = [0; 14];
    let len = write_header(&mut head, first, payload.len(), None);
    [&head[..len], payload].concat()
}

#[test]
fn both_roles_read_what_the_other_writes() {
    for len in [0, 1, 7, 125, 126, 127, 65_535, 65_536, 100_000] {
        let payload = "x".repeat(len);
        for (reader, mask) in [(Role::Server, Some([1, 2, 3, 250])), (Role::Client, None)] {
            let mut bytes = Vec::new();
            write_frame(&mut bytes, Outgoing::Text(payload.as_bytes()), mask);
            write_frame(&mut bytes, Outgoing::Ping(b"p"), mask);
            write_frame(&mut bytes, Outgoing::Close(1000, "bye"), mask);
            let expected = [
                Message::Text(payload.clone()),
                Message::Ping(b"p".into()),
                Message::Close(Some((1000, "bye".into()))),
            ];
            assert_eq!(read(reader, &bytes).unwrap(), expected);
            let mut pieces = Reader::new(reader, 1 << 20);
            let mut out = Vec::new();
            for piece in bytes.chunks(3) {
                pieces.feed(piece, &mut out).unwrap();
            }
            assert_eq!(out, expected);
        }
    }
}

#[test]
fn what_breaks_the_protocol_gets_its_code() {
    let cases: &[(&str, Vec<u8>, u16)] = &[
        ("a reserved bit", frame(0xc1, b""), 1002),
        ("a reserved data opcode", frame(0x83, b""), 1002),
        ("a reserved control opcode", frame(0x8b, b""), 1002),
        ("a fragmented ping", frame(0x09, b""), 1002),
        ("a long ping", frame(0x89, &[0; 126]), 1002),
        ("a continuation of nothing", frame(0x80, b"x"), 1002),
        ("a message inside a message", [frame(0x01, b"a"), frame(0x81, b"b")].concat(), 1002),
        ("a length in too many bytes", vec![0x82, 126, 0, 5, 1, 2, 3, 4, 5], 1002),
        ("a length above 2^63", vec![0x82, 127, 255, 0, 0, 0, 0, 0, 0, 0], 1002),
        ("a masked frame from a server", vec![0x81, 0x80, 1, 2, 3, 4], 1002),
        ("a close of one byte", frame(0x88, &[3]), 1002),
        ("a close that may not be sent", frame(0x88, &1005u16.to_be_bytes()), 1002),
        ("a close whose reason is not text", frame(0x88, &[3, 232, 0xff]), 1007),
        ("text that is not UTF-8", frame(0x81, &[0xc3, 0x28]), 1007),
        ("text that ends inside a character", frame(0x81, &[0xc3]), 1007),
        ("rubbish in a frame that has not ended", frame(0x01, &[0xff]), 1007),
        ("a message over the limit", vec![0x82, 127, 0, 0, 0, 0, 0, 16, 0, 1], 1009),
    ];
    for (name, bytes, code) in cases {
        assert_eq!(read(Role::Client, bytes).unwrap_err().code, *code, "{name}");
    }
    assert_eq!(read(Role::Server, &frame(0x81, b"x")).unwrap_err().code, 1002, "a frame without a mask");
}

#[test]
fn rubbish_is_refused_before_its_frame_ends() {
    let mut reader = Reader::new(Role::Client, 1 << 20);
    let mut out = Vec::new();
    reader.feed(&[0x81, 100], &mut out).unwrap();
    reader.feed("\u{1f980}".as_bytes().split_at(2).0, &mut out).unwrap();
    assert_eq!(reader.feed(&[0xff], &mut out), Err(NOT_UTF8));
    assert_eq!(reader.feed(b"anything", &mut out), Ok(()), "what follows is ignored");
    assert!(out.is_empty());
}

#[test]
fn control_frames_may_stand_between_fragments() {
    let bytes = [
        frame(0x01, "ü".as_bytes().split_at(1).0),
        frame(0x89, b"?"),
        frame(0x00, &"ü".as_bytes()[1..]),
        frame(0x80, b"!"),
    ];
    assert_eq!(
        read(Role::Client, &bytes.concat()).unwrap(),
        [Message::Ping(b"?".into()), Message::Text("ü!".into())]
    );
}

#[test]
fn a_key_is_answered_only_if_it_is_one() {
    // The example of RFC 6455 1.3.
    assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ==").as_deref(), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    for key in ["", "x", "dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZSBub25jZSE="] {
        assert_eq!(accept_key(key), None, "{key:?}");
    }
}

#[test]
fn a_stream_in_binary_messages_is_found_where_it_lies() {
    let payload: Vec<u8> = (0..200_000_u32).map(|at| (at ^ (at >> 8)) as u8).collect();
    for (role, mask) in [(Role::Server, Some([1, 2, 3, 250])), (Role::Client, None)] {
        let mut bytes = Vec::new();
        // A message in one go, a ping, one whose payload comes in odd pieces, an empty one, and one in two
        // frames with a ping between.
        write_frame(&mut bytes, Outgoing::Binary(&payload[..100]), mask);
        write_frame(&mut bytes, Outgoing::Ping(b"one"), mask);
        write_binary_head(&mut bytes, payload.len() - 200, mask);
        let mut at = 0;
        for piece in payload[100..payload.len() - 100].chunks(33_333) {
            write_payload(&mut bytes, piece, mask, at);
            at += piece.len();
        }
        write_frame(&mut bytes, Outgoing::Binary(b""), mask);
        for (first, from) in [(0x02, payload.len() - 100), (0x80, payload.len() - 50)] {
            let mut head = [0; 14];
            let len = write_header(&mut head, first, 50, mask);
            bytes.extend_from_slice(&head[..len]);
            write_payload(&mut bytes, &payload[from..from + 50], mask, 0);
            write_frame(&mut bytes, Outgoing::Ping(b"two"), mask);
        }
        for piece in [1, 7, 4096, bytes.len()] {
            let mut reader = Reader::new(role, 1 << 20);
            let (mut stream, mut messages) = (Vec::new(), Vec::new());
            for fed in bytes.clone().chunks_mut(piece) {
                let mut found = Vec::new();
                reader.feed_in_place(fed, &mut found).unwrap();
                for found in found {
                    match found {
                        InPlace::Bytes(range) => stream.extend_from_slice(&fed[range]),
                        InPlace::Message(message) => messages.push(message),
                    }
                }
            }
            assert!(stream == payload, "{} of {} bytes in pieces of {piece}", stream.len(), payload.len());
            let pings = [b"one", b"two", b"two"].map(|ping| Message::Ping(ping.to_vec()));
            assert_eq!(messages, pings);
            assert_eq!(reader.held(), 0);
        }
    }
}

#[test]
fn what_breaks_the_protocol_breaks_it_in_place_as_well() {
    let text = frame(0x81, b"no");
    let mut found = Vec::new();
    Reader::new(Role::Client, 100).feed_in_place(&mut text.clone(), &mut found).unwrap();
    assert_eq!(found, [InPlace::Message(Message::Text("no".into()))]);
    for (mut bytes, code) in [
        (frame(0x82, &[0; 101]), close::TOO_BIG),
        ([frame(0x02, b"a"), frame(0x82, b"b")].concat(), close::PROTOCOL),
        (frame(0x80, b"x"), close::PROTOCOL),
    ] {
        let mut reader = Reader::new(Role::Client, 100);
        assert_eq!(reader.feed_in_place(&mut bytes, &mut Vec::new()).unwrap_err().code, code);
        let mut found = Vec::new();
        assert_eq!(reader.feed_in_place(&mut text.clone(), &mut found), Ok(()));
        assert_eq!(found, [], "nothing is read after that");
    }
}
