//! Any bytes as a message and as a value in JSON: nothing panics, and what is read is written and read again the
//! same.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use towpath::codec::{Bounds, json};

fuzz_target!(|data: &[u8]| {
    let bytes = Bytes::copy_from_slice(data);
    let _ = json::decode(&bytes, Bounds::default());
    if let Ok(value) = json::decode_value(&bytes, Bounds::default()) {
        let mut again = Vec::new();
        json::write_value(&mut again, &value);
        assert_eq!(json::decode_value(&again.into(), Bounds { bytes: usize::MAX, ..Bounds::default() }), Ok(value));
    }
});
