//! The same under the simulator: time is a number, faults are drawn, and the books balance after
//! every step.
