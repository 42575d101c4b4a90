use super::*;
use std::os::unix::net::UnixStream as StdStream;

fn pair(role: Role) -> (Carrier, StdStream) {
    let (near, far) = StdStream::pair().expect("a pair");
    near.set_nonblocking(true).expect("a socket option");
    let socket = Socket::Unix(UnixStream::from_std(near));
    (Carrier::websocket(socket, None, Vec::new(), role, 7), far)
}

fn is_later(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

/// Writes all of it, whatever the socket takes at once.
fn write_all(carrier: &mut Carrier, mut bytes: &[u8], mut wait: impl FnMut()) {
    while !bytes.is_empty() || carrier.has_more() {
        let (one, other) = bytes.split_at(bytes.len().min(1_001));
        let written = match bytes.is_empty() {
            true => carrier.flush().map(|()| 0),
            false => carrier.write(&[IoSlice::new(one), IoSlice::new(other)]),
        };
        match written {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if is_later(&error) => wait(),
            Err(error) => panic!("{error}"),
        }
    }
}

/// A ping that comes while a message is half on its way is answered behind it, and nothing is torn.
#[test]
fn nothing_comes_between_the_pieces_of_a_message() {
    for role in [Role::Server, Role::Client] {
        let (mut carrier, far) = pair(role);
        let payload: Vec<u8> = (0..3_000_000_u32).map(|at| (at ^ (at >> 8)) as u8).collect();
        let mut ping = Vec::new();
        let (theirs, mask) = match role {
            Role::Server => (Role::Client, Some([9, 8, 7, 6])),
            Role::Client => (Role::Server, None),
        };
        websocket::write_frame(&mut ping, Outgoing::Ping(b"there?"), mask);
        let (mut stream, mut pongs, mut left) = (Vec::new(), 0, payload.as_slice());
        let mut reader = Reader::new(theirs, MESSAGE_MAX);
        let mut buffer = vec![0; 10_000];
        while stream.len() < payload.len() || pongs < 3 {
            // As much as goes, so that it stops in the middle of something.
            while !left.is_empty() {
                match carrier.write(&[IoSlice::new(left)]) {
                    Ok(count) => left = &left[count..],
                    Err(error) if is_later(&error) => break,
                    Err(error) => panic!("{error}"),
                }
            }
            if pongs < 3 && stream.len() >= pongs * 500_000 {
                (&far).write_all(&ping).expect("it is taken");
                let read = carrier.read(&mut [0; 100]).expect_err("a ping is no frame");
                assert!(is_later(&read));
            }
            if left.is_empty()
                && carrier.has_more()
                && let Err(error) = carrier.flush()
            {
                assert!(is_later(&error), "{error}");
            }
            let count = (&far).read(&mut buffer).expect("it comes");
            let mut found = Vec::new();
            reader.feed_in_place(&mut buffer[..count], &mut found).expect("frames");
            for found in found {
                match found {
                    InPlace::Bytes(range) => stream.extend_from_slice(&buffer[range]),
                    InPlace::Message(Message::Pong(payload)) => {
                        assert_eq!(payload, b"there?");
                        pongs += 1;
                    }
                    InPlace::Message(other) => panic!("{other:?}"),
                }
            }
        }
        assert!(stream == payload);
    }
}

#[test]
fn what_one_role_writes_the_other_reads() {
    let payload: Vec<u8> = (0..700_000_u32).map(|at| (at ^ (at >> 8)) as u8).collect();
    for role in [Role::Server, Role::Client] {
        let (mut carrier, far) = pair(role);
        let theirs = if role == Role::Server { Role::Client } else { Role::Server };
        far.set_nonblocking(true).expect("a socket option");
        let socket = Socket::Unix(UnixStream::from_std(far));
        let mut other = Carrier::websocket(socket, None, Vec::new(), theirs, 8);
        let (mut got, mut buffer) = (Vec::new(), vec![0; 5_000]);
        let mut take = |got: &mut Vec<u8>| {
            while let Ok(count @ 1..) = other.read(&mut buffer) {
                got.extend_from_slice(&buffer[..count]);
            }
        };
        write_all(&mut carrier, &payload, || take(&mut got));
        take(&mut got);
        assert!(got == payload, "{} of {}", got.len(), payload.len());
    }
}
