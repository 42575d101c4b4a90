//! Any bytes from the other end of a pipe, its handshake first: nothing panics, nobody gets in without a proof,
//! and no peer makes an end hold more than its window.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towpath::codec::pipe::{Decoder, Piece};
use towpath::rt::Moment;
use towpath::state::pipe::hello::{Answered, Answering};
use towpath::state::pipe::{Pipe, Settings, Side};
use towpath::state::replay::Pool;

const WINDOW: u64 = 64 * 1024;
const NOW: Moment = Moment(1_000_000);

/// The frames of a handshake.
fn greet(data: &[u8]) {
    let (mut decoder, mut input) = (Decoder::new(), data);
    let mut answering = Answering::new([1; 16]);
    let mut challenged = false;
    while let Ok(Some(Piece::Greeting(greeting))) = decoder.next(&mut input) {
        match answering.step(greeting, [2; 16]) {
            Ok(Answered::Challenge(..)) => challenged = true,
            Ok(Answered::Claim(claim)) => {
                assert!(challenged, "a proof is of something that was asked");
                let secret = towpath::state::pipe::proof::Secret([3; 32]);
                assert!(!claim.holds(&secret), "nobody guesses a proof");
                return;
            }
            Ok(Answered::New(_)) | Err(_) => return,
        }
    }
}

/// The frames of a carrier that is attached.
fn carry(data: &[u8], side: Side) {
    let mut pool = Pool::new(4);
    let mut pipe = Pipe::new(Settings { window: WINDOW, ..Settings::new(side) });
    pipe.attach(NOW, 1, 0, WINDOW, &mut pool).expect("a carrier that claims nothing");
    assert_eq!(pipe.write(b"something to say", &mut pool), 16, "the window is larger");
    let (mut decoder, mut input) = (Decoder::new(), data);
    while let Ok(Some(piece)) = decoder.next(&mut input) {
        pipe.heard(NOW);
        let done = match piece {
            Piece::Data { off, bytes } => pipe.data(1, off, bytes).map(<[u8]>::to_vec).map(|fresh| {
                pipe.hold(NOW, &fresh, &mut pool);
            }),
            Piece::Control(control) => pipe.control(NOW, 1, control, &mut pool),
            Piece::Greeting(_) => return,
        };
        if done.is_err() {
            return;
        }
        assert!(pipe.unread() <= WINDOW, "nobody fills more than the window");
        while pipe.next(NOW, 1_000).is_some() {}
    }
}

fuzz_target!(|data: &[u8]| {
    greet(data);
    carry(data, Side::Server);
    carry(data, Side::Client);
});
