//! What is said over a WebSocket by either end.

use super::Links;
use super::one::Outgoing;
use super::queue::Bytes;
use crate::wire::link::Happened;
use crate::wire::websocket::{self, Message, Outgoing as WsFrame, Role, close};
use std::borrow::Cow;

impl Links {
    pub(super) fn heard(&mut self, slot: usize, message: Message) {
        match message {
            Message::Text(text) => self.emit(slot, Happened::Text(text)),
            Message::Binary(bytes) => self.emit(slot, Happened::Binary(bytes)),
            Message::Ping(payload) => self.push_ws(slot, WsFrame::Pong(&payload)),
            Message::Pong(_) => {}
            Message::Close(said) => {
                let (code, reason) = said.unwrap_or((close::NONE, String::new()));
                // What it said is said back (RFC 6455 5.5.1), unless we closed first.
                self.dismiss(slot, code, reason.into(), true);
                self.push_close(slot, code, "");
                self.end(slot, true);
            }
        }
    }

    pub(super) fn close_websocket(
        &mut self,
        slot: usize,
        code: u16,
        reason: Cow<'static, str>,
        by_peer: bool,
    ) {
        self.push_close(slot, code, &reason);
        self.dismiss(slot, code, reason, by_peer);
    }

    /// Queues our close frame, once.
    pub(super) fn push_close(&mut self, slot: usize, code: u16, reason: &str) {
        let now = self.now;
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        if let Outgoing::WebSocket { closed, .. } = &mut link.outgoing
            && !std::mem::replace(closed, true)
        {
            link.since = now;
            self.push_ws(slot, WsFrame::Close(code, reason));
        }
    }

    pub(super) fn push_ws(&mut self, slot: usize, frame: WsFrame<'_>) {
        let Some(link) = self.slots[slot].as_deref() else { return };
        let Outgoing::WebSocket { role, .. } = link.outgoing else { return };
        let mask = if role == Role::Client { Some(self.mask()) } else { None };
        let mut bytes = Vec::new();
        websocket::write_frame(&mut bytes, frame, mask);
        self.push(slot, Bytes::Own(bytes), true);
    }

    /// A mask nobody can foresee (RFC 6455 10.3), drawn from the system sixteen at a time.
    pub(super) fn mask(&mut self) -> [u8; 4] {
        if self.masks.is_empty() {
            let bytes = self.rt.secret::<64>();
            self.masks = bytes.chunks_exact(4).map(|four| [four[0], four[1], four[2], four[3]]).collect();
        }
        self.masks.pop().expect("just filled")
    }
}
