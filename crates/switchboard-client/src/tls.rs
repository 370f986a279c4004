//! TLS: the trusted authorities, and the errors of a handshake.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, ConfigBuilder, DigitallySignedStruct,
    InvalidMessage, RootCertStore, SignatureScheme, WantsVerifier,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::connect::ConnectError;

/// Reason why TLS failed with a server that could be reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// No trusted authority has signed the server's certificate.
    #[error("certificate not trusted: no authority known here has signed it")]
    Untrusted,
    /// The certificate is for other names.
    #[error("the server's certificate is not for {host}{}", others(.names))]
    WrongName {
        /// The name in the address.
        host: String,
        /// Those in the certificate.
        names: Vec<String>,
    },
    /// The certificate has expired.
    #[error("the server's certificate has expired: it has to be renewed on the server")]
    Expired,
    /// The certificate is not valid yet.
    #[error("the server's certificate is not valid yet: look at the clocks of both machines")]
    NotYetValid,
    /// A certificate of an authority is used as a server's, which RFC 5280 does not allow.
    #[error(
        "the server's certificate is made for an authority, not for a server: make one with \
             basicConstraints=CA:FALSE"
    )]
    Authority,
    /// `wss://` to a port without TLS.
    #[error("this port does not speak TLS: use ws://")]
    PlainPort,
    /// `ws://` to a port with TLS.
    #[error("this port speaks TLS: use wss://")]
    TlsPort,
    /// Any other error, as the library describes it.
    #[error("TLS failed: {0}")]
    Other(String),
}

fn others(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!(", but for {}", names.join(", ")) }
}

impl TlsError {
    pub(crate) fn new(error: &rustls::Error, host: &str) -> TlsError {
        match error {
            rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
                TlsError::PlainPort
            }
            rustls::Error::InvalidCertificate(error) => TlsError::of_certificate(error, host),
            other => TlsError::Other(other.to_string()),
        }
    }

    fn of_certificate(error: &CertificateError, host: &str) -> TlsError {
        match error {
            // The other errors occur if an authority of the same name has another key: every
            // certificate made for a test of TLS calls itself localhost.
            CertificateError::UnknownIssuer
            | CertificateError::BadSignature
            | CertificateError::UnsupportedSignatureAlgorithmContext { .. }
            | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
                TlsError::Untrusted
            }
            CertificateError::NotValidForName => {
                TlsError::WrongName { host: host.to_owned(), names: Vec::new() }
            }
            CertificateError::NotValidForNameContext { presented, .. } => {
                let names = presented.iter().map(|name| name_in(name)).collect();
                TlsError::WrongName { host: host.to_owned(), names }
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                TlsError::Expired
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                TlsError::NotYetValid
            }
            // rustls has no variant of its own for it.
            other if format!("{other:?}").contains("CaUsedAsEndEntity") => TlsError::Authority,
            other => TlsError::Other(format!("the server's certificate is not accepted ({other})")),
        }
    }
}

/// Extracts `localhost` from `DnsName("localhost")`, rustls' format.
fn name_in(presented: &str) -> String {
    presented.split('"').nth(1).unwrap_or(presented).to_owned()
}

/// Returns a configuration that trusts the authorities in the file, or else the system's.
pub(crate) fn config(ca: Option<&Path>) -> Result<Arc<ClientConfig>, ConnectError> {
    let roots = match ca {
        Some(file) => roots_in(file)?,
        None => system_roots(),
    };
    Ok(Arc::new(config_of(roots)))
}

fn config_of(roots: RootCertStore) -> ClientConfig {
    builder().with_root_certificates(roots).with_no_client_auth()
}

/// Returns a configuration that accepts any certificate whose key the server has: the server's
/// identity is then unknown. For a server on the same machine.
pub fn config_for_anyone() -> Arc<ClientConfig> {
    let anyone = Arc::new(Anyone(provider().signature_verification_algorithms));
    let builder = builder().dangerous().with_custom_certificate_verifier(anyone);
    Arc::new(builder.with_no_client_auth())
}

fn builder() -> ConfigBuilder<ClientConfig, WantsVerifier> {
    ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider supports the default versions")
}

fn provider() -> CryptoProvider {
    rustls::crypto::ring::default_provider()
}

/// A verifier that accepts any certificate whose key the server has.
#[derive(Debug)]
struct Anyone(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Anyone {
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
        verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

fn roots_in(file: &Path) -> Result<RootCertStore, ConnectError> {
    let fault =
        |why: &dyn std::fmt::Display| ConnectError::Roots(format!("{}: {why}", file.display()));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|e| fault(&e))? {
        let certificate = certificate.map_err(|e| fault(&e))?;
        roots.add(certificate).map_err(|e| fault(&e))?;
    }
    if roots.is_empty() { Err(fault(&"holds no certificate")) } else { Ok(roots) }
}

/// Returns the authorities that the system trusts. If it has none, as in a small container, no
/// certificate is trusted, and the error says so.
fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

/// Time for a server to answer the first bytes of TLS.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Returns true if a server that does not answer in HTTP speaks TLS. It is asked on a separate
/// connection, because the library's error does not contain its bytes on the first one.
pub(crate) async fn is_spoken_by(host: &str, port: u16) -> bool {
    timeout(PROBE_TIMEOUT, first_byte(host, port)).await.ok().flatten().is_some_and(|byte| {
        // A TLS record of a handshake or an alert (RFC 8446 section 5.1).
        matches!(byte, 21 | 22)
    })
}

async fn first_byte(host: &str, port: u16) -> Option<u8> {
    let name = ServerName::try_from(host.to_owned()).ok()?;
    let config = Arc::new(config_of(RootCertStore::empty()));
    let mut hello = Vec::new();
    ClientConnection::new(config, name).ok()?.write_tls(&mut hello).ok()?;
    let mut socket = TcpStream::connect((host, port)).await.ok()?;
    socket.write_all(&hello).await.ok()?;
    socket.read_u8().await.ok()
}
