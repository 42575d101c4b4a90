//! Random numbers that a simulation can replay.

#[cfg(feature = "testing")]
use super::sim;
use super::{Arm, Rt, real};

/// A stream of random numbers for jitter, sampling and the like; not for secrets.
#[derive(Debug)]
pub struct Rand {
    arm: RandArm,
}

#[derive(Debug)]
enum RandArm {
    Real(SplitMix),
    #[cfg(feature = "testing")]
    Sim {
        handle: sim::Handle,
        stream: &'static str,
    },
}

impl Rand {
    pub(super) fn new(rt: &Rt, stream: &'static str) -> Rand {
        let arm = match &rt.arm {
            Arm::Real => {
                // The name only tells tapes apart, and only simulations keep tapes.
                let _ = stream;
                let mut seed = [0; 8];
                real::secret(&mut seed);
                RandArm::Real(SplitMix(u64::from_le_bytes(seed)))
            }
            #[cfg(feature = "testing")]
            Arm::Sim(handle) => RandArm::Sim { handle: handle.clone(), stream },
        };
        Rand { arm }
    }

    /// The next number. In a simulation 0 is the benign choice.
    pub fn next_u64(&mut self) -> u64 {
        match &mut self.arm {
            RandArm::Real(state) => state.next(),
            #[cfg(feature = "testing")]
            RandArm::Sim { handle, stream } => handle.draw(stream, u64::MAX),
        }
    }

    /// A number from 0 to `n - 1`; 0 when `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        match &mut self.arm {
            RandArm::Real(state) => scale(state.next(), n),
            #[cfg(feature = "testing")]
            RandArm::Sim { handle, stream } => handle.draw(stream, n),
        }
    }
}

/// Maps 64 random bits onto `0..n` by multiplication: no bias worth a loop here.
pub(crate) fn scale(bits: u64, n: u64) -> u64 {
    ((u128::from(bits) * u128::from(n)) >> 64) as u64
}

/// Steele, Lea and Flood's generator: one addition and a mixing function, seeded by any number.
#[derive(Clone, Debug)]
pub(crate) struct SplitMix(pub(crate) u64);

impl SplitMix {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
}

/// Spreads a number over all 64 bits.
pub(crate) fn mix(number: u64) -> u64 {
    let z = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
