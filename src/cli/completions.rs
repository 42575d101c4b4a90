//! `towpath completions SHELL`

use clap::Args;
use clap_complete::Shell;

use super::Failure;

/// Print completions for a shell
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    towpath completions bash > /etc/bash_completion.d/towpath\n  \
    towpath completions zsh > \"${fpath[1]}/_towpath\"\n  \
    towpath completions fish > ~/.config/fish/completions/towpath.fish")]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::command(), "towpath", &mut script);
        super::say(String::from_utf8_lossy(&script).trim_end())
    }
}
