//! Sessions under the simulator: the two machines over links that do what they like, and whole engines over
//! the simulated network; and bugs planted in them, each of which must be found.

mod engines;
mod machines;
