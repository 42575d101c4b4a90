//! Any message as a handshake request and as a response: nothing panics, and a request that is read is decided.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use towpath::codec::{Bounds, Codec};
use towpath::state::handshake::{Known, Request, Response, SecondClient, decide};

fuzz_target!(|data: &[u8]| {
    let bytes = Bytes::copy_from_slice(data);
    for codec in [Codec::Json, Codec::Binary] {
        let Ok(envelope) = codec.decode(&bytes, Bounds::default()) else { continue };
        let _ = Response::read(&envelope);
        if let Ok(request) = Request::read(&envelope) {
            let known = Known { session: "s", connected: true, received: 3, oldest: 2, next: 4 };
            for known in [None, Some(known)] {
                let _ = decide(&request, known, SecondClient::IsRefused, true);
            }
        }
    }
});
