//! The command line: one file a command.
//!
//! A command reads its arguments, does one thing through the library or through a daemon's API
//! ([`Api`]), prints to standard output and answers with a [`Failure`] when it could not. Help, man pages
//! and completions come from the same derive.

mod backup;
mod bench;
mod completions;
mod config;
mod connect;
mod connections;
mod demo;
mod doctor;
mod failure;
mod figures;
mod follow;
mod forward;
mod health;
mod man;
mod metadata;
mod moving;
mod pipe;
mod print;
mod progress;
mod publish;
mod reload;
mod remote;
mod replicas;
mod river;
mod serve;
mod signals;
mod spool;
mod stream;
mod token;
mod top;
mod version;
mod way;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

pub use crate::client::http::Api;
pub use failure::{Exit, Failure};
pub use print::{Table, say};
pub use remote::Remote;

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "towpath",
    bin_name = "towpath",
    version,
    about = "Live work that survives broken connections",
    long_about = "Live work that survives broken connections: streams, pipes, sessions, metadata and a \
                  connection log, from one daemon without other services.",
    after_long_help = "Examples:\n  \
        towpath serve                                  serve on 127.0.0.1:7700, keep data in ./towpath-data\n  \
        towpath demo                                   the same with something going on in it\n  \
        towpath follow chat/1                          print a stream as it happens\n  \
        towpath config init > towpath.toml             a file with every setting, explained\n\n\
        Exit codes: 0 done, 1 failed, 2 usage, 3 drain timed out, 69 store unavailable,\n\
        73 cannot create, 78 configuration.",
    propagate_version = true,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Backup(backup::Backup),
    Bench(bench::Bench),
    Completions(completions::Completions),
    Config(config::Config),
    Connect(connect::Connect),
    Connections(connections::Connections),
    Demo(demo::Demo),
    Doctor(doctor::Doctor),
    Follow(follow::Follow),
    Forward(forward::Forward),
    Health(health::Health),
    Man(man::Man),
    Metadata(metadata::Metadata),
    Move(moving::Move),
    Pipe(pipe::Pipe),
    Publish(publish::Publish),
    Reload(reload::Reload),
    Replicas(replicas::Replicas),
    River(river::River),
    Serve(serve::Serve),
    Spool(spool::Spool),
    Stream(stream::Stream),
    Token(token::Token),
    Top(top::Top),
    Version(version::Version),
}

impl Command {
    fn run(self) -> Result<(), Failure> {
        match self {
            Command::Backup(command) => command.run(),
            Command::Bench(command) => command.run(),
            Command::Completions(command) => command.run(),
            Command::Config(command) => command.run(),
            Command::Connect(command) => command.run(),
            Command::Connections(command) => command.run(),
            Command::Demo(command) => command.run(),
            Command::Doctor(command) => command.run(),
            Command::Follow(command) => command.run(),
            Command::Forward(command) => command.run(),
            Command::Health(command) => command.run(),
            Command::Man(command) => command.run(),
            Command::Metadata(command) => command.run(),
            Command::Move(command) => command.run(),
            Command::Pipe(command) => command.run(),
            Command::Publish(command) => command.run(),
            Command::Reload(command) => command.run(),
            Command::Replicas(command) => command.run(),
            Command::River(command) => command.run(),
            Command::Serve(command) => command.run(),
            Command::Spool(command) => command.run(),
            Command::Stream(command) => command.run(),
            Command::Token(command) => command.run(),
            Command::Top(command) => command.run(),
            Command::Version(command) => command.run(),
        }
    }
}

/// The program: parses the process's arguments, runs the command, says what went wrong.
pub fn main() -> ExitCode {
    run(std::env::args_os())
}

fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are "errors" that go to standard output and exit with 0. Nothing is
            // left to tell if writing them fails.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Usage as u8));
        }
    };
    match cli.command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// What help, man pages and completions are made from.
fn command() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn every_command_says_what_it_does_and_how_it_is_used() {
        fn visit(path: &str, command: &clap::Command) {
            let path = format!("{path} {}", command.get_name());
            assert!(command.get_about().is_some(), "{path} has no help");
            let leaf = command.get_subcommands().next().is_none();
            assert!(!leaf || command.get_after_long_help().is_some(), "{path} --help shows no example");
            for argument in command.get_arguments() {
                let id = argument.get_id();
                assert!(argument.get_help().is_some(), "{path}: {id} has no help");
            }
            command.get_subcommands().for_each(|command| visit(&path, command));
        }
        visit("", &command());
    }
}
