//! Any bytes as a message and as a value in MessagePack: nothing panics, and what is read is written and read
//! again the same.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use towpath::codec::{Bounds, msgpack};

fuzz_target!(|data: &[u8]| {
    let bytes = Bytes::copy_from_slice(data);
    let _ = msgpack::decode(&bytes, Bounds::default());
    if let Ok(value) = msgpack::decode_value(&bytes, Bounds::default()) {
        let mut once = Vec::new();
        msgpack::write_value(&mut once, &value);
        let wide = Bounds { bytes: usize::MAX, ..Bounds::default() };
        let again = msgpack::decode_value(&once.clone().into(), wide).expect("what was written can be read");
        let mut twice = Vec::new();
        msgpack::write_value(&mut twice, &again);
        // Bytes, not values: a number that is not one equals nothing, itself included.
        assert_eq!(once, twice);
    }
});
