//! Links over TLS, where `[cluster]` names certificates: each of two nodes shows one that the operator's authority has signed, and
//! the one that is called shows one for the host at which it is called. TLS 1.3 alone is spoken.
//!
//! Inside, the same is said as without: it is the key that makes a node a member, and the certificate keeps others from reading
//! along.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem};
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::config::Cluster;

/// How often is looked, as links are made, whether the files are others.
const LOOKED_EVERY: Duration = Duration::from_secs(1);

/// What calls, and what answers.
#[derive(Clone)]
pub(super) struct Ends {
    connector: TlsConnector,
    acceptor: TlsAcceptor,
}

/// Where the certificates are, and what was made of them.
pub(super) struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    authority: PathBuf,
    ends: Ends,
    stamps: [Option<(SystemTime, u64)>; 3],
    looked: Instant,
}

impl Tls {
    /// `None` where the configuration names no certificates.
    ///
    /// # Errors
    /// Which file cannot be used, and why.
    pub(super) fn new(config: &Cluster) -> io::Result<Option<Tls>> {
        let Cluster { tls_certificate_file, tls_key_file, tls_authority_file, .. } = config;
        if tls_certificate_file.is_empty() {
            return Ok(None);
        }
        let [certificate, key, authority] =
            [tls_certificate_file, tls_key_file, tls_authority_file].map(PathBuf::from);
        let stamps = [&certificate, &key, &authority].map(|path| stamp(path));
        let ends = Ends::load(&certificate, &key, &authority)?;
        Ok(Some(Tls { certificate, key, authority, ends, stamps, looked: Instant::now() }))
    }

    /// For the next link. Files that have changed are read again; where they cannot be used, what was read before holds.
    pub(super) fn ends(&mut self) -> Ends {
        if self.looked.elapsed() >= LOOKED_EVERY {
            self.looked = Instant::now();
            let stamps = [&self.certificate, &self.key, &self.authority].map(|path| stamp(path));
            if stamps != std::mem::replace(&mut self.stamps, stamps) {
                match Ends::load(&self.certificate, &self.key, &self.authority) {
                    Ok(ends) => {
                        self.ends = ends;
                        tracing::info!(
                            "the certificates of the links to other nodes were read again"
                        );
                    }
                    Err(e) => tracing::error!("{e}; the certificates that were read before hold"),
                }
            }
        }
        self.ends.clone()
    }
}

/// When a file was written, and how long it is.
fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let told = std::fs::metadata(path).ok()?;
    Some((told.modified().ok()?, told.len()))
}

impl Ends {
    fn load(certificate: &Path, key: &Path, authority: &Path) -> io::Result<Ends> {
        let provider = Arc::new(default_provider());
        let unusable = |name: &str, path: &Path, why: &dyn std::fmt::Display| {
            io::Error::other(format!("cluster.{name} = {}: {why}", path.display()))
        };
        let wrong_key = |why: &dyn std::fmt::Display| unusable("tls_key_file", key, why);
        let certificates = |name: &str, path: &Path| {
            let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
            let read: Vec<CertificateDer<'static>> =
                read.map_err(|e| unusable(name, path, &described(&e)))?;
            match read.is_empty() {
                true => Err(unusable(name, path, &"it holds no certificate in PEM form")),
                false => Ok(read),
            }
        };
        let chain = certificates("tls_certificate_file", certificate)?;
        let mut roots = RootCertStore::empty();
        for root in certificates("tls_authority_file", authority)? {
            roots.add(root).map_err(|e| unusable("tls_authority_file", authority, &e))?;
        }
        let roots = Arc::new(roots);
        let private = PrivateKeyDer::from_pem_file(key).map_err(|e| wrong_key(&described(&e)))?;
        let client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(io::Error::other)?
            .with_root_certificates(roots.clone())
            .with_client_auth_cert(chain.clone(), private.clone_key());
        let mut client = client.map_err(|e| wrong_key(&e))?;
        // Each link is made anew, with the certificates of then.
        client.resumption = Resumption::disabled();
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build();
        let verifier = verifier.map_err(|e| unusable("tls_authority_file", authority, &e))?;
        let server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(io::Error::other)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, private);
        let mut server = server.map_err(|e| wrong_key(&e))?;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let (connector, acceptor) = (Arc::new(client).into(), Arc::new(server).into());
        Ok(Ends { connector, acceptor })
    }

    /// Calls over a connection to `address`, which is `HOST:PORT`.
    pub(super) async fn call(
        &self,
        address: &str,
        stream: tokio::net::TcpStream,
    ) -> io::Result<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.trim_matches(['[', ']']);
        let name = match host.parse::<IpAddr>() {
            Ok(ip) => ServerName::from(ip),
            Err(_) => ServerName::try_from(host.to_owned()).map_err(io::Error::other)?,
        };
        self.connector.connect(name, stream).await
    }

    /// Answers who calls.
    pub(super) async fn answer(
        &self,
        stream: tokio::net::TcpStream,
    ) -> io::Result<tokio_rustls::server::TlsStream<tokio::net::TcpStream>> {
        self.acceptor.accept(stream).await
    }
}

fn described(e: &pem::Error) -> String {
    match e {
        pem::Error::Io(e) => e.to_string(),
        pem::Error::NoItemsFound => "it holds none in PEM form".into(),
        e => e.to_string(),
    }
}
