//! Bearer tokens that are JWTs (RFC 7519).
//!
//! The key decides the algorithm; what a token's header says about it is only compared. Claims: `sub` (who),
//! `exp` (required), `roles` (default: what `streams` needs), `streams: [{"match": …, "ops": […]}]`.

use std::collections::BTreeSet;

use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;

use super::auth::{Op, Principal, Role, Scope};
use super::gate::Verifier;
use super::secret::Secret;
use super::token::mark;
use crate::error::{Code, Error, Result};
use crate::rt::Rt;
use crate::state::time::Wall;
use crate::wire::Pass;

/// Verifies JWTs of one key.
pub struct Jwt {
    key: DecodingKey,
    algorithm: Algorithm,
    pass: Pass,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: i64,
    nbf: Option<i64>,
    roles: Option<Vec<String>>,
    streams: Option<Vec<StreamClaim>>,
}

#[derive(Deserialize)]
struct StreamClaim {
    #[serde(rename = "match")]
    matches: String,
    ops: Vec<String>,
}

impl Jwt {
    /// Tokens signed with a shared secret (HS256).
    ///
    /// # Errors
    /// A secret under 32 characters could be guessed.
    pub fn hs256(secret: &Secret) -> Result<Jwt> {
        if secret.reveal().len() < Secret::LEN_MIN {
            return Err(Error::new(Code::BadConfig, "the secret of JWTs has at least 32 characters"));
        }
        let key = DecodingKey::from_secret(secret.reveal().as_bytes());
        let pass = Pass::new(mark(secret.reveal().as_bytes()));
        Ok(Jwt { key, algorithm: Algorithm::HS256, pass })
    }

    /// Tokens signed with a private key whose public half is this PEM: Ed25519 (EdDSA) or RSA (RS256).
    ///
    /// # Errors
    /// If the PEM holds neither.
    pub fn from_pem(pem: &[u8]) -> Result<Jwt> {
        let pass = Pass::new(mark(pem));
        if let Ok(key) = DecodingKey::from_ed_pem(pem) {
            return Ok(Jwt { key, algorithm: Algorithm::EdDSA, pass });
        }
        match DecodingKey::from_rsa_pem(pem) {
            Ok(key) => Ok(Jwt { key, algorithm: Algorithm::RS256, pass }),
            Err(error) => {
                let text = format!("the key of JWTs is neither an Ed25519 nor an RSA public key: {error}");
                Err(Error::new(Code::BadConfig, text))
            }
        }
    }

    fn principal(&self, token: &str, now: Wall) -> Option<Principal> {
        let mut validation = Validation::new(self.algorithm);
        // Times are judged here, by the clock of the engine.
        (validation.validate_exp, validation.validate_nbf, validation.validate_aud) = (false, false, false);
        validation.required_spec_claims.clear();
        let claims = jsonwebtoken::decode::<Claims>(token, &self.key, &validation).ok()?.claims;
        let expires = Wall::from_millis(claims.exp.checked_mul(1_000)?);
        let begun = claims.nbf.is_none_or(|nbf| nbf.saturating_mul(1_000) <= now.as_millis());
        if now >= expires || !begun {
            return None;
        }
        let scopes = match claims.streams {
            Some(streams) => Some(streams.into_iter().map(scope).collect::<Option<Vec<_>>>()?),
            None => None,
        };
        let roles = match claims.roles {
            Some(roles) => roles.iter().map(|role| Role::parse(role)).collect::<Option<Vec<_>>>()?,
            None => implied(scopes.as_deref().unwrap_or_default()),
        };
        Some(Principal {
            name: claims.sub,
            roles,
            scopes,
            expires: Some(expires),
            pass: Some(self.pass.clone()),
        })
    }
}

fn scope(claim: StreamClaim) -> Option<Scope> {
    let ops = claim.ops.iter().map(|op| Op::parse(op)).collect::<Option<Vec<_>>>()?;
    Some(Scope { matches: claim.matches, ops })
}

/// The roles without which the scopes would mean nothing.
fn implied(scopes: &[Scope]) -> Vec<Role> {
    let roles: BTreeSet<Role> = scopes
        .iter()
        .flat_map(|scope| &scope.ops)
        .map(|op| match op {
            Op::Follow | Op::Interrupt => Role::Follower,
            Op::Append | Op::Produce | Op::Manage => Role::Producer,
        })
        .collect();
    roles.into_iter().collect()
}

impl Verifier for Jwt {
    fn holder(&self, token: &str, rt: &Rt) -> Option<Principal> {
        // Cheap to tell from a static token: three parts.
        if token.bytes().filter(|&byte| byte == b'.').count() != 2 {
            return None;
        }
        self.principal(token, rt.wall())
    }

    fn pass(&self) -> Option<&Pass> {
        Some(&self.pass)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{EncodingKey, Header, encode};
    use serde_json::json;

    const KEY: &str = "a-secret-that-is-thirty-two-bytes-long";
    const NOW: Wall = Wall(1_000_000_000_000);

    fn signed(algorithm: Algorithm, key: &str, claims: &serde_json::Value) -> String {
        encode(&Header::new(algorithm), claims, &EncodingKey::from_secret(key.as_bytes())).unwrap()
    }

    fn read(token: &str) -> Option<Principal> {
        Jwt::hs256(&Secret::new(KEY)).unwrap().principal(token, NOW)
    }

    #[test]
    fn claims_become_roles_and_scopes() {
        let claims =
            json!({"sub": "u", "exp": 1_000_001, "streams": [{"match": "chat/*", "ops": ["follow"]}]});
        let who = read(&signed(Algorithm::HS256, KEY, &claims)).unwrap();
        assert_eq!((who.name.as_str(), &who.roles[..]), ("u", &[Role::Follower][..]));
        assert!(
            who.may(Op::Follow, "chat/1") && !who.may(Op::Follow, "other") && !who.may(Op::Append, "chat/1")
        );
        assert_eq!(who.expires, Some(Wall(1_000_001_000_000)));
    }

    #[test]
    fn what_is_not_right_is_nobodys() {
        let good = json!({"sub": "u", "exp": 1_000_001, "roles": ["admin"]});
        assert!(read(&signed(Algorithm::HS256, KEY, &good)).is_some());
        let with = |key: &str, value: serde_json::Value| {
            let mut claims = good.clone();
            claims[key] = value;
            signed(Algorithm::HS256, KEY, &claims)
        };
        for (why, token) in [
            ("expired", with("exp", json!(1_000_000))),
            ("not yet", with("nbf", json!(1_000_001))),
            ("an unknown role", with("roles", json!(["root"]))),
            ("an unknown operation", with("streams", json!([{"match": "*", "ops": ["fly"]}]))),
            ("another key", signed(Algorithm::HS256, &KEY.replace('a', "b"), &good)),
            ("another algorithm", signed(Algorithm::HS384, KEY, &good)),
            ("no algorithm", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ1IiwiZXhwIjoxMDAwMDAxfQ.".into()),
            ("no expiry", signed(Algorithm::HS256, KEY, &json!({"sub": "u"}))),
        ] {
            assert!(read(&token).is_none(), "{why}");
        }
    }

    #[test]
    fn a_short_secret_is_refused() {
        assert!(Jwt::hs256(&Secret::new("short")).is_err());
        assert!(Jwt::from_pem(b"rubbish").is_err());
    }
}
