//! The fuzz targets, each for a moment: seeds, seeds that were damaged, and noise, the same every time.
//!
//! Invariant: every file of `tests/fuzz/fuzz_targets` is a program of `tests/fuzz/Cargo.toml` and is run
//! here. The files are those that libFuzzer runs (`make fuzz`), unchanged: what they import from
//! `libfuzzer_sys` is [`fuzz_target`] below.

use std::collections::BTreeSet;
use std::path::Path;

use crate::effort::cycles;

/// Stands for libFuzzer's macro: makes a function of the target's body.
macro_rules! fuzz_target {
    (|$data:ident: &[u8]| $body:block) => {
        pub(crate) fn run($data: &[u8]) {
            $body
        }
    };
}
pub(crate) use fuzz_target;

/// Includes targets and lists them.
macro_rules! targets {
    ($($path:literal $name:ident $seeds:expr;)*) => {
        $(
            #[path = $path]
            #[allow(unused_attributes, unused_imports, reason = "`no_main` and the import are for the program it is elsewhere")]
            mod $name;
        )*
        const TARGETS: &[Target] = &[$(Target { name: stringify!($name), run: $name::run, seeds: $seeds }),*];
    };
}

struct Target {
    name: &'static str,
    run: fn(&[u8]),
    /// Inputs that get far; damage starts from these.
    seeds: &'static [&'static [u8]],
}

const RIVER: &[u8] = br#"{"id":"m1","from":"a","to":"b","seq":0,"ack":0,"payload":{"ok":true},"streamId":"s","controlFlags":0}"#;
/// The token of some position.
const TOKEN: &[u8] = b"040g40o40000008000000000016g000008000009";
const HELLO: &[u8] = br#"{"id":"m1","from":"a","to":"b","seq":0,"ack":0,"payload":{"type":"HANDSHAKE_REQ","protocolVersion":"v2.0","sessionId":"s","expectedSessionState":{"nextExpectedSeq":0,"nextSentSeq":0},"metadata":{}},"streamId":"h","controlFlags":0}"#;

/// A new pipe to "a:1", with a token.
const PIPE_HELLO: &[u8] =
    b"\x10\x00\x00\x2d\x01\x01________________\x00\x03tok\x00\0\0\0\0\0\0\0\x01\0\0\0\0\0\x01\0\0\x00\x03a:1";
/// Somebody comes back, and proves it with nonsense.
const PIPE_PROOF: &[u8] = b"\x10\x00\x00\x25\x01\x01________________\0\0\x01iiiiiiiiiiiiiiii\
    \x12\x00\x00\x39\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\x01\0\0________________________________";
/// An acknowledgement, bytes, a question, the same bytes and more, the end, and a reason.
const PIPE_CARRIED: &[u8] = b"\x02\x00\x00\x10\0\0\0\0\0\0\0\x05\0\0\0\0\0\x01\0\0\
    \x01\x00\x00\x0b\0\0\0\0\0\0\0\0abc\x05\x00\x00\x08\0\0\0\0\0\0\0\x09\
    \x01\x00\x00\x0c\0\0\0\0\0\0\0\x01bcde\x80\x00\x00\x01?\x03\x00\x00\x08\0\0\0\0\0\0\0\x05\
    \x04\x00\x00\x06\0\x01\0\x02ok";

targets! {
    "../fuzz/fuzz_targets/river_json.rs" river_json &[RIVER, HELLO, b"[1.5e300,null,\"\\ud83d\\ude00\"]"];
    "../fuzz/fuzz_targets/river_msgpack.rs" river_msgpack &[b"\x82\xa2id\xa1m\xa3seq\xce\x00\x01\x00\x00", b"\x93\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00\xc0\xc4\x02hi"];
    "../fuzz/fuzz_targets/river_handshake.rs" river_handshake &[HELLO, RIVER];
    "../fuzz/fuzz_targets/http_head.rs" http_head &[
        b"\x10GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x30POST /v1/streams/a?b=c HTTP/1.1\r\nHost: a:1\r\nContent-Length: 3\r\n\r\nabc",
        b"\x05PUT http://h/p HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"\xffGET /%41 HTTP/1.0\r\nHost: [::1]\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"\x00OPTIONS * HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nX: \t1 \r\n\r\n",
    ];
    "../fuzz/fuzz_targets/websocket.rs" websocket &[
        b"\x02\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58",
        b"\x03\x81\x05Hello",
        b"\x07\x01\x03Hel\x89\x01p\x80\x02lo",
        b"\x05\x82\x7e\x01\x00________",
        b"\x09\x88\x04\x03\xe8ok",
        b"\x0b\x81\x04\xf0\x9f\x92\xa9\x8a\x00",
    ];
    "../fuzz/fuzz_targets/pipe_frames.rs" pipe_frames &[PIPE_HELLO, PIPE_PROOF, PIPE_CARRIED];
    "../fuzz/fuzz_targets/pipe_peer.rs" pipe_peer &[PIPE_HELLO, PIPE_PROOF, PIPE_CARRIED];
    "../fuzz/fuzz_targets/cursor_token.rs" cursor_token &[b"-1", b"now", TOKEN, b"0000000000000000000000000000000000000000"];
    "../fuzz/fuzz_targets/config.rs" config &[
        b"[server]\nlisten = \"127.0.0.1:0\"\nio_threads = 2\nallow_origins = [\"https://a\"]\n",
        b"[limits]\nhead = \"16KiB\"\nhead_wait = \"1min30s\"\n[log]\nlevel = 'info'\n",
        b"[pipes]\nallow = [\"*:443\", \"10.0.0.0/8:22\"]\ngrace = \"off\"\n[server]\nlisten_also = [\"unix:/a\"]\n",
    ];
}

/// Numbers that are the same every time (a linear congruence; the upper half of each is good enough here).
struct Noise(u64);

impl Noise {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// One input: a seed, a damaged one, two glued together, or noise.
fn input(target: &Target, noise: &mut Noise) -> Vec<u8> {
    let mut below = |n: usize| noise.below(n.max(1));
    let seed = |at: usize| target.seeds.get(at).copied().unwrap_or_default();
    let mut bytes = seed(below(target.seeds.len())).to_vec();
    match below(8) {
        0 => bytes = (0..below(64)).map(|_| below(256) as u8).collect(),
        1 => bytes.truncate(below(bytes.len() + 1)),
        2 => {
            let cut = below(bytes.len() + 1);
            bytes.truncate(cut);
            let other = seed(below(target.seeds.len()));
            bytes.extend_from_slice(&other[below(other.len() + 1)..]);
        }
        _ => {
            for _ in 0..=below(6) {
                let at = below(bytes.len());
                match below(4) {
                    0 if !bytes.is_empty() => _ = bytes.remove(at),
                    1 => bytes.insert(at, below(256) as u8),
                    2 if !bytes.is_empty() => bytes[at] ^= 1 << below(8),
                    _ if !bytes.is_empty() => bytes[at] = b"\x00\xff0\"{[}]:,"[below(10)],
                    _ => {}
                }
            }
        }
    }
    bytes
}

#[test]
fn every_fuzz_target_survives_a_slice_of_damaged_input() {
    let inputs = cycles(3_000, 300_000);
    for target in TARGETS {
        for seed in target.seeds {
            (target.run)(seed);
        }
        let mut noise = Noise(7);
        for _ in 0..inputs {
            let bytes = input(target, &mut noise);
            let survived = std::panic::catch_unwind(|| (target.run)(&bytes));
            assert!(survived.is_ok(), "{} did not survive {}", target.name, bytes.escape_ascii());
        }
    }
}

#[test]
fn the_seeds_of_pipes_are_frames_to_their_last_byte() {
    use towpath::codec::pipe::Decoder;
    for (seed, frames) in [(PIPE_HELLO, 1), (PIPE_PROOF, 2), (PIPE_CARRIED, 6)] {
        let (mut decoder, mut input, mut read) = (Decoder::new(), seed, 0);
        while decoder.next(&mut input).expect("a frame").is_some() {
            read += 1;
        }
        assert!(read == frames && decoder.is_between_frames(), "{read} frames: {}", seed.escape_ascii());
    }
}

#[test]
fn every_fuzz_target_is_a_program_and_is_run_here() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz");
    let files: BTreeSet<String> = std::fs::read_dir(folder.join("fuzz_targets"))
        .expect("the targets' folder")
        .flatten()
        .map(|file| file.path().file_stem().expect("a name").to_string_lossy().into_owned())
        .collect();
    let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).expect("a manifest");
    for name in &files {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name} is no program");
        assert!(TARGETS.iter().any(|target| target.name == name), "{name} is not run in tests/it/fuzz.rs");
    }
    assert_eq!(files.len(), TARGETS.len(), "{files:?}");
}
