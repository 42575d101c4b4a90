//! The handshake that gives a carrier to a pipe.
//!
//! ```text
//! new     HELLO{nonce, epoch, target, limit}        -> WELCOME{id, secret, ..} | REFUSE
//! resume  HELLO{nonce, id} -> CHALLENGE{instance, nonce} -> PROOF{epoch, recv, fin, limit, tag}
//!                                                    -> WELCOME{tag, recv, fin, limit, ..} | REFUSE
//! ```
//!
//! An unknown id is challenged like a known one, and both an unknown id and a bad proof end in
//! UNKNOWN_PIPE, so that nobody learns from a refusal which pipes exist. Nothing of a pipe changes
//! before the proof holds.
//!
//! Invariant: [`Asking`] and [`Answering`] each take exactly one message in each state; anything else
//! is a protocol error and ends the attempt, never the pipe.

use super::proof::{self, Secret, Stand, Tag, Transcript};
use super::{End, Ending, PipeId};
use std::time::Duration;

/// The version of the protocol that is spoken here.
pub const PROTO: u8 = 1;

/// How long a handshake may take in all.
pub const HANDSHAKE_WAIT: Duration = Duration::from_secs(10);

/// The first message of a carrier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The oldest version the client speaks.
    pub proto_min: u8,
    /// The newest version the client speaks.
    pub proto_max: u8,
    /// Drawn for this handshake.
    pub nonce: [u8; 16],
    /// A bearer token, on carriers that have no head to carry one.
    pub auth: Option<Auth>,
    /// What the client wants.
    pub wish: Wish,
}

/// A credential on its way; never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Auth(pub String);

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// A new pipe.
    New {
        /// The epoch of its first carrier.
        epoch: u64,
        /// Where it leads: `host:port`, `unix:/path`, or a name the listening program knows.
        target: String,
        /// Up to where the server may send.
        limit: u64,
    },
    /// One that exists.
    Resume {
        /// Which.
        id: PipeId,
    },
}

/// "Show that you know the secret."
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// The server's run.
    pub instance: [u8; 16],
    /// Drawn for this handshake.
    pub nonce: [u8; 16],
}

/// "I know it, and this is what I have."
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Greater than any the client used before.
    pub epoch: u64,
    /// How the client stands.
    pub stand: Stand,
    /// Over all of it.
    pub tag: Tag,
}

/// The carrier bears the pipe from here on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The version that is spoken.
    pub proto: u8,
    /// The server's run.
    pub instance: [u8; 16],
    /// Which pipe.
    pub id: PipeId,
    /// The epoch that was adopted.
    pub epoch: u64,
    /// How long a pipe without a carrier is kept; none is for ever.
    pub grace: Option<Duration>,
    /// How much the server keeps in one direction.
    pub window: u64,
    /// How the server stands.
    pub stand: Stand,
    /// The server's proof.
    pub tag: Tag,
    /// For a new pipe: what will take it over.
    pub secret: Option<Secret>,
}

/// "No."
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refuse {
    /// The server's run.
    pub instance: [u8; 16],
    /// Why.
    pub end: End,
    /// Whether the same may go well later.
    pub retriable: bool,
    /// How long to wait before.
    pub retry_after: Duration,
}

/// A message of the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant is the message of its name")]
pub enum Greeting {
    Hello(Hello),
    Challenge(Challenge),
    Proof(Proof),
    Welcome(Welcome),
    Refuse(Refuse),
}

/// What the client knows of a pipe that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Which.
    pub id: PipeId,
    /// What takes it over.
    pub secret: Secret,
    /// The server's run that made it.
    pub instance: [u8; 16],
}

/// The client's side of one handshake.
#[derive(Debug)]
pub struct Asking {
    nonce: [u8; 16],
    epoch: u64,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// HELLO went out for a new pipe.
    New,
    /// HELLO went out for one that exists.
    Resume(Known),
    /// The server's nonce is known; the pipe must stand still before the proof is made.
    Challenged(Known, Transcript),
    /// PROOF went out.
    Proven(Known, Transcript),
}

/// What the client does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// Let the pipe stand still (nothing more from the old carrier, nothing more to it), then call
    /// [`Asking::prove`].
    StandStill,
    /// Done: attach.
    Welcome(Welcome),
    /// The server says no.
    Refused(Refuse),
}

impl Asking {
    /// Begins, and gives the first message. `token` goes into it only where nothing else carries it.
    pub fn begin(nonce: [u8; 16], epoch: u64, wish: &Want, token: Option<&str>) -> (Asking, Greeting) {
        let (stage, wish) = match wish {
            Want::New { target, limit } => {
                (Stage::New, Wish::New { epoch, target: target.clone(), limit: *limit })
            }
            Want::Resume(known) => (Stage::Resume(known.clone()), Wish::Resume { id: known.id }),
        };
        let auth = token.map(|token| Auth(token.to_owned()));
        let hello = Hello { proto_min: PROTO, proto_max: PROTO, nonce, auth, wish };
        (Asking { nonce, epoch, stage }, Greeting::Hello(hello))
    }

    /// The proof, made of how the pipe stands now that it stands still.
    pub fn prove(&mut self, stand: Stand) -> Greeting {
        let Stage::Challenged(known, transcript) = &self.stage else {
            unreachable!("prove answers StandStill, which comes once")
        };
        let tag = proof::client(&known.secret, transcript, &stand);
        self.stage = Stage::Proven(known.clone(), *transcript);
        Greeting::Proof(Proof { epoch: self.epoch, stand, tag })
    }

    /// Whether the proof went out: from here on a failure means that the pipe resumes afresh, since
    /// the server may have moved it to this carrier.
    pub fn is_proven(&self) -> bool {
        matches!(self.stage, Stage::Proven(..))
    }

    /// Takes the server's message.
    pub fn step(&mut self, greeting: Greeting) -> Result<Asked, End> {
        match (&self.stage, greeting) {
            (_, Greeting::Refuse(refuse)) => Ok(Asked::Refused(refuse)),
            (Stage::New | Stage::Proven(..), Greeting::Welcome(welcome)) if welcome.proto != PROTO => {
                let text = format!("the server speaks version {}, which nobody offered", welcome.proto);
                Err(End::new(Ending::Protocol, text))
            }
            (Stage::New, Greeting::Welcome(welcome)) => {
                if welcome.secret.is_none() || welcome.epoch != self.epoch {
                    return Err(End::new(
                        Ending::Protocol,
                        "the server's welcome lacks the secret or the epoch",
                    ));
                }
                Ok(Asked::Welcome(welcome))
            }
            (Stage::Resume(known), Greeting::Challenge(challenge)) => {
                let transcript = Transcript {
                    id: known.id,
                    instance: challenge.instance,
                    server_nonce: challenge.nonce,
                    client_nonce: self.nonce,
                    epoch: self.epoch,
                };
                self.stage = Stage::Challenged(known.clone(), transcript);
                Ok(Asked::StandStill)
            }
            (Stage::Proven(known, transcript), Greeting::Welcome(welcome)) => {
                let expected = proof::server(&known.secret, transcript, &welcome.stand);
                let fits = welcome.id == known.id && welcome.epoch == self.epoch;
                if !fits || !proof::same(&welcome.tag, &expected) {
                    // Not the one who has our bytes; whoever it is gets none of them.
                    return Err(End::new(
                        Ending::Protocol,
                        "the server could not show that it knows the pipe",
                    ));
                }
                Ok(Asked::Welcome(welcome))
            }
            (stage, greeting) => Err(unexpected(
                greeting,
                match stage {
                    Stage::New => "a welcome",
                    Stage::Resume(_) => "a challenge",
                    Stage::Challenged(..) => "nothing before the proof",
                    Stage::Proven(..) => "a welcome",
                },
            )),
        }
    }
}

/// What a client dials for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    /// A new pipe.
    New {
        /// Where it leads.
        target: String,
        /// Up to where the server may send.
        limit: u64,
    },
    /// The one it has.
    Resume(Known),
}

fn unexpected(came: Greeting, expected: &str) -> End {
    let came = match came {
        Greeting::Hello(_) => "HELLO",
        Greeting::Challenge(_) => "CHALLENGE",
        Greeting::Proof(_) => "PROOF",
        Greeting::Welcome(_) => "WELCOME",
        Greeting::Refuse(_) => "REFUSE",
    };
    End::new(Ending::Protocol, format!("expected {expected} in the handshake, {came} came"))
}

/// The server's side of one handshake.
#[derive(Debug)]
pub struct Answering {
    instance: [u8; 16],
    stage: Answer,
}

#[derive(Debug)]
enum Answer {
    /// Nothing came yet.
    Fresh,
    /// Somebody wants to resume this pipe; the nonces are out.
    Challenged { id: PipeId, server_nonce: [u8; 16], client_nonce: [u8; 16] },
    /// The rest is decided elsewhere.
    Decided,
}

/// What the server does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Answered {
    /// Check the caller, the limits and the allow-list, dial the target, and welcome or refuse.
    New(Hello),
    /// Send this, and move the carrier to whoever owns `id`.
    Challenge(Hello, PipeId, Challenge),
    /// Look the pipe up, check with [`Claim::holds`], and take over or refuse.
    Claim(Claim),
}

/// Somebody's claim to a pipe, not checked yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    transcript: Transcript,
    proof: Proof,
}

impl Claim {
    /// Which pipe.
    pub fn id(&self) -> PipeId {
        self.transcript.id
    }

    /// The epoch it proposes.
    pub fn epoch(&self) -> u64 {
        self.transcript.epoch
    }

    /// Whether whoever sent it knows the secret. For an id nobody knows, pass a made-up secret: it
    /// takes the same time.
    pub fn holds(&self, secret: &Secret) -> bool {
        proof::same(&self.proof.tag, &proof::client(secret, &self.transcript, &self.proof.stand))
    }

    /// How the client stands.
    pub fn stand(&self) -> Stand {
        self.proof.stand
    }

    /// The server's proof, for the welcome.
    pub fn answer(&self, secret: &Secret, stand: &Stand) -> Tag {
        proof::server(secret, &self.transcript, stand)
    }
}

impl Answering {
    /// Waits for HELLO.
    pub fn new(instance: [u8; 16]) -> Answering {
        Answering { instance, stage: Answer::Fresh }
    }

    /// Takes the client's message. `nonce` is drawn for this handshake.
    pub fn step(&mut self, greeting: Greeting, nonce: [u8; 16]) -> Result<Answered, End> {
        match (&self.stage, greeting) {
            (Answer::Fresh, Greeting::Hello(hello)) => {
                if !(hello.proto_min..=hello.proto_max).contains(&PROTO) {
                    let text = format!(
                        "the client speaks versions {} to {}, this server speaks {PROTO}",
                        hello.proto_min, hello.proto_max
                    );
                    return Err(End::new(Ending::Protocol, text));
                }
                match hello.wish {
                    Wish::New { .. } => {
                        self.stage = Answer::Decided;
                        Ok(Answered::New(hello))
                    }
                    Wish::Resume { id } => {
                        self.stage =
                            Answer::Challenged { id, server_nonce: nonce, client_nonce: hello.nonce };
                        Ok(Answered::Challenge(hello, id, Challenge { instance: self.instance, nonce }))
                    }
                }
            }
            (Answer::Challenged { id, server_nonce, client_nonce }, Greeting::Proof(proof)) => {
                let transcript = Transcript {
                    id: *id,
                    instance: self.instance,
                    server_nonce: *server_nonce,
                    client_nonce: *client_nonce,
                    epoch: proof.epoch,
                };
                self.stage = Answer::Decided;
                Ok(Answered::Claim(Claim { transcript, proof }))
            }
            (stage, greeting) => Err(unexpected(
                greeting,
                match stage {
                    Answer::Fresh => "HELLO",
                    Answer::Challenged { .. } => "PROOF",
                    Answer::Decided => "nothing more",
                },
            )),
        }
    }
}

#[cfg(test)]
mod tests;
