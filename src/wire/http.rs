//! HTTP/1.1 message syntax (RFC 9110, RFC 9112), without I/O, as strict as a server may be.
//!
//! [`HeadReader`] collects a head and [`Head`] is what came of it; [`BodyReader`] takes the framing off
//! a request body; [`Response`] is written by [`Response::write`]. What is refused is refused before
//! anything of the request is used, and whoever refuses closes the connection, so that no byte behind
//! a refused head is ever read as a request.

mod body;
mod head;
mod response;

pub use body::BodyReader;
pub use head::{Framing, Head, HeadLimits, HeadReader, Method, Refusal, Version};
pub use response::{
    Body, Framed, Head as ResponseForm, Response, ResponseHead, ResponseReader, http_date, reason_phrase,
};

#[cfg(test)]
mod tests;
