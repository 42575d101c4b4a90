//! TLS over a socket that does not block: rustls, driven by the same loop as everything else.

use std::io::{self, IoSlice, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::error::{Code, Error, Result};
use crate::rt::Lock;

/// What a listener shows and proves with. Clones are the same: what replaces one replaces all.
#[derive(Clone, Debug)]
pub struct ServerTls {
    config: Arc<Lock<Arc<ServerConfig>>>,
}

impl ServerTls {
    /// Reads a certificate chain and its key, both PEM.
    ///
    /// # Errors
    /// If a file cannot be read, holds no PEM, or key and certificate do not belong together.
    pub fn from_files(chain: &Path, key: &Path) -> Result<ServerTls> {
        ServerTls::of(chain, key, None)
    }

    /// The same, for callers that show a certificate of this authority (PEM) and for nobody else.
    ///
    /// # Errors
    /// Those of [`ServerTls::from_files`], and the authority's file.
    pub fn among(authority: &Path, chain: &Path, key: &Path) -> Result<ServerTls> {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(authority)?), provider())
            .build()
            .map_err(|error| bad(authority, &error))?;
        ServerTls::of(chain, key, Some(verifier))
    }

    fn of(chain: &Path, key: &Path, callers: Option<Arc<dyn ClientCertVerifier>>) -> Result<ServerTls> {
        let (certificates, private) = identity(chain, key)?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                let builder = match callers {
                    Some(verifier) => builder.with_client_cert_verifier(verifier),
                    None => builder.with_no_client_auth(),
                };
                builder.with_single_cert(certificates, private)
            })
            .map_err(|error| bad(chain, &error))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(ServerTls { config: Arc::new(Lock::new(Arc::new(config))) })
    }

    /// Shows what `other` shows from now on. Links that are open keep what they have.
    pub fn replace(&self, other: &ServerTls) {
        let config = other.config.lock().clone();
        *self.config.lock() = config;
    }
}

/// Whom a dialer trusts.
#[derive(Clone, Debug)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
}

impl ClientTls {
    /// Trusts the certificates of a PEM file.
    ///
    /// # Errors
    /// If the file cannot be read or holds no certificate.
    pub fn trusting(file: &Path) -> Result<ClientTls> {
        ClientTls::with_roots(roots(file)?, None)
    }

    /// Trusts the authority of a PEM file, and shows this chain to those it calls.
    ///
    /// # Errors
    /// If a file cannot be read, holds no PEM, or key and certificate do not belong together.
    pub fn among(authority: &Path, chain: &Path, key: &Path) -> Result<ClientTls> {
        let (certificates, private) = identity(chain, key)?;
        ClientTls::with_roots(roots(authority)?, Some((certificates, private))).map_err(|e| bad(chain, &e))
    }

    /// Trusts what the system trusts: `SSL_CERT_FILE`, or the bundle at one of the usual places.
    ///
    /// # Errors
    /// If none of them is there.
    pub fn system() -> Result<ClientTls> {
        match system_bundle() {
            Some(file) => ClientTls::trusting(&file),
            None => {
                let text = "there is no bundle of trusted certificates: set SSL_CERT_FILE";
                Err(Error::new(Code::BadConfig, text))
            }
        }
    }

    /// The client's end of one connection to `host`.
    ///
    /// # Errors
    /// If the host is no name a certificate could carry.
    pub fn connection(&self, host: &str) -> io::Result<Connection> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        Ok(ClientConnection::new(self.config.clone(), name).map_err(io::Error::other)?.into())
    }

    fn with_roots(roots: RootCertStore, shown: Option<Shown>) -> Result<ClientTls> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::new(Code::Internal, format!("TLS has no protocol versions: {error}")))?
            .with_root_certificates(roots);
        let config = match shown {
            None => builder.with_no_client_auth(),
            Some((certificates, private)) => builder
                .with_client_auth_cert(certificates, private)
                .map_err(|error| Error::new(Code::BadConfig, error.to_string()))?,
        };
        Ok(ClientTls { config: Arc::new(config) })
    }
}

/// A chain and the key that proves it is one's own.
type Shown = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn bad(what: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::new(Code::BadConfig, format!("cannot use {} for TLS: {why}", what.display()))
}

/// Where this machine says whom it trusts.
fn system_bundle() -> Option<PathBuf> {
    const PLACES: [&str; 4] = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/cert.pem",
        "/etc/ssl/ca-bundle.pem",
    ];
    let usual = || PLACES.iter().map(PathBuf::from).find(|place| place.exists());
    std::env::var_os("SSL_CERT_FILE").map(PathBuf::from).or_else(usual)
}

/// For HTTP requests that block: trusts the certificates of a PEM file, or else what the system trusts, which
/// is nobody where it does not say.
///
/// # Errors
/// If the file cannot be read or holds no certificate.
pub fn http_trust(file: Option<&Path>) -> Result<TlsConfig> {
    let certificates: Vec<Certificate<'static>> = match file {
        Some(file) => certificates(file)?,
        None => system_bundle().and_then(|file| certificates(&file).ok()).unwrap_or_default(),
    };
    let builder = TlsConfig::builder().root_certs(RootCerts::from(certificates));
    Ok(builder.unversioned_rustls_crypto_provider(provider()).build())
}

fn certificates(file: &Path) -> Result<Vec<Certificate<'static>>> {
    let read = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>)
        .map_err(|error| bad(file, &error))?;
    if read.is_empty() {
        return Err(bad(file, &"it holds no certificate"));
    }
    Ok(read.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect())
}

fn identity(chain: &Path, key: &Path) -> Result<Shown> {
    let certificates = CertificateDer::pem_file_iter(chain)
        .and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>)
        .map_err(|error| bad(chain, &error))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| bad(key, &error))?;
    Ok((certificates, private))
}

fn roots(file: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|error| bad(file, &error))? {
        let certificate = certificate.map_err(|error| bad(file, &error))?;
        roots.add(certificate).map_err(|error| bad(file, &error))?;
    }
    if roots.is_empty() {
        return Err(bad(file, &"it holds no certificate"));
    }
    Ok(roots)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// TLS between a link and its socket.
pub(super) struct Tls {
    connection: Connection,
}

/// Plain bytes that may wait inside TLS to be encrypted and sent.
const BUFFER_MAX: usize = 64 * 1024;

impl Tls {
    pub(super) fn server(tls: &ServerTls) -> io::Result<Tls> {
        let connection = ServerConnection::new(tls.config.lock().clone()).map_err(io::Error::other)?;
        Ok(Tls::new(connection.into()))
    }

    pub(super) fn client(tls: &ClientTls, host: &str) -> io::Result<Tls> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let connection = ClientConnection::new(tls.config.clone(), name).map_err(io::Error::other)?;
        Ok(Tls::new(connection.into()))
    }

    fn new(mut connection: Connection) -> Tls {
        connection.set_buffer_limit(Some(BUFFER_MAX));
        Tls { connection }
    }

    /// Gives it away, whatever it holds.
    pub(super) fn into_connection(self) -> Connection {
        self.connection
    }

    /// Reads plain bytes; `Ok(0)` at the end.
    pub(super) fn read(&mut self, socket: &mut (impl Read + Write), buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.connection.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // An end without `close_notify`: the framing of HTTP and WebSocket tells whether
                // something is missing.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                read => return read,
            }
            match self.connection.read_tls(socket) {
                Ok(0) => return Ok(0),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            let processed = self.connection.process_new_packets();
            // Handshake answers and alerts go out at once, also when the packet was refused.
            self.flush(socket)?;
            processed.map_err(io::Error::other)?;
        }
    }

    /// Takes plain bytes; what cannot be sent now waits inside, and nothing more is taken meanwhile.
    pub(super) fn write(&mut self, socket: &mut impl Write, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        if !self.flush(socket)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        match self.connection.writer().write_vectored(slices)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            n => {
                self.flush(socket)?;
                Ok(n)
            }
        }
    }

    /// Sends what waits; whether all of it is gone.
    pub(super) fn flush(&mut self, socket: &mut impl Write) -> io::Result<bool> {
        while self.connection.wants_write() {
            match self.connection.write_tls(socket) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Says that nothing more is written.
    pub(super) fn finish(&mut self, socket: &mut impl Write) -> io::Result<bool> {
        self.connection.send_close_notify();
        self.flush(socket)
    }

    /// Shakes hands over a socket that blocks.
    pub(super) fn shake_hands(&mut self, socket: &mut (impl Read + Write)) -> io::Result<()> {
        while self.connection.is_handshaking() {
            self.flush(socket)?;
            if self.connection.read_tls(socket)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let processed = self.connection.process_new_packets();
            self.flush(socket)?;
            processed.map_err(io::Error::other)?;
        }
        Ok(())
    }
}
