//! Bounded channels with one consumer.

use std::fmt;

use super::Moment;
#[cfg(feature = "testing")]
use super::sim;

/// The sending end. Clone it for every producer.
pub struct Sender<T> {
    pub(super) arm: SenderArm<T>,
}

pub(super) enum SenderArm<T> {
    Real(crossbeam_channel::Sender<T>),
    #[cfg(feature = "testing")]
    Sim(sim::ChanTx<T>),
}

/// The receiving end. It has one consumer.
pub struct Receiver<T> {
    pub(super) arm: ReceiverArm<T>,
}

pub(super) enum ReceiverArm<T> {
    Real(crossbeam_channel::Receiver<T>),
    #[cfg(feature = "testing")]
    Sim(sim::ChanRx<T>),
}

pub(super) fn real<T>(bound: usize) -> (Sender<T>, Receiver<T>) {
    let (tx, rx) = crossbeam_channel::bounded(bound);
    (Sender { arm: SenderArm::Real(tx) }, Receiver { arm: ReceiverArm::Real(rx) })
}

#[cfg(feature = "testing")]
pub(super) fn simulated<T>(
    handle: &sim::Handle,
    name: &'static str,
    bound: usize,
) -> (Sender<T>, Receiver<T>) {
    let (tx, rx) = handle.channel(name, bound);
    (Sender { arm: SenderArm::Sim(tx) }, Receiver { arm: ReceiverArm::Sim(rx) })
}

/// Why a message was not put into a channel at once; the message comes back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TrySendError<T> {
    /// The channel holds as many as it may.
    Full(T),
    /// The receiver is gone.
    Disconnected(T),
}

impl<T> TrySendError<T> {
    /// The message that was not sent.
    pub fn into_inner(self) -> T {
        match self {
            TrySendError::Full(message) | TrySendError::Disconnected(message) => message,
        }
    }
}

impl<T> fmt::Debug for TrySendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TrySendError::Full(_) => "Full(..)",
            TrySendError::Disconnected(_) => "Disconnected(..)",
        })
    }
}

/// The receiver is gone; the message comes back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SendError<T>(pub T);

impl<T> fmt::Debug for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SendError(..)")
    }
}

/// Why a message was not put into a channel in time; the message comes back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum SendTimeoutError<T> {
    /// The channel stayed full until the deadline.
    Timeout(T),
    /// The receiver is gone.
    Disconnected(T),
}

impl<T> fmt::Debug for SendTimeoutError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SendTimeoutError::Timeout(_) => "Timeout(..)",
            SendTimeoutError::Disconnected(_) => "Disconnected(..)",
        })
    }
}

/// Every sender is gone and nothing is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecvError;

/// Why nothing was received at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TryRecvError {
    /// Nothing is there now.
    Empty,
    /// Every sender is gone and nothing is left.
    Disconnected,
}

/// Why nothing was received in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecvTimeoutError {
    /// The deadline passed.
    Timeout,
    /// Every sender is gone and nothing is left.
    Disconnected,
}

macro_rules! says {
    ($($name:ident $(<$t:ident>)? => $text:literal),* $(,)?) => {$(
        impl $(<$t>)? fmt::Display for $name $(<$t>)? {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($text)
            }
        }
        impl $(<$t>)? std::error::Error for $name $(<$t>)? {}
    )*};
}

says! {
    TrySendError<T> => "the channel is full or its receiver is gone",
    SendError<T> => "the channel's receiver is gone",
    SendTimeoutError<T> => "the channel stayed full until the deadline or its receiver is gone",
    RecvError => "every sender of the channel is gone",
    TryRecvError => "the channel is empty or every sender is gone",
    RecvTimeoutError => "nothing arrived before the deadline or every sender is gone",
}

impl<T> Sender<T> {
    /// Puts a message in if there is room now. What I/O threads and rooms use: they never wait.
    ///
    /// # Errors
    /// The channel is full or its receiver gone; the message comes back.
    #[inline]
    pub fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
        match &self.arm {
            SenderArm::Real(tx) => tx.try_send(message).map_err(|error| match error {
                crossbeam_channel::TrySendError::Full(message) => TrySendError::Full(message),
                crossbeam_channel::TrySendError::Disconnected(message) => TrySendError::Disconnected(message),
            }),
            #[cfg(feature = "testing")]
            SenderArm::Sim(tx) => tx.try_send(message),
        }
    }

    /// Waits for room. Woken by the receiver taking something or going away.
    ///
    /// # Errors
    /// The receiver is gone; the message comes back.
    #[inline]
    pub fn send(&self, message: T) -> Result<(), SendError<T>> {
        match &self.arm {
            SenderArm::Real(tx) => tx.send(message).map_err(|error| SendError(error.0)),
            #[cfg(feature = "testing")]
            SenderArm::Sim(tx) => tx.send(message, None).map_err(|error| match error {
                SendTimeoutError::Timeout(message) | SendTimeoutError::Disconnected(message) => {
                    SendError(message)
                }
            }),
        }
    }

    /// Waits for room until `deadline`.
    ///
    /// # Errors
    /// It stayed full or the receiver is gone; the message comes back.
    pub fn send_deadline(&self, message: T, deadline: Moment) -> Result<(), SendTimeoutError<T>> {
        match &self.arm {
            SenderArm::Real(tx) => {
                tx.send_deadline(message, super::real::instant(deadline)).map_err(|error| match error {
                    crossbeam_channel::SendTimeoutError::Timeout(message) => {
                        SendTimeoutError::Timeout(message)
                    }
                    crossbeam_channel::SendTimeoutError::Disconnected(message) => {
                        SendTimeoutError::Disconnected(message)
                    }
                })
            }
            #[cfg(feature = "testing")]
            SenderArm::Sim(tx) => tx.send(message, Some(deadline)),
        }
    }

    /// How many messages wait.
    pub fn len(&self) -> usize {
        match &self.arm {
            SenderArm::Real(tx) => tx.len(),
            #[cfg(feature = "testing")]
            SenderArm::Sim(tx) => tx.len(),
        }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        let arm = match &self.arm {
            SenderArm::Real(tx) => SenderArm::Real(tx.clone()),
            #[cfg(feature = "testing")]
            SenderArm::Sim(tx) => SenderArm::Sim(tx.clone()),
        };
        Sender { arm }
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sender({} waiting)", self.len())
    }
}

impl<T> Receiver<T> {
    /// Takes a message if one is there now.
    ///
    /// # Errors
    /// Nothing is there, or nothing will ever be.
    #[inline]
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        match &self.arm {
            ReceiverArm::Real(rx) => rx.try_recv().map_err(|error| match error {
                crossbeam_channel::TryRecvError::Empty => TryRecvError::Empty,
                crossbeam_channel::TryRecvError::Disconnected => TryRecvError::Disconnected,
            }),
            #[cfg(feature = "testing")]
            ReceiverArm::Sim(rx) => rx.try_recv(),
        }
    }

    /// Waits for a message. Woken by a sender, or by the last sender going away.
    ///
    /// # Errors
    /// Every sender is gone and nothing is left.
    #[inline]
    pub fn recv(&self) -> Result<T, RecvError> {
        match &self.arm {
            ReceiverArm::Real(rx) => rx.recv().map_err(|_| RecvError),
            #[cfg(feature = "testing")]
            ReceiverArm::Sim(rx) => rx.recv(None).map_err(|_| RecvError),
        }
    }

    /// Waits for a message until `deadline`.
    ///
    /// # Errors
    /// Nothing arrived in time, or nothing ever will.
    pub fn recv_deadline(&self, deadline: Moment) -> Result<T, RecvTimeoutError> {
        match &self.arm {
            ReceiverArm::Real(rx) => {
                rx.recv_deadline(super::real::instant(deadline)).map_err(|error| match error {
                    crossbeam_channel::RecvTimeoutError::Timeout => RecvTimeoutError::Timeout,
                    crossbeam_channel::RecvTimeoutError::Disconnected => RecvTimeoutError::Disconnected,
                })
            }
            #[cfg(feature = "testing")]
            ReceiverArm::Sim(rx) => rx.recv(Some(deadline)),
        }
    }

    /// Takes what is there now, at most `max`, and says how many that were.
    pub fn drain_into(&self, into: &mut Vec<T>, max: usize) -> usize {
        let before = into.len();
        match &self.arm {
            ReceiverArm::Real(rx) => into.extend(rx.try_iter().take(max)),
            #[cfg(feature = "testing")]
            ReceiverArm::Sim(rx) => rx.drain_into(into, max),
        }
        into.len() - before
    }

    /// The messages as they come, until every sender is gone.
    pub fn iter(&self) -> impl Iterator<Item = T> + '_ {
        std::iter::from_fn(|| self.recv().ok())
    }

    /// How many messages wait.
    pub fn len(&self) -> usize {
        match &self.arm {
            ReceiverArm::Real(rx) => rx.len(),
            #[cfg(feature = "testing")]
            ReceiverArm::Sim(rx) => rx.len(),
        }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bare receiver, for a program's own `select!`.
    ///
    /// # Panics
    /// In a simulation: a bare receiver waits where the scheduler cannot see it. Use
    /// [`Receiver::iter`] or [`Rt::select`](super::Rt::select) there.
    pub fn into_crossbeam(self) -> crossbeam_channel::Receiver<T> {
        match self.arm {
            ReceiverArm::Real(rx) => rx,
            #[cfg(feature = "testing")]
            ReceiverArm::Sim(_) => {
                panic!("a simulated channel has no bare receiver: iterate over it, or wait with Rt::select")
            }
        }
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Receiver({} waiting)", self.len())
    }
}
