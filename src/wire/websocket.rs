//! WebSocket frames (RFC 6455), both roles, without I/O.
//!
//! [`Reader`] is fed whatever arrived and pushes whole messages; [`write_frame`] encodes what goes out.
//!
//! Invariant: `utf8_checked <= message.len()`, and `message` holds the unmasked payload of the data
//! message being assembled, never more than `message_max` bytes. Text is checked as it arrives, also in
//! the middle of a frame, so a peer that sends rubbish is told at its first wrong byte.

use std::ops::Range;

use tungstenite::handshake::derive_accept_key;

/// Which end of a link we are: a server reads masked frames and writes unmasked ones, a client the
/// other way round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Masks arrive.
    Server,
    /// Masks leave.
    Client,
}

/// What the peer said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A whole text message.
    Text(String),
    /// A whole binary message.
    Binary(Vec<u8>),
    /// A ping; a pong with the same payload is owed.
    Ping(Vec<u8>),
    /// A pong.
    Pong(Vec<u8>),
    /// The peer closes, with its code and reason if it gave any. Nothing follows.
    Close(Option<(u16, String)>),
}

/// What [`Reader::feed_in_place`] finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InPlace {
    /// Payload of a binary message, or of a piece of one: here in what was fed.
    Bytes(Range<usize>),
    /// Any other message.
    Message(Message),
}

/// Why a link has to be closed: the code to close it with says most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The close code of RFC 6455 section 7.4.
    pub code: u16,
    /// What was wrong, for the close reason and the log.
    pub reason: &'static str,
}

const fn protocol(reason: &'static str) -> Violation {
    Violation { code: close::PROTOCOL, reason }
}

/// Close codes by name.
pub mod close {
    /// It is done.
    pub const NORMAL: u16 = 1000;
    /// The end goes away.
    pub const AWAY: u16 = 1001;
    /// The peer broke the protocol.
    pub const PROTOCOL: u16 = 1002;
    /// The data cannot be understood here.
    pub const UNSUPPORTED: u16 = 1003;
    /// Never sent: the peer gave no code.
    pub const NONE: u16 = 1005;
    /// Never sent: the link broke.
    pub const ABNORMAL: u16 = 1006;
    /// Text that is not UTF-8.
    pub const NOT_UTF8: u16 = 1007;
    /// A rule of the application was broken.
    pub const POLICY: u16 = 1008;
    /// A message larger than the limit.
    pub const TOO_BIG: u16 = 1009;
    /// Something failed inside.
    pub const INTERNAL: u16 = 1011;
    /// The server restarts: come back.
    pub const RESTART: u16 = 1012;
    /// Too much at the moment: come back later. Used for a reader that does not keep up, unless its
    /// protocol has a code of its own for that.
    pub const TRY_AGAIN: u16 = 1013;
    /// A follower that does not keep up: its token makes it whole when it comes back.
    pub const SLOW: u16 = 4008;
    /// The credentials it was opened with have ended: come back with others.
    pub const EXPIRED: u16 = 4401;
}

const CONT: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// What may be inside one frame, and where in it we are.
#[derive(Clone, Debug)]
enum Frame {
    /// Collecting a header.
    Header,
    /// In the payload of a data frame: `left` bytes to come.
    Data { fin: bool, left: u64, mask: Option<[u8; 4]>, phase: u8 },
    /// Collecting a control payload.
    Control { opcode: u8, len: u8, mask: Option<[u8; 4]>, payload: Vec<u8> },
    /// A close frame or a violation came; the rest is not read.
    Over,
}

/// The data message being assembled across frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Assembling {
    Nothing,
    Text,
    Binary,
}

/// The reading half of a WebSocket. See the [module](self).
#[derive(Clone, Debug)]
pub struct Reader {
    role: Role,
    message_max: u32,
    header_len: u8,
    header: [u8; 14],
    frame: Frame,
    assembling: Assembling,
    utf8_checked: usize,
    message: Vec<u8>,
}

impl Reader {
    /// A reader at the beginning of a link, which lets messages of up to `message_max` bytes in.
    pub fn new(role: Role, message_max: u32) -> Reader {
        Reader {
            role,
            message_max,
            header_len: 0,
            header: [0; 14],
            frame: Frame::Header,
            assembling: Assembling::Nothing,
            utf8_checked: 0,
            message: Vec::new(),
        }
    }

    /// How many bytes of an unfinished message it holds.
    pub fn held(&self) -> usize {
        self.message.len()
    }

    /// Takes what arrived and pushes every message that is now whole. After an error or a close frame
    /// everything that still arrives is ignored.
    pub fn feed(&mut self, mut input: &[u8], out: &mut Vec<Message>) -> Result<(), Violation> {
        while let Some(rest) = self.advance(input, out).inspect_err(|_| self.stop())? {
            input = rest;
        }
        Ok(())
    }

    /// The same where binary messages carry one stream of bytes: their payload is unmasked where it lies, as
    /// far as it came, and nothing of it is kept. A frame of them is never longer than `message_max`.
    pub fn feed_in_place(&mut self, input: &mut [u8], out: &mut Vec<InPlace>) -> Result<(), Violation> {
        let mut at = 0;
        let mut messages = Vec::new();
        loop {
            if let (Frame::Data { fin, left, mask, phase }, Assembling::Binary) =
                (&self.frame, self.assembling)
            {
                let (fin, left, mask, phase) = (*fin, *left, *mask, *phase);
                let take = usize::try_from(left).unwrap_or(usize::MAX).min(input.len() - at);
                let range = at..at + take;
                at += take;
                if let Some(mask) = mask {
                    unmask(&mut input[range.clone()], mask, phase);
                }
                if take > 0 {
                    out.push(InPlace::Bytes(range));
                }
                let left = left - take as u64;
                if left > 0 {
                    self.frame =
                        Frame::Data { fin, left, mask, phase: (usize::from(phase) + take) as u8 & 3 };
                    return Ok(());
                }
                self.frame = Frame::Header;
                if fin {
                    self.assembling = Assembling::Nothing;
                }
            }
            let rest = self.advance(&input[at..], &mut messages).inspect_err(|_| self.stop())?;
            out.extend(messages.drain(..).map(InPlace::Message));
            match rest {
                Some(rest) => at = input.len() - rest.len(),
                None => return Ok(()),
            }
        }
    }

    /// One step: part of a header, a run of payload, or the end of a frame. `None` when more is needed.
    fn advance<'a>(
        &mut self,
        input: &'a [u8],
        out: &mut Vec<Message>,
    ) -> Result<Option<&'a [u8]>, Violation> {
        match std::mem::replace(&mut self.frame, Frame::Header) {
            Frame::Header => self.read_header(input),
            Frame::Data { fin, left, mask, phase } => self.read_data(input, fin, left, mask, phase, out),
            Frame::Control { opcode, len, mask, payload } => {
                self.read_control(input, opcode, len, mask, payload, out)
            }
            Frame::Over => {
                self.frame = Frame::Over;
                Ok(None)
            }
        }
    }

    fn read_header<'a>(&mut self, input: &'a [u8]) -> Result<Option<&'a [u8]>, Violation> {
        let Some((&byte, rest)) = input.split_first() else { return Ok(None) };
        self.header[usize::from(self.header_len)] = byte;
        self.header_len += 1;
        // The first two bytes are judged as soon as they are there: waiting for a length that a
        // forbidden frame will never need would only delay the answer.
        match self.header_len {
            1 => self.judge_first(byte)?,
            2 => self.judge_second(byte)?,
            _ => {}
        }
        if self.header_len >= 2 && self.header_len == self.header_size() {
            self.begin_frame()?;
        }
        Ok(Some(rest))
    }

    fn judge_first(&self, byte: u8) -> Result<(), Violation> {
        let (fin, opcode) = (byte & 0x80 != 0, byte & 0x0f);
        match (opcode, self.assembling) {
            _ if byte & 0x70 != 0 => Err(protocol("reserved bits are set")),
            (CONT, Assembling::Nothing) => Err(protocol("a continuation of nothing")),
            (TEXT | BINARY, Assembling::Text | Assembling::Binary) => {
                Err(protocol("a new message before the last one ended"))
            }
            (CONT | TEXT | BINARY, _) => Ok(()),
            (CLOSE | PING | PONG, _) if fin => Ok(()),
            (CLOSE | PING | PONG, _) => Err(protocol("a fragmented control frame")),
            _ => Err(protocol("a reserved opcode")),
        }
    }

    fn judge_second(&self, byte: u8) -> Result<(), Violation> {
        let masked = byte & 0x80 != 0;
        if masked != (self.role == Role::Server) {
            return Err(protocol(if masked {
                "a masked frame from a server"
            } else {
                "a frame without a mask"
            }));
        }
        if self.header[0] & 0x08 != 0 && byte & 0x7f > 125 {
            return Err(protocol("a control frame over 125 bytes"));
        }
        Ok(())
    }

    /// How long the header is, from its first two bytes.
    fn header_size(&self) -> u8 {
        let length = match self.header[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        2 + length + if self.header[1] & 0x80 != 0 { 4 } else { 0 }
    }

    fn begin_frame(&mut self) -> Result<(), Violation> {
        let size = usize::from(std::mem::take(&mut self.header_len));
        let header = &self.header[..size];
        let mask = match header[1] & 0x80 != 0 {
            true => Some([header[size - 4], header[size - 3], header[size - 2], header[size - 1]]),
            false => None,
        };
        let len = match header[1] & 0x7f {
            126 => u64::from(u16::from_be_bytes([header[2], header[3]])),
            127 => u64::from_be_bytes(header[2..10].try_into().expect("eight bytes of a ten byte header")),
            short => u64::from(short),
        };
        let (fin, opcode) = (header[0] & 0x80 != 0, header[0] & 0x0f);
        if opcode & 0x08 != 0 {
            let payload = Vec::with_capacity(len as usize);
            self.frame = Frame::Control { opcode, len: len as u8, mask, payload };
            return Ok(());
        }
        // RFC 6455 5.2: the shortest form must be used, and the top bit of a 64-bit length is zero.
        match header[1] & 0x7f {
            126 if len < 126 => return Err(protocol("a length in more bytes than it needs")),
            127 if len < 65_536 || len >> 63 != 0 => {
                return Err(protocol("a length in more bytes than it needs"));
            }
            _ => {}
        }
        if len > u64::from(self.message_max) - self.message.len() as u64 {
            return Err(Violation { code: close::TOO_BIG, reason: "a message over the limit" });
        }
        match opcode {
            TEXT => self.assembling = Assembling::Text,
            BINARY => self.assembling = Assembling::Binary,
            _ => {}
        }
        self.frame = Frame::Data { fin, left: len, mask, phase: 0 };
        Ok(())
    }

    fn read_data<'a>(
        &mut self,
        input: &'a [u8],
        fin: bool,
        left: u64,
        mask: Option<[u8; 4]>,
        phase: u8,
        out: &mut Vec<Message>,
    ) -> Result<Option<&'a [u8]>, Violation> {
        let take = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
        let (now, rest) = input.split_at(take);
        if self.message.is_empty() && left > take as u64 {
            // One allocation for a frame whose size is known, but never more than what a peer has to
            // send anyway before it can make us hold it.
            self.message.reserve((left as usize).min(take.max(64 * 1024)));
        }
        let from = self.message.len();
        self.message.extend_from_slice(now);
        if let Some(mask) = mask {
            unmask(&mut self.message[from..], mask, phase);
        }
        if self.assembling == Assembling::Text {
            self.check_utf8()?;
        }
        let left = left - take as u64;
        if left > 0 {
            self.frame = Frame::Data { fin, left, mask, phase: (usize::from(phase) + take) as u8 & 3 };
            return Ok(None);
        }
        if fin {
            self.finish(out)?;
        }
        // `Header` was put in place when this frame was taken out.
        Ok(Some(rest))
    }

    /// Checks what has not been checked; an unfinished character at the end may still become whole.
    fn check_utf8(&mut self) -> Result<(), Violation> {
        match std::str::from_utf8(&self.message[self.utf8_checked..]) {
            Ok(_) => self.utf8_checked = self.message.len(),
            Err(error) if error.error_len().is_none() => self.utf8_checked += error.valid_up_to(),
            Err(_) => return Err(NOT_UTF8),
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<Message>) -> Result<(), Violation> {
        let message = std::mem::take(&mut self.message);
        let checked = std::mem::take(&mut self.utf8_checked);
        match std::mem::replace(&mut self.assembling, Assembling::Nothing) {
            Assembling::Text if checked != message.len() => return Err(NOT_UTF8),
            Assembling::Text => out.push(Message::Text(String::from_utf8(message).map_err(|_| NOT_UTF8)?)),
            Assembling::Binary => out.push(Message::Binary(message)),
            Assembling::Nothing => return Err(protocol("a continuation of nothing")),
        }
        Ok(())
    }

    fn read_control<'a>(
        &mut self,
        input: &'a [u8],
        opcode: u8,
        len: u8,
        mask: Option<[u8; 4]>,
        mut payload: Vec<u8>,
        out: &mut Vec<Message>,
    ) -> Result<Option<&'a [u8]>, Violation> {
        let take = (usize::from(len) - payload.len()).min(input.len());
        let (now, rest) = input.split_at(take);
        payload.extend_from_slice(now);
        if payload.len() < usize::from(len) {
            self.frame = Frame::Control { opcode, len, mask, payload };
            return Ok(None);
        }
        if let Some(mask) = mask {
            unmask(&mut payload, mask, 0);
        }
        match opcode {
            PING => out.push(Message::Ping(payload)),
            PONG => out.push(Message::Pong(payload)),
            _ => {
                out.push(Message::Close(read_close(&payload)?));
                self.stop();
                return Ok(None);
            }
        }
        Ok(Some(rest))
    }

    fn stop(&mut self) {
        self.frame = Frame::Over;
        self.message = Vec::new();
    }
}

const NOT_UTF8: Violation = Violation { code: close::NOT_UTF8, reason: "text that is not UTF-8" };

fn read_close(payload: &[u8]) -> Result<Option<(u16, String)>, Violation> {
    match payload {
        [] => Ok(None),
        [_] => Err(protocol("a close code of one byte")),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            if !may_be_sent(code) {
                return Err(protocol("a close code that may not be sent"));
            }
            let reason = std::str::from_utf8(reason).map_err(|_| NOT_UTF8)?;
            Ok(Some((code, reason.to_owned())))
        }
    }
}

/// Whether RFC 6455 7.4 (and the registry it opened) lets an end send this code.
pub fn may_be_sent(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// Undoes (or applies) a mask, `phase` bytes into it.
fn unmask(bytes: &mut [u8], mask: [u8; 4], phase: u8) {
    let mut key = mask;
    key.rotate_left(usize::from(phase & 3));
    // A constant number of bytes at a time, so that it becomes a few wide instructions.
    let wide: [u8; 64] = std::array::from_fn(|at| key[at & 3]);
    let (blocks, rest) = bytes.as_chunks_mut::<64>();
    for block in blocks {
        for at in 0..64 {
            block[at] ^= wide[at];
        }
    }
    for (byte, key) in rest.iter_mut().zip(&wide) {
        *byte ^= key;
    }
}

/// Writes a frame header into `head` and answers its length (at most 10, 14 with a mask).
pub(super) fn write_header(head: &mut [u8], first: u8, len: usize, mask: Option<[u8; 4]>) -> usize {
    head[0] = first;
    let size = match len {
        0..126 => {
            head[1] = len as u8;
            2
        }
        126..65_536 => {
            head[1] = 126;
            head[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            4
        }
        _ => {
            head[1] = 127;
            head[2..10].copy_from_slice(&(len as u64).to_be_bytes());
            10
        }
    };
    match mask {
        Some(mask) => {
            head[1] |= 0x80;
            head[size..size + 4].copy_from_slice(&mask);
            size + 4
        }
        None => size,
    }
}

/// What goes out in one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outgoing<'a> {
    /// A whole text message.
    Text(&'a [u8]),
    /// A whole binary message.
    Binary(&'a [u8]),
    /// A ping of at most 125 bytes.
    Ping(&'a [u8]),
    /// A pong of at most 125 bytes.
    Pong(&'a [u8]),
    /// A close with its code and reason (cut to what a control frame holds).
    Close(u16, &'a str),
}

/// Appends one frame. A client gives a fresh mask, a server none.
pub fn write_frame(out: &mut Vec<u8>, outgoing: Outgoing<'_>, mask: Option<[u8; 4]>) {
    let closing;
    let (opcode, payload) = match outgoing {
        Outgoing::Text(payload) => (TEXT, payload),
        Outgoing::Binary(payload) => (BINARY, payload),
        Outgoing::Ping(payload) => (PING, control_part(payload)),
        Outgoing::Pong(payload) => (PONG, control_part(payload)),
        // 1005 and 1006 stand for "no code": they never travel.
        Outgoing::Close(close::NONE | close::ABNORMAL, _) => (CLOSE, &[][..]),
        Outgoing::Close(code, reason) => {
            closing = close_payload(code, reason);
            (CLOSE, &closing[..])
        }
    };
    let mut head = [0; 14];
    let len = write_header(&mut head, 0x80 | opcode, payload.len(), mask);
    out.extend_from_slice(&head[..len]);
    write_payload(out, payload, mask, 0);
}

/// Appends the head of a binary message whose `len` bytes follow, by [`write_payload`] or as they are.
pub fn write_binary_head(out: &mut Vec<u8>, len: usize, mask: Option<[u8; 4]>) {
    let mut head = [0; 14];
    let size = write_header(&mut head, 0x80 | BINARY, len, mask);
    out.extend_from_slice(&head[..size]);
}

/// Appends payload that lies `at` bytes into its frame.
pub fn write_payload(out: &mut Vec<u8>, payload: &[u8], mask: Option<[u8; 4]>, at: usize) {
    let Some(mask) = mask else { return out.extend_from_slice(payload) };
    // In steps that stay in the nearest cache between the copy and the mask; each begins a new round of it.
    for (step, bytes) in payload.chunks(MASK_STEP).enumerate() {
        let from = out.len();
        out.extend_from_slice(bytes);
        unmask(&mut out[from..], mask, ((at + step * MASK_STEP) & 3) as u8);
    }
}

/// How much is copied before it is masked.
const MASK_STEP: usize = 16 * 1024;

fn control_part(payload: &[u8]) -> &[u8] {
    &payload[..payload.len().min(125)]
}

fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    let mut payload = Vec::with_capacity(2 + reason.len().min(123));
    payload.extend_from_slice(&code.to_be_bytes());
    payload.extend_from_slice(&reason.as_bytes()[..reason.floor_char_boundary(123)]);
    payload
}

/// The `Sec-WebSocket-Accept` that answers a `Sec-WebSocket-Key`, if the key is one: sixteen bytes in
/// base64.
pub fn accept_key(key: &str) -> Option<String> {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(key).ok()?;
    (bytes.len() == 16).then(|| derive_accept_key(key.as_bytes()))
}

/// The `Sec-WebSocket-Key` made of sixteen random bytes.
#[cfg(feature = "testing")]
pub(crate) fn key_of(nonce: [u8; 16]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(nonce)
}

#[cfg(test)]
mod tests;
