//! The frames of a pipe: bytes to values and back.
//!
//! A frame is one byte that says what it is, three bytes of length (big-endian, of what follows),
//! and that many bytes. The bytes of a DATA frame are handed on as they arrive, each piece with its
//! own offset, so that nothing is put together and a frame that is cut in the middle still counts as
//! far as it came. Every other frame is small, and its length is checked before room is made for it.
//! Types with the high bit set that are not known are skipped; others that are not known are errors.
//! A known frame that is longer than its fields is fine: a newer peer may say more.

pub mod outbox;

use crate::state::pipe::hello::{Auth, Challenge, Greeting, Hello, Proof, Refuse, Welcome, Wish};
use crate::state::pipe::proof::{Secret, Stand};
use crate::state::pipe::{Control, DATA_MAX, End, Ending, GoAway, PipeId};
use std::fmt;
use std::time::Duration;

/// What is in front of every frame.
pub const HEAD: usize = 4;
/// What is in front of the bytes of a DATA frame.
pub const DATA_HEAD: usize = HEAD + 8;
/// The longest frame besides DATA.
pub const CONTROL_MAX: usize = 16 * 1024;
/// The longest sentence that is sent.
const TEXT_MAX: usize = 1024;

const DATA: u8 = 0x01;
const ACK: u8 = 0x02;
const FIN: u8 = 0x03;
const RESET: u8 = 0x04;
const PING: u8 = 0x05;
const PONG: u8 = 0x06;
const GO_AWAY: u8 = 0x07;
const HELLO: u8 = 0x10;
const CHALLENGE: u8 = 0x11;
const PROOF: u8 = 0x12;
const WELCOME: u8 = 0x13;
const REFUSE: u8 = 0x14;
/// Types from here on may be skipped by whoever does not know them.
const OPTIONAL: u8 = 0x80;

/// What came out of a decoder.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Bytes of a DATA frame; a frame may come in several pieces.
    Data {
        /// The number of the first byte.
        off: u64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// A frame of an attached carrier.
    Control(Control),
    /// A frame of the handshake.
    Greeting(Greeting),
}

/// Why bytes are not frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// A frame of that type is never that long.
    TooLong {
        /// The type.
        kind: u8,
        /// The length it claims.
        len: usize,
        /// The longest there is.
        max: usize,
    },
    /// A frame of that type needs more bytes than it has.
    TooShort {
        /// The type.
        kind: u8,
    },
    /// A type that is not known and must be.
    Unknown {
        /// The type.
        kind: u8,
    },
    /// A field has a value it cannot have.
    BadField {
        /// The type.
        kind: u8,
        /// The field.
        field: &'static str,
    },
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::TooLong { kind, len, max } => {
                write!(f, "a frame of type {kind:#04x} with {len} bytes came, the most is {max}")
            }
            FrameError::TooShort { kind } => write!(f, "a frame of type {kind:#04x} is too short"),
            FrameError::Unknown { kind } => write!(f, "a frame of the unknown type {kind:#04x} came"),
            FrameError::BadField { kind, field } => {
                write!(f, "a frame of type {kind:#04x} has a bad {field}")
            }
        }
    }
}

impl std::error::Error for FrameError {}

/// Takes bytes as they arrive, gives frames. After an error it gives nothing sensible: the carrier
/// is over.
#[derive(Debug, Default)]
pub struct Decoder {
    stage: Stage,
    /// About how many bytes the last DATA frames had.
    lately: usize,
}

#[derive(Debug)]
enum Stage {
    /// Inside a head, or inside the offset of a DATA frame.
    Head { bytes: [u8; DATA_HEAD], have: usize },
    /// Inside the bytes of a DATA frame.
    Data { off: u64, left: usize },
    /// Inside another frame.
    Body { kind: u8, bytes: Vec<u8>, len: usize },
    /// Inside a frame that is not looked at.
    Skip { left: usize },
}

impl Default for Stage {
    fn default() -> Stage {
        Stage::Head { bytes: [0; DATA_HEAD], have: 0 }
    }
}

impl Decoder {
    /// At the start of a carrier.
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// Takes bytes from the front of `input` until a piece is whole. Gives nothing only when
    /// `input` is used up.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Piece<'a>>, FrameError> {
        loop {
            match &mut self.stage {
                Stage::Head { bytes, have } => {
                    let need = if *have >= HEAD && bytes[0] == DATA { DATA_HEAD } else { HEAD };
                    let count = (need - *have).min(input.len());
                    bytes[*have..*have + count].copy_from_slice(&input[..count]);
                    *have += count;
                    *input = &input[count..];
                    if *have < need {
                        return Ok(None);
                    }
                    let kind = bytes[0];
                    let len =
                        usize::from(bytes[1]) << 16 | usize::from(bytes[2]) << 8 | usize::from(bytes[3]);
                    if need == HEAD {
                        check_length(kind, len)?;
                        if kind == DATA {
                            continue;
                        }
                        self.stage = match kind {
                            ACK..=GO_AWAY | HELLO..=REFUSE => {
                                Stage::Body { kind, bytes: Vec::with_capacity(len), len }
                            }
                            _ => Stage::Skip { left: len },
                        };
                    } else {
                        let off = u64::from_be_bytes(bytes[HEAD..].try_into().expect("eight bytes"));
                        let left = len - 8;
                        // Its bytes have offsets that there are: what is read in pieces can be counted on.
                        if off.checked_add(left as u64).is_none() {
                            return Err(FrameError::BadField { kind, field: "offset" });
                        }
                        // A short one between long ones changes little.
                        self.lately = left.max(self.lately / 2);
                        self.stage = if left > 0 { Stage::Data { off, left } } else { Stage::default() };
                        if left == 0 {
                            return Ok(Some(Piece::Data { off, bytes: &[] }));
                        }
                    }
                }
                Stage::Data { off, left } => {
                    if input.is_empty() {
                        return Ok(None);
                    }
                    let count = input.len().min(*left);
                    let (bytes, rest) = input.split_at(count);
                    *input = rest;
                    let at = *off;
                    *off += count as u64;
                    *left -= count;
                    if *left == 0 {
                        self.stage = Stage::default();
                    }
                    return Ok(Some(Piece::Data { off: at, bytes }));
                }
                Stage::Body { kind, bytes, len } => {
                    let count = (*len - bytes.len()).min(input.len());
                    bytes.extend_from_slice(&input[..count]);
                    *input = &input[count..];
                    if bytes.len() < *len {
                        return Ok(None);
                    }
                    let piece = parse(*kind, bytes)?;
                    self.stage = Stage::default();
                    return Ok(Some(piece));
                }
                Stage::Skip { left } => {
                    let count = input.len().min(*left);
                    *left -= count;
                    *input = &input[count..];
                    if *left > 0 {
                        return Ok(None);
                    }
                    self.stage = Stage::default();
                }
            }
            if input.is_empty() && matches!(self.stage, Stage::Head { have: 0, .. }) {
                return Ok(None);
            }
        }
    }

    /// Whether what comes next are bytes of a DATA frame: the offset of the first one, and how many.
    pub fn amid_data(&self) -> Option<(u64, usize)> {
        match self.stage {
            Stage::Data { off, left } => Some((off, left)),
            _ => None,
        }
    }

    /// The next `count` of those bytes do not come through here.
    pub fn passed(&mut self, count: usize) {
        // Nowhere else are there any to pass.
        let Stage::Data { off, left } = &mut self.stage else { return };
        let count = count.min(*left);
        *off += count as u64;
        *left -= count;
        if *left == 0 {
            self.stage = Stage::default();
        }
    }

    /// About how many bytes the last DATA frames had: the next may be like them.
    pub fn lately(&self) -> usize {
        self.lately
    }

    /// Whether the bytes so far end with a whole frame: a carrier that ends elsewhere was cut.
    pub fn is_between_frames(&self) -> bool {
        matches!(self.stage, Stage::Head { have: 0, .. })
    }
}

fn check_length(kind: u8, len: usize) -> Result<(), FrameError> {
    let (min, max) = match kind {
        DATA => (8, 8 + DATA_MAX),
        ACK..=GO_AWAY | HELLO..=REFUSE => (0, CONTROL_MAX),
        // Skipped as it comes; nothing is kept.
        OPTIONAL.. => (0, usize::MAX),
        _ => return Err(FrameError::Unknown { kind }),
    };
    match len {
        _ if len < min => Err(FrameError::TooShort { kind }),
        _ if len > max => Err(FrameError::TooLong { kind, len, max }),
        _ => Ok(()),
    }
}

/// What is in front of the bytes of a DATA frame.
pub fn data_head(off: u64, len: usize) -> [u8; DATA_HEAD] {
    debug_assert!(len <= DATA_MAX, "a DATA frame of {len} bytes");
    let mut head = [0; DATA_HEAD];
    head[..HEAD].copy_from_slice(&((u32::from(DATA) << 24) | (len as u32 + 8)).to_be_bytes());
    head[HEAD..].copy_from_slice(&off.to_be_bytes());
    head
}

/// Appends a frame of an attached carrier.
pub fn encode_control(control: &Control, out: &mut Vec<u8>) {
    match control {
        Control::Ack { recv, limit } => frame(ACK, out, |out| {
            out.u64(*recv);
            out.u64(*limit);
        }),
        Control::Fin { off } => frame(FIN, out, |out| out.u64(*off)),
        Control::Reset(end) => frame(RESET, out, |out| out.end(end)),
        Control::Ping { token } => frame(PING, out, |out| out.u64(*token)),
        Control::Pong { token, recv, limit } => frame(PONG, out, |out| {
            out.u64(*token);
            out.u64(*recv);
            out.u64(*limit);
        }),
        Control::GoAway(notice) => frame(GO_AWAY, out, |out| {
            out.millis(notice.deadline);
            out.millis(notice.retry_hint);
            out.text(notice.url.as_deref().unwrap_or_default());
        }),
    }
}

/// Appends a frame of the handshake.
pub fn encode_greeting(greeting: &Greeting, out: &mut Vec<u8>) {
    match greeting {
        Greeting::Hello(hello) => frame(HELLO, out, |out| {
            out.0.extend([hello.proto_min, hello.proto_max]);
            out.0.extend(hello.nonce);
            out.text(hello.auth.as_ref().map_or("", |auth| &auth.0));
            match &hello.wish {
                Wish::New { epoch, target, limit } => {
                    out.0.push(0);
                    out.u64(*epoch);
                    out.u64(*limit);
                    out.text(target);
                }
                Wish::Resume { id } => {
                    out.0.push(1);
                    out.0.extend(id.0);
                }
            }
        }),
        Greeting::Challenge(challenge) => frame(CHALLENGE, out, |out| {
            out.0.extend(challenge.instance);
            out.0.extend(challenge.nonce);
        }),
        Greeting::Proof(proof) => frame(PROOF, out, |out| {
            out.u64(proof.epoch);
            out.stand(&proof.stand);
            out.0.extend(proof.tag);
        }),
        Greeting::Welcome(welcome) => frame(WELCOME, out, |out| {
            out.0.push(welcome.proto);
            out.0.extend(welcome.instance);
            out.0.extend(welcome.id.0);
            out.u64(welcome.epoch);
            out.u64(welcome.grace.map_or(u64::MAX, |grace| millis(grace).min(u64::MAX - 1)));
            out.u64(welcome.window);
            out.stand(&welcome.stand);
            out.0.extend(welcome.tag);
            match &welcome.secret {
                Some(secret) => {
                    out.0.push(1);
                    out.0.extend(secret.0);
                }
                None => out.0.push(0),
            }
        }),
        Greeting::Refuse(refuse) => frame(REFUSE, out, |out| {
            out.0.extend(refuse.instance);
            out.0.push(u8::from(refuse.retriable));
            out.millis(refuse.retry_after);
            out.end(&refuse.end);
        }),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Appends a frame whose length is filled in once it is known.
fn frame(kind: u8, out: &mut Vec<u8>, body: impl FnOnce(&mut Writer<'_>)) {
    let start = out.len();
    out.extend([kind, 0, 0, 0]);
    body(&mut Writer(out));
    let len = out.len() - start - HEAD;
    debug_assert!(len <= CONTROL_MAX, "a frame of type {kind} with {len} bytes");
    out[start..start + HEAD].copy_from_slice(&((u32::from(kind) << 24) | len as u32).to_be_bytes());
}

struct Writer<'a>(&'a mut Vec<u8>);

impl Writer<'_> {
    fn u64(&mut self, number: u64) {
        self.0.extend(number.to_be_bytes());
    }

    fn millis(&mut self, duration: Duration) {
        self.0.extend(u32::try_from(millis(duration)).unwrap_or(u32::MAX).to_be_bytes());
    }

    /// A sentence, an address or a token; what is too long is cut at a character.
    fn text(&mut self, text: &str) {
        let text = &text[..text.floor_char_boundary(CONTROL_MAX / 3)];
        self.0.extend((text.len() as u16).to_be_bytes());
        self.0.extend(text.as_bytes());
    }

    fn end(&mut self, end: &End) {
        self.0.extend((end.code as u16).to_be_bytes());
        self.text(&end.reason[..end.reason.floor_char_boundary(TEXT_MAX)]);
    }

    fn stand(&mut self, stand: &Stand) {
        self.u64(stand.recv);
        self.0.push(u8::from(stand.fin));
        self.u64(stand.limit);
    }
}

fn parse<'a>(kind: u8, body: &[u8]) -> Result<Piece<'a>, FrameError> {
    let mut body = Reader { kind, rest: body };
    Ok(match kind {
        ACK => Piece::Control(Control::Ack { recv: body.u64()?, limit: body.u64()? }),
        FIN => Piece::Control(Control::Fin { off: body.u64()? }),
        RESET => Piece::Control(Control::Reset(body.end()?)),
        PING => Piece::Control(Control::Ping { token: body.u64()? }),
        PONG => Piece::Control(Control::Pong { token: body.u64()?, recv: body.u64()?, limit: body.u64()? }),
        GO_AWAY => Piece::Control(Control::GoAway(GoAway {
            deadline: body.millis()?,
            retry_hint: body.millis()?,
            url: Some(body.text("url")?).filter(|url| !url.is_empty()),
        })),
        HELLO => Piece::Greeting(Greeting::Hello(Hello {
            proto_min: body.u8()?,
            proto_max: body.u8()?,
            nonce: body.bytes()?,
            auth: Some(body.text("auth")?).filter(|auth| !auth.is_empty()).map(Auth),
            wish: match body.u8()? {
                0 => Wish::New { epoch: body.u64()?, limit: body.u64()?, target: body.text("target")? },
                1 => Wish::Resume { id: PipeId(body.bytes()?) },
                _ => return Err(FrameError::BadField { kind, field: "wish" }),
            },
        })),
        CHALLENGE => {
            Piece::Greeting(Greeting::Challenge(Challenge { instance: body.bytes()?, nonce: body.bytes()? }))
        }
        PROOF => Piece::Greeting(Greeting::Proof(Proof {
            epoch: body.u64()?,
            stand: body.stand()?,
            tag: body.bytes()?,
        })),
        WELCOME => Piece::Greeting(Greeting::Welcome(Welcome {
            proto: body.u8()?,
            instance: body.bytes()?,
            id: PipeId(body.bytes()?),
            epoch: body.u64()?,
            grace: Some(body.u64()?).filter(|grace| *grace != u64::MAX).map(Duration::from_millis),
            window: body.u64()?,
            stand: body.stand()?,
            tag: body.bytes()?,
            secret: match body.u8()? {
                0 => None,
                1 => Some(Secret(body.bytes()?)),
                _ => return Err(FrameError::BadField { kind, field: "secret" }),
            },
        })),
        REFUSE => Piece::Greeting(Greeting::Refuse(Refuse {
            instance: body.bytes()?,
            retriable: body.flag("retriable")?,
            retry_after: body.millis()?,
            end: body.end()?,
        })),
        _ => return Err(FrameError::Unknown { kind }),
    })
}

struct Reader<'a> {
    kind: u8,
    rest: &'a [u8],
}

impl Reader<'_> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or(FrameError::TooShort { kind: self.kind })?;
        self.rest = rest;
        Ok(*bytes)
    }

    fn u8(&mut self) -> Result<u8, FrameError> {
        Ok(self.bytes::<1>()?[0])
    }

    fn u64(&mut self) -> Result<u64, FrameError> {
        Ok(u64::from_be_bytes(self.bytes()?))
    }

    fn millis(&mut self) -> Result<Duration, FrameError> {
        Ok(Duration::from_millis(u32::from_be_bytes(self.bytes()?).into()))
    }

    fn flag(&mut self, field: &'static str) -> Result<bool, FrameError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(FrameError::BadField { kind: self.kind, field }),
        }
    }

    fn text(&mut self, field: &'static str) -> Result<String, FrameError> {
        let len = usize::from(u16::from_be_bytes(self.bytes()?));
        let (text, rest) = self.rest.split_at_checked(len).ok_or(FrameError::TooShort { kind: self.kind })?;
        self.rest = rest;
        match str::from_utf8(text) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(FrameError::BadField { kind: self.kind, field }),
        }
    }

    fn end(&mut self) -> Result<End, FrameError> {
        let code = Ending::from_number(u16::from_be_bytes(self.bytes()?));
        Ok(End { code, reason: self.text("reason")? })
    }

    fn stand(&mut self) -> Result<Stand, FrameError> {
        Ok(Stand { recv: self.u64()?, fin: self.flag("fin")?, limit: self.u64()? })
    }
}

#[cfg(test)]
mod tests;
