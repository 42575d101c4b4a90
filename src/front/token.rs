//! Static tokens: who holds one, what it is good for, and the file that keeps their hashes.
//!
//! One token a line: a name, the hash, roles, and any number of scopes.
//!
//! ```text
//! # name    hash                roles               scopes (none: every stream)
//! alice     sha256:0a1b…        producer,follower   chat/*=follow,append,produce
//! ci        sha256:2c3d…        admin
//! ```

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::auth::{Op, Principal, Role, Scope};
use super::secret::Secret;
use crate::rt::Rt;
use crate::wire::Pass;

/// What every token made here begins with, so that scanners of code and logs know one when they see it.
const PREFIX: &str = "tpt_";

/// A token that nobody has: 32 bytes from the system.
pub fn new_token(rt: &Rt) -> Secret {
    Secret::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(rt.secret::<32>())))
}

/// What a token file keeps of a token.
///
/// # Errors
/// A token under 32 characters could be guessed.
pub fn hash_token(token: &Secret) -> Result<String, BadToken> {
    if token.reveal().len() < Secret::LEN_MIN {
        return Err(BadToken("a token has at least 32 characters"));
    }
    let digest = digest(token.reveal());
    Ok(format!("sha256:{}", digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// Why a token or a line of a token file is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadToken(pub &'static str);

impl fmt::Display for BadToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for BadToken {}

/// Every token of a file.
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    entries: Vec<Entry>,
}

#[derive(Clone)]
struct Entry {
    hash: [u8; 32],
    who: Principal,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.who.name)
    }
}

impl Tokens {
    /// Reads a token file. Empty lines and what follows a `#` are nothing.
    ///
    /// # Errors
    /// The number of the first line that is wrong, and what is.
    pub fn parse(text: &str) -> Result<Tokens, (usize, BadToken)> {
        let mut tokens = Tokens::default();
        for (at, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let entry = entry(line).map_err(|bad| (at + 1, bad))?;
            if tokens.entries.iter().any(|other| other.who.name == entry.who.name) {
                return Err((at + 1, BadToken("the name is there twice")));
            }
            tokens.entries.push(entry);
        }
        Ok(tokens)
    }

    /// A file's line for a token.
    ///
    /// # Errors
    /// As [`hash_token`], and if the name or a scope holds what would end it in a file.
    pub fn line(name: &str, token: &Secret, roles: &[Role], scopes: &[Scope]) -> Result<String, BadToken> {
        let roles: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
        let mut line = format!("{name} {} {}", hash_token(token)?, roles.join(","));
        for scope in scopes {
            let ops: Vec<&str> = scope.ops.iter().map(|op| op.as_str()).collect();
            line.push_str(&format!(" {}={}", scope.matches, ops.join(",")));
        }
        // What is written has to be read back as the same.
        let read = entry(&line)?;
        let same = read.who.name == name && read.who.scopes.as_deref().unwrap_or_default() == scopes;
        if same && !line.contains(['#', '\n', '\r']) {
            Ok(line)
        } else {
            Err(BadToken("the name or a scope holds a space, a line end or a #"))
        }
    }

    /// Who holds this token. Every entry is compared, and each in the same time.
    pub fn holder(&self, token: &str) -> Option<&Principal> {
        let hash = digest(token);
        let mut found = None;
        for entry in &self.entries {
            if bool::from(entry.hash.ct_eq(&hash)) {
                found = Some(&entry.who);
            }
        }
        found.filter(|_| token.len() >= Secret::LEN_MIN)
    }

    /// Takes the place of older ones: a token that stands in both as it was keeps its pass, those of the
    /// others end. True if any did.
    pub(super) fn succeed(&mut self, older: &Tokens) -> bool {
        for entry in &mut self.entries {
            if let Some(same) = older.passes().find(|pass| entry.who.pass.as_ref() == Some(pass)) {
                entry.who.pass = Some(same.clone());
            }
        }
        let gone = older.passes().filter(|pass| !self.passes().any(|own| own == *pass));
        gone.inspect(|pass| pass.end()).count() > 0
    }

    /// What stands for each.
    pub(super) fn passes(&self) -> impl Iterator<Item = &Pass> {
        self.entries.iter().filter_map(|entry| entry.who.pass.as_ref())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

fn entry(line: &str) -> Result<Entry, BadToken> {
    let mut words = line.split_whitespace();
    let (Some(name), Some(hash), Some(roles)) = (words.next(), words.next(), words.next()) else {
        return Err(BadToken("a line is `name hash roles [scope…]`"));
    };
    let scopes: Vec<Scope> = words.map(scope).collect::<Result<_, _>>()?;
    let roles = roles.split(',').map(Role::parse).collect::<Option<Vec<_>>>();
    let roles = roles.ok_or(BadToken("roles are admin, producer, follower, agent, pipe"))?;
    let who = Principal {
        name: name.to_owned(),
        roles,
        scopes: if scopes.is_empty() { None } else { Some(scopes) },
        expires: None,
        pass: Some(Pass::new(mark(line.as_bytes()))),
    };
    Ok(Entry { hash: read_hash(hash)?, who })
}

/// What tells one line of a token file, or one key of JWTs, from another.
pub(super) fn mark(credentials: &[u8]) -> u64 {
    let digest = Sha256::digest(credentials);
    u64::from_be_bytes(digest[..8].try_into().expect("a digest is longer"))
}

fn read_hash(text: &str) -> Result<[u8; 32], BadToken> {
    let bad = BadToken("a hash is `sha256:` and 64 hex digits (`towpath token hash` makes one)");
    let digits =
        text.strip_prefix("sha256:").filter(|digits| digits.len() == 64 && digits.is_ascii()).ok_or(bad)?;
    let mut hash = [0; 32];
    for (at, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).map_err(|_| bad)?;
    }
    Ok(hash)
}

fn scope(text: &str) -> Result<Scope, BadToken> {
    let (matches, ops) =
        text.split_once('=').ok_or(BadToken("a scope is `name=op,op` or `beginning*=op,op`"))?;
    let ops = ops.split(',').map(Op::parse).collect::<Option<Vec<_>>>();
    let ops = ops.ok_or(BadToken("operations are follow, append, produce, interrupt, manage"))?;
    Ok(Scope { matches: matches.to_owned(), ops })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Secret {
        Secret::new("x".repeat(40))
    }

    #[test]
    fn a_line_that_is_written_is_read_back() {
        let scopes = [Scope { matches: "chat/*".into(), ops: vec![Op::Follow, Op::Append] }];
        let line = Tokens::line("alice", &token(), &[Role::Producer, Role::Follower], &scopes).unwrap();
        let tokens = Tokens::parse(&format!("# who may\n\n{line}  # hers\n")).unwrap();
        let who = tokens.holder(token().reveal()).unwrap();
        assert_eq!((who.name.as_str(), who.scopes.as_deref()), ("alice", Some(&scopes[..])));
        assert!(
            who.may(Op::Append, "chat/7") && !who.may(Op::Append, "other") && !who.may(Op::Manage, "chat/7")
        );
        assert!(tokens.holder(&"y".repeat(40)).is_none());
        assert!(!line.contains(token().reveal()), "only the hash is kept");
    }

    #[test]
    fn a_wrong_line_says_which_and_why() {
        let good = Tokens::line("a", &token(), &[Role::Admin], &[]).unwrap();
        for (text, line) in [
            ("a", 1),
            ("\na sha256:00 admin", 2),
            (&*format!("{good}\n{good}"), 2),
            (&*good.replace("admin", "root"), 1),
            (&*format!("{good} chat"), 1),
            (&*format!("{good} chat=fly"), 1),
        ] {
            assert_eq!(Tokens::parse(text).unwrap_err().0, line, "{text}");
        }
    }

    #[test]
    fn a_short_token_is_refused() {
        assert!(hash_token(&Secret::new("x".repeat(31))).is_err());
        assert!(new_token(&Rt::real()).reveal().len() >= Secret::LEN_MIN);
        assert_ne!(new_token(&Rt::real()), new_token(&Rt::real()));
    }

    #[test]
    fn a_name_that_would_end_its_line_is_refused() {
        for name in ["a b", "a\nb", "#a", ""] {
            assert!(Tokens::line(name, &token(), &[Role::Admin], &[]).is_err(), "{name:?}");
        }
    }
}
