//! Opening a PostgreSQL connection, for the stores and for the bus.
//!
//! A connection that nobody answers on must not hold a thread for ever: connecting, locks, statements
//! and silent links all have a time limit, and so has the kernel's patience with unacknowledged bytes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use postgres::config::SslMode;
use postgres::{Client, Config, NoTls};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::StoreError;

/// How long each step may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For a connection to be made.
    pub connect: Duration,
    /// For one statement.
    pub statement: Duration,
    /// For a lock that another transaction holds.
    pub lock: Duration,
    /// For the other end's kernel to acknowledge what was sent.
    pub acknowledge: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            connect: Duration::from_secs(5),
            statement: Duration::from_secs(10),
            lock: Duration::from_secs(3),
            acknowledge: Duration::from_secs(10),
        }
    }
}

/// How a database is reached: parsed once, dialed often.
#[derive(Clone)]
pub(crate) struct Dial {
    config: Config,
    tls: Option<Arc<ClientConfig>>,
    /// For messages: the address without its password.
    pub(crate) shown: String,
}

impl Dial {
    /// Reads `postgres://…`. Of TLS it knows `sslmode=require` (with `sslrootcert=FILE` the server must
    /// prove who it is, as with `verify-ca` and `verify-full`) and `sslrootcert`.
    pub(crate) fn parse(url: &str, patience: Patience) -> Result<Dial, StoreError> {
        let (plain, asked) = without_tls_options(url);
        let mut config: Config = plain
            .parse()
            .map_err(|e| StoreError::fatal("bad_address", format!("the store's address: {e}")))?;
        config
            .connect_timeout(patience.connect)
            .keepalives(true)
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(3))
            .keepalives_retries(3)
            .tcp_user_timeout(patience.acknowledge);
        if config.get_application_name().is_none() {
            config.application_name("towpath");
        }
        // The server notices as soon as we do that the other end is gone, and lets go of its locks.
        let limits = format!(
            "-c statement_timeout={} -c lock_timeout={} -c idle_in_transaction_session_timeout=60000 \
             -c tcp_keepalives_idle=10 -c tcp_keepalives_interval=3 -c tcp_keepalives_count=3",
            patience.statement.as_millis(),
            patience.lock.as_millis()
        );
        let options = match config.get_options() {
            Some(given) => format!("{limits} {given}"),
            None => limits,
        };
        config.options(&options);
        let tls = match asked.mode.as_deref() {
            None | Some("disable") => {
                config.ssl_mode(SslMode::Disable);
                None
            }
            Some("prefer") => {
                config.ssl_mode(SslMode::Prefer);
                Some(tls_config(&asked)?)
            }
            Some("require" | "verify-ca" | "verify-full") => {
                config.ssl_mode(SslMode::Require);
                Some(tls_config(&asked)?)
            }
            Some(other) => {
                let text = format!("sslmode={other} is not one of disable, prefer, require, verify-full");
                return Err(StoreError::fatal("bad_address", text));
            }
        };
        Ok(Dial { shown: shown(&config), config, tls })
    }

    /// Connects. A failure is worth another try unless the server refused the credentials.
    pub(crate) fn connect(&self) -> Result<Client, StoreError> {
        // The client makes itself a runtime, and panics where no file descriptor is left for it.
        let dialed = catch_unwind(AssertUnwindSafe(|| match &self.tls {
            None => self.config.connect(NoTls),
            Some(tls) => self.config.connect(MakeRustlsConnect::new((**tls).clone())),
        }));
        match dialed {
            Ok(Ok(client)) => Ok(client),
            Ok(Err(error)) => {
                let mut error = classify(&error);
                error.text = format!("cannot connect to {}: {}", self.shown, error.text);
                Err(error)
            }
            Err(_) => {
                let text = format!("cannot connect to {}: no resources left for a connection", self.shown);
                Err(StoreError::retry("unreachable", text))
            }
        }
    }
}

fn shown(config: &Config) -> String {
    let host = match config.get_hosts().first() {
        Some(postgres::config::Host::Tcp(host)) => host.clone(),
        Some(postgres::config::Host::Unix(path)) => path.display().to_string(),
        None => "localhost".into(),
    };
    let port = config.get_ports().first().copied().unwrap_or(5432);
    format!("postgres://{host}:{port}/{}", config.get_dbname().unwrap_or_default())
}

/// What the address says about TLS.
#[derive(Default)]
struct TlsAsked {
    mode: Option<String>,
    root: Option<String>,
}

/// Takes the options out that the client does not know, from an address or from key=value pairs.
fn without_tls_options(url: &str) -> (String, TlsAsked) {
    let mut asked = TlsAsked::default();
    let mut keep = |option: &&str| match option.split_once('=') {
        Some(("sslmode", mode)) => {
            asked.mode = Some(mode.into());
            false
        }
        Some(("sslrootcert", path)) => {
            asked.root = Some(path.replace("%2F", "/").replace("%2f", "/"));
            false
        }
        _ => true,
    };
    if !url.contains("://") {
        let kept: Vec<&str> = url.split_whitespace().filter(&mut keep).collect();
        return (kept.join(" "), asked);
    }
    let Some((address, query)) = url.split_once('?') else { return (url.into(), asked) };
    let kept: Vec<&str> = query.split('&').filter(&mut keep).collect();
    let plain = if kept.is_empty() { address.into() } else { format!("{address}?{}", kept.join("&")) };
    (plain, asked)
}

fn tls_config(asked: &TlsAsked) -> Result<Arc<ClientConfig>, StoreError> {
    let bad = |text: String| StoreError::fatal("bad_address", text);
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| bad(format!("TLS to the store: {e}")))?;
    let must_verify = asked.mode.as_deref().is_some_and(|mode| mode.starts_with("verify"));
    let config = match &asked.root {
        None if must_verify => {
            return Err(bad(
                "sslmode=verify-full needs sslrootcert=FILE with the authority's certificate".into()
            ));
        }
        // As libpq does: encrypted, but anyone may be at the other end.
        None => builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer(provider))),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            let certificates = CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|e| bad(format!("sslrootcert={path}: {e}")))?;
            for certificate in certificates {
                roots.add(certificate).map_err(|e| bad(format!("sslrootcert={path}: {e}")))?;
            }
            builder.with_root_certificates(roots)
        }
    };
    Ok(Arc::new(config.with_no_client_auth()))
}

/// Takes any certificate that the server can sign with.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// What PostgreSQL's answer, or its silence, means for whoever asked.
pub(crate) fn classify(error: &postgres::Error) -> StoreError {
    let Some(db) = error.as_db_error() else {
        // The driver tells its own failures apart in words only.
        let text = match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        return match () {
            () if text.starts_with("error serializing") => StoreError::split("encoding", text),
            () if text.starts_with("error deserializing") => StoreError::fatal("damaged", text),
            () if text.starts_with("invalid configuration") => StoreError::fatal("bad_address", text),
            () => StoreError::retry("unreachable", text),
        };
    };
    let state = db.code().code();
    let text = match db.detail() {
        Some(detail) => format!("PostgreSQL: {} ({state}): {detail}", db.message()),
        None => format!("PostgreSQL: {} ({state})", db.message()),
    };
    match state {
        "57014" | "55P03" | "25P03" => StoreError::retry("timeout", text),
        "40001" | "40P01" | "40003" => StoreError::retry("busy", text),
        // A plan that no longer fits its tables: the next call prepares it again.
        "0A000" if db.message().contains("cached plan") => StoreError::retry("busy", text),
        "26000" => StoreError::retry("busy", text),
        // A replica of the database before it is promoted.
        "25006" => StoreError::retry("read_only", text),
        "53100" => StoreError::retry("full", text),
        _ => match &state[..2] {
            "08" | "57" | "58" => StoreError::retry("unreachable", text),
            "53" | "54" => StoreError::retry("memory", text),
            "22" => StoreError::split("encoding", text),
            "23" => StoreError::split("constraint", text),
            "28" => StoreError::fatal("credentials", text),
            _ => StoreError::fatal("postgres", text),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_never_shows_its_password() {
        let dial =
            Dial::parse("postgres://me:secret@db.example:5433/work", Patience::default()).expect("parses");
        assert_eq!(dial.shown, "postgres://db.example:5433/work");
    }

    #[test]
    fn options_of_tls_are_taken_out_of_the_address() {
        let (plain, asked) =
            without_tls_options("postgres://h/d?sslmode=verify-full&connect_timeout=3&sslrootcert=%2Fca.pem");
        assert_eq!(plain, "postgres://h/d?connect_timeout=3");
        assert_eq!((asked.mode.as_deref(), asked.root.as_deref()), (Some("verify-full"), Some("/ca.pem")));
        let (plain, asked) = without_tls_options("host=h sslmode=require dbname=d");
        assert_eq!((plain.as_str(), asked.mode.as_deref()), ("host=h dbname=d", Some("require")));
    }

    #[test]
    fn verification_without_an_authority_is_refused_by_name() {
        let Err(error) = Dial::parse("postgres://h/d?sslmode=verify-full", Patience::default()) else {
            panic!("an authority is needed")
        };
        assert!(error.text.contains("sslrootcert"), "{error}");
        assert_eq!(error.class, super::super::Class::Fatal);
    }
}
