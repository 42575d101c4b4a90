//! Takes the framing off a request body.

use super::head::{Framing, Refusal, judge_line};

/// A body being read: by length, or chunk by chunk.
///
/// Invariant: a chunked body ends exactly behind the empty line of its trailers; what follows is the
/// next request and is not touched.
#[derive(Clone, Debug)]
pub struct BodyReader {
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    /// This many bytes to come.
    Length(u64),
    /// In a line that gives a chunk's size: what of it has come.
    Size { line: Vec<u8> },
    /// In a chunk's bytes.
    Chunk { left: u64 },
    /// Behind a chunk's bytes: CR LF is owed, `seen` of it has come.
    ChunkEnd { cr: bool },
    /// In the trailers: the current line, and how many bytes of them there were.
    Trailers { line: Vec<u8>, total: usize },
    /// Whole.
    End,
}

/// A size line longer than this carries extensions nobody sends.
const SIZE_LINE_MAX: usize = 256;
/// Trailers are read and dropped; this is how many bytes of them.
const TRAILERS_MAX: usize = 4 * 1024;

const fn bad(detail: &'static str) -> Refusal {
    Refusal { status: 400, code: "bad_body", detail }
}

impl BodyReader {
    /// A body about to be read.
    pub fn new(framing: Framing) -> BodyReader {
        let state = match framing {
            Framing::Empty | Framing::Length(0) => State::End,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size { line: Vec::new() },
        };
        BodyReader { state }
    }

    /// Whether the whole body has been read.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::End)
    }

    /// Takes from `input` what belongs to the body, appends its content to `out`, and answers how many
    /// bytes were taken. Stops behind the body's end, and when `out` holds `room` bytes or more.
    pub fn read(&mut self, input: &[u8], out: &mut Vec<u8>, room: usize) -> Result<usize, Refusal> {
        let mut taken = 0;
        while taken < input.len() && out.len() < room && !self.is_done() {
            taken += self.step(&input[taken..], out, room)?;
        }
        Ok(taken)
    }

    fn step(&mut self, input: &[u8], out: &mut Vec<u8>, room: usize) -> Result<usize, Refusal> {
        match &mut self.state {
            State::End => Ok(0),
            State::Length(left) => {
                let take = take(*left, input, room - out.len());
                out.extend_from_slice(&input[..take]);
                *left -= take as u64;
                if *left == 0 {
                    self.state = State::End;
                }
                Ok(take)
            }
            State::Chunk { left } => {
                let take = take(*left, input, room - out.len());
                out.extend_from_slice(&input[..take]);
                *left -= take as u64;
                if *left == 0 {
                    self.state = State::ChunkEnd { cr: false };
                }
                Ok(take)
            }
            State::ChunkEnd { cr } => {
                match (input[0], *cr) {
                    (b'\r', false) => *cr = true,
                    (b'\n', true) => self.state = State::Size { line: Vec::new() },
                    _ => return Err(bad("a chunk longer than its size")),
                }
                Ok(1)
            }
            State::Size { line } => {
                let whole =
                    push_line(line, input[0], SIZE_LINE_MAX, bad("a chunk size line over its limit"))?;
                if whole {
                    self.state = match chunk_size(line)? {
                        0 => State::Trailers { line: Vec::new(), total: 0 },
                        left => State::Chunk { left },
                    };
                }
                Ok(1)
            }
            State::Trailers { line, total } => {
                *total += 1;
                let over = bad("trailers over their limit");
                if *total > TRAILERS_MAX {
                    return Err(over);
                }
                if push_line(line, input[0], TRAILERS_MAX, over)? {
                    match line.is_empty() {
                        true => self.state = State::End,
                        false => {
                            judge_line(line).map_err(|refusal| bad(refusal.detail))?;
                            line.clear();
                        }
                    }
                }
                Ok(1)
            }
        }
    }
}

fn take(left: u64, input: &[u8], room: usize) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(input.len()).min(room)
}

/// Adds one byte to a line that must end in CR LF; true once it has (and `line` holds neither).
fn push_line(line: &mut Vec<u8>, byte: u8, max: usize, over: Refusal) -> Result<bool, Refusal> {
    match (line.last(), byte) {
        (Some(b'\r'), b'\n') => {
            line.pop();
            return Ok(true);
        }
        (Some(b'\r'), _) => return Err(bad("a carriage return without a line feed")),
        (_, b'\n') => return Err(bad("a line feed without a carriage return")),
        _ if line.len() >= max => return Err(over),
        _ => line.push(byte),
    }
    Ok(false)
}

/// `chunk-size [ chunk-ext ]`; extensions are checked for bytes that have no place, then ignored.
fn chunk_size(line: &[u8]) -> Result<u64, Refusal> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (size, extension) = line.split_at(digits);
    if size.is_empty() || size.len() > 15 {
        return Err(bad("a chunk size that is not a number"));
    }
    match extension {
        [] => {}
        [b';', rest @ ..] if !rest.is_empty() && rest.iter().all(|&byte| (0x20..0x7f).contains(&byte)) => {}
        _ => return Err(bad("a chunk size that is not a number")),
    }
    let size = std::str::from_utf8(size).expect("only hex digits");
    Ok(u64::from_str_radix(size, 16).expect("at most fifteen hex digits"))
}
