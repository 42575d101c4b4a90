//! What must hold for hours holds for seconds in every run; `make soak MINUTES=600` asks for more.

use std::time::Duration;

use towpath::rt::Rt;

use crate::demo;
use crate::effort::lasting;

#[test]
fn soak_the_demonstration_engine_runs_again_and_again() {
    let until = lasting(Duration::from_secs(2));
    let mut rounds = 0_u64;
    while until.goes_on() {
        demo::scenario(&Rt::real()).expect("the scenario runs");
        rounds += 1;
    }
    println!("{rounds} rounds of the demonstration engine on the real runtime");
}
