//! Any bytes as a request head: it is read, refused or asked for more of, the same however it was cut into pieces,
//! and what was accepted holds none of what must never be accepted.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towpath::wire::http::{Head, HeadLimits, HeadReader, Refusal};

fuzz_target!(|data: &[u8]| {
    let (cut, data) = data.split_first().map_or((0, data), |(cut, rest)| (usize::from(*cut), rest));
    let limits = HeadLimits::default();
    let whole = HeadReader::default().read(data, &limits);
    let (mut reader, mut pieces) = (HeadReader::default(), Ok(None));
    // It is handed everything that has arrived, each time more of it.
    for end in [cut.min(data.len()), data.len()] {
        pieces = reader.read(&data[..end], &limits);
        if !matches!(pieces, Ok(None)) {
            break;
        }
    }
    let told = |read: &Result<Option<(Head, usize)>, Refusal>| match read {
        Ok(Some((head, used))) => Ok(Some((head.path.clone(), head.host.clone(), head.framing, *used))),
        Ok(None) => Ok(None),
        Err(refusal) => Err((refusal.status, refusal.code)),
    };
    assert_eq!(told(&whole), told(&pieces), "a head means the same however it arrives");
    if let Ok(Some((head, used))) = whole {
        assert!(used <= data.len() && data[..used].ends_with(b"\n"), "it says how much it read");
        assert!(!head.path.bytes().any(|byte| byte <= b' ' || byte == 0x7f), "no control byte in a path");
        assert!(head.headers("host").count() <= 1, "one Host at most");
        let both = head.has("content-length") && head.has("transfer-encoding");
        assert!(!both, "never both framings");
    }
});
