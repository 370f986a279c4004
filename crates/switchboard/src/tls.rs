//! The server's TLS: certificates from files, and one session per connection.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Arc, RwLock};

use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection};

use crate::files::{self, Occasion};

/// Maximum bytes of a certificate chain, and of a key; a certificate takes about 2 KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reason why the certificate or its key cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// A file cannot be read, or holds no PEM of the kind.
    #[error("{key} = \"{path}\": {cause}")]
    File {
        /// The configuration's key.
        key: &'static str,
        /// Its value.
        path: String,
        /// The error. Not called `source`, or error chains would print it twice.
        cause: PemError,
    },
    /// The certificate file has no certificate.
    #[error("tls_cert = \"{0}\": no certificate in this file")]
    NoCertificate(String),
    /// Certificate and key do not belong together, or rustls cannot use them.
    #[error("tls_cert and tls_key: {0}")]
    Unusable(rustls::Error),
}

/// The certificate for new connections; replaced on SIGHUP.
#[derive(Debug)]
pub(crate) struct Acceptor {
    config: RwLock<Arc<ServerConfig>>,
}

impl Acceptor {
    /// Reads both files.
    pub(crate) fn load(cert: &Path, key: &Path, occasion: Occasion) -> Result<Acceptor, LoadError> {
        Ok(Acceptor { config: RwLock::new(load(cert, key, occasion)?) })
    }

    /// Uses the certificate of `other` for new connections.
    pub(crate) fn replace(&self, other: Acceptor) {
        let config = other.config.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        *self.config.write().unwrap_or_else(std::sync::PoisonError::into_inner) = config;
    }

    /// Starts a session for a new connection.
    pub(crate) fn session(&self) -> Result<Session, rustls::Error> {
        let config = self.config.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok(Session { connection: ServerConnection::new(Arc::clone(&config))?, handshake_bytes: 0 })
    }
}

fn load(cert: &Path, key: &Path, occasion: Occasion) -> Result<Arc<ServerConfig>, LoadError> {
    let file = |name, path: &Path| {
        let path = path.display().to_string();
        move |cause| LoadError::File { key: name, path, cause }
    };
    let read = |path: &Path| files::read(path, FILE_BYTES_MAX, occasion).map_err(PemError::Io);
    let chain: Vec<CertificateDer<'static>> = read(cert)
        .and_then(|pem| CertificateDer::pem_slice_iter(&pem).collect())
        .map_err(file("tls_cert", cert))?;
    if chain.is_empty() {
        return Err(LoadError::NoCertificate(cert.display().to_string()));
    }
    let key = read(key)
        .and_then(|pem| PrivateKeyDer::from_pem_slice(&pem))
        .map_err(file("tls_key", key))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(LoadError::Unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(LoadError::Unusable)?;
    // WebSocket over HTTP/2 (RFC 8441) is a different handshake, so only HTTP/1.1 is offered.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The TLS session of one connection: converts between ciphertext and plaintext.
#[derive(Debug)]
pub(crate) struct Session {
    connection: ServerConnection,
    /// Bytes received in the handshake.
    handshake_bytes: usize,
}

/// Most bytes that a client may send in the handshake, as many as a record has. Without client
/// certificates it sends about 2 KiB; rustls would keep 64 KiB of an incomplete message.
const HANDSHAKE_BYTES_MAX: usize = 16 << 10;

/// Outcome of decrypting some ciphertext.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Decrypted {
    /// Bytes of plaintext.
    pub len: usize,
    /// True if the peer has said that nothing more will come.
    pub is_end: bool,
}

impl Session {
    /// Returns true until the TLS handshake is complete.
    pub(crate) fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Decrypts all of `cipher` into `plain`, which must have the same length. An error is
    /// final; mostly an alert is then ready to be sent.
    pub(crate) fn open(&mut self, mut cipher: &[u8], plain: &mut [u8]) -> io::Result<Decrypted> {
        let mut opened = Decrypted { len: 0, is_end: false };
        while !cipher.is_empty() {
            let unread = cipher.len();
            if self.connection.read_tls(&mut cipher)? == 0 {
                // Data after close_notify is ignored (RFC 8446 section 6.1).
                opened.is_end = true;
                break;
            }
            let state = self
                .connection
                .process_new_packets()
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if self.connection.is_handshaking() {
                self.handshake_bytes += unread - cipher.len();
                if self.handshake_bytes > HANDSHAKE_BYTES_MAX {
                    let error = "the TLS handshake is too long";
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
            }
            opened.is_end |= state.peer_has_closed();
            let mut waiting = state.plaintext_bytes_to_read();
            while waiting > 0 {
                let len = self.connection.reader().read(&mut plain[opened.len..])?;
                opened.len += len;
                waiting = waiting.saturating_sub(len.max(1));
            }
        }
        Ok(opened)
    }

    /// Returns true if ciphertext waits to be written.
    pub(crate) fn wants_write(&self) -> bool {
        self.connection.wants_write()
    }

    /// Encrypts some of `plain` and returns the number of bytes taken.
    pub(crate) fn seal(&mut self, plain: &[u8]) -> io::Result<usize> {
        self.connection.writer().write(plain)
    }

    /// Writes waiting ciphertext.
    pub(crate) fn write_to(&mut self, socket: &mut impl Write) -> io::Result<usize> {
        self.connection.write_tls(socket)
    }

    /// Queues `close_notify`: nothing more will be sent.
    pub(crate) fn send_close(&mut self) {
        self.connection.send_close_notify();
    }
}
