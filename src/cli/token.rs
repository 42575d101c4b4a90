//! `towpath token …`

use std::io::{self, BufRead};

use clap::{Args, Subcommand};

use super::{Exit, Failure, say};
use crate::front::{Op, Role, Scope, Secret, Tokens, hash_token, new_token};
use crate::rt::Rt;

/// Make tokens for a daemon's token file
#[derive(Debug, Args)]
pub(super) struct Token {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a token: the secret goes to standard output, the line for the file to standard error
    #[command(after_long_help = "Examples:\n  \
        towpath token new ci --role producer > ci.token 2>> tokens\n  \
        towpath token new alice --role follower --scope 'chat/*=follow,append'\n\n\
        Only the hash stands in the file; the secret is shown once, here.\n\
        Roles: admin, producer, follower, agent, pipe.")]
    New {
        /// Whose it is: a name for logs
        name: String,
        /// What it may do (may be repeated)
        #[arg(long = "role", required = true, value_parser = role)]
        roles: Vec<Role>,
        /// Which streams, and what may be done with them: `chat/*=follow,append` (may be repeated)
        #[arg(long = "scope", value_name = "STREAMS=OPS", value_parser = scope)]
        scopes: Vec<Scope>,
    },
    /// Read a token from standard input and print its hash
    #[command(after_long_help = "Examples:\n  towpath token hash < ci.token")]
    Hash,
}

impl Token {
    pub(super) fn run(self) -> Result<(), Failure> {
        let bad = |error: crate::front::BadToken| Failure::new(Exit::Usage, "bad_token", error.to_string());
        match self.command {
            Command::New { name, roles, scopes } => {
                let token = new_token(&Rt::real());
                let line = Tokens::line(&name, &token, &roles, &scopes).map_err(bad)?;
                say(token.reveal())?;
                io::Write::write_all(&mut io::stderr(), format!("{line}\n").as_bytes())?;
                Ok(())
            }
            Command::Hash => {
                let mut line = String::new();
                io::stdin().lock().read_line(&mut line)?;
                say(hash_token(&Secret::new(line.trim())).map_err(bad)?)
            }
        }
    }
}

fn role(text: &str) -> Result<Role, String> {
    Role::parse(text).ok_or_else(|| {
        let known: Vec<&str> = Role::ALL.iter().map(|role| role.as_str()).collect();
        format!("write one of {}", known.join(", "))
    })
}

fn scope(text: &str) -> Result<Scope, String> {
    let (matches, ops) = text.rsplit_once('=').ok_or("write STREAMS=OPS, like chat/*=follow,append")?;
    let ops: Option<Vec<Op>> = ops.split(',').map(Op::parse).collect();
    let known: Vec<&str> = Op::ALL.iter().map(|op| op.as_str()).collect();
    let ops = ops.ok_or_else(|| format!("write some of {}", known.join(", ")))?;
    Ok(Scope { matches: matches.to_owned(), ops })
}
