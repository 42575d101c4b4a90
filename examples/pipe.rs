//! A byte stream that survives its connections: 8 MiB cross a path that is cut eight times, and arrive
//! whole and once.
//!
//!     cargo run --example pipe
//!
//! ```text
//! 8388608 bytes arrived, whole and once, across eight cuts
//! ```

use std::io::{Read, Write};
use std::thread;

use sha2::{Digest, Sha256};
use towpath::client::pipe::{Pipe, PipeListener};
use towpath::rt::Rt;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rt = Rt::real();
    let listener = PipeListener::bind(&rt, "127.0.0.1:0")?;
    let ours = Pipe::connect(&rt, listener.url(), "demo")?;
    let theirs = listener.accept()?.pipe;

    let sent: Vec<u8> = (0..8 << 20).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let expected = Sha256::digest(&sent);
    let writer = ours.clone();
    let writing = thread::spawn(move || {
        (&writer).write_all(&sent)?;
        writer.shutdown()
    });

    let mut hash = Sha256::new();
    let (mut buffer, mut got) = (vec![0; 1 << 20], 0);
    for cuts in 0.. {
        let count = (&theirs).take(1 << 20).read(&mut buffer)?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
        got += count;
        if cuts < 8 {
            ours.reconnect_now(); // what a lost network does
        }
    }
    writing.join().expect("the writer does not panic")?;
    assert_eq!(hash.finalize(), expected, "not a byte lost, none doubled");
    println!("{got} bytes arrived, whole and once, across eight cuts");
    Ok(())
}
