//! Network namespaces of a test's own, and programs in them.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use crate::process::unset_ours;

/// Runs `ip` with these words.
pub(crate) fn ip(words: &str) -> Result<(), String> {
    let output = Command::new("ip").args(words.split(' ')).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("ip: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("ip {words}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// Two of them, with nothing between; gone when dropped.
pub(crate) struct Namespaces {
    pub(crate) names: [String; 2],
}

impl Namespaces {
    /// `what` tells those of one test from another's.
    pub(crate) fn make(what: &str) -> Result<Namespaces, String> {
        let number = std::process::id();
        let made = Namespaces { names: ["a", "b"].map(|end| format!("towpath-{number}-{what}-{end}")) };
        for name in &made.names {
            ip(&format!("netns add {name}"))?;
            ip(&format!("-n {name} link set lo up"))?;
        }
        Ok(made)
    }

    /// A program in one of them, with no variable of ours in its environment.
    pub(crate) fn command(&self, end: usize, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names[end]]).arg(program).stdin(Stdio::null());
        unset_ours(&mut command);
        command
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            // One that was never made is not there to be removed.
            let _ = ip(&format!("netns delete {name}"));
        }
    }
}
