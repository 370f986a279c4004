//! A real nginx or Caddy as a child process, with a file of `packaging/` in which only addresses
//! and certificates are replaced; stopped when dropped.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::CertificateDer;
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;
use tungstenite::Error;
use tungstenite::client::IntoClientRequest;
use tungstenite::http::HeaderName;

use crate::abuse::tls::{self, Stream};
use crate::device::Device;
use crate::server::{PATIENCE, Server};

pub(super) const NGINX: &str = include_str!("../../../../../packaging/nginx/switchboard.conf");
pub(super) const NGINX_SUBPATH: &str =
    include_str!("../../../../../packaging/nginx/switchboard-subpath.conf");
const CADDY: &str = include_str!("../../../../../packaging/caddy/Caddyfile");
const CADDY_SUBPATH: &str = include_str!("../../../../../packaging/caddy/Caddyfile.subpath");

/// Clients come from these addresses; proxies come from 127.0.0.1.
pub(super) const ALICE: [u8; 4] = [127, 0, 1, 1];
pub(super) const BOB: [u8; 4] = [127, 0, 1, 2];

/// The server's address in a file of `packaging/`: its default.
const SERVER: &str = "127.0.0.1:8080";

pub(super) struct Proxy {
    /// Address that serves TLS.
    pub(super) address: SocketAddr,
    /// Address that serves plain HTTP, if there is one.
    pub(super) plain: SocketAddr,
    /// The path below which the page is, with a slash at its end.
    pub(super) base: &'static str,
    certificate: CertificateDer<'static>,
    child: Child,
    directory: TempDir,
}

impl Proxy {
    /// Starts all examples in front of this server: each proxy with a host of its own, and below
    /// a path of another site.
    pub(super) fn all(server: &Server) -> Vec<Proxy> {
        vec![
            Proxy::nginx(server, NGINX, "/"),
            Proxy::nginx(server, NGINX_SUBPATH, "/switchboard/"),
            Proxy::caddy(server, CADDY, "/"),
            Proxy::caddy(server, CADDY_SUBPATH, "/switchboard/"),
        ]
    }

    /// Starts nginx with this file as `conf.d/*.conf`.
    pub(super) fn nginx(server: &Server, example: &str, base: &'static str) -> Proxy {
        let (address, plain) = own_addresses();
        Proxy::start(address, plain, base, |directory| {
            let (host, _) = certified_host(example);
            let letsencrypt = format!("/etc/letsencrypt/live/{host}");
            let mut conf = replace(example, SERVER, &server.address.to_string());
            conf = replace(&conf, &letsencrypt, &directory.display().to_string());
            conf = replace(&conf, "listen [::]:443 ssl;", "");
            conf = replace(&conf, "listen 443 ssl;", &format!("listen {address} ssl;"));
            conf = conf.replace("listen [::]:80;", "");
            conf = conf.replace("listen 80;", &format!("listen {plain};"));
            fs::write(directory.join("switchboard.conf"), conf).unwrap();
            fs::write(directory.join("nginx.conf"), nginx_conf(directory)).unwrap();
            let mut command = Command::new(program("nginx"));
            command.arg("-p").arg(directory).args(["-c", "nginx.conf", "-e", "error.log"]);
            command
        })
    }

    /// Starts Caddy with this file as its Caddyfile.
    fn caddy(server: &Server, example: &str, base: &'static str) -> Proxy {
        let (address, plain) = own_addresses();
        Proxy::start(address, plain, base, |directory| {
            let site = if base == "/" { "switchboard.example.org {" } else { "www.example.org {" };
            let (ip, port) = (address.ip(), address.port());
            let filled = format!(
                "https://localhost:{port}, https://{ip}:{port} {{\n\tbind {ip}\n\
                 \ttls {0}/fullchain.pem {0}/privkey.pem",
                directory.display()
            );
            let example = replace(example, SERVER, &server.address.to_string());
            let text = format!(
                "{{\n\tadmin off\n\tauto_https disable_redirects\n}}\n{}",
                replace(&example, site, &filled)
            );
            fs::write(directory.join("Caddyfile"), text).unwrap();
            let mut command = Command::new(program("caddy"));
            command.args(["run", "--config", "Caddyfile"]).current_dir(directory);
            for variable in ["HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"] {
                command.env(variable, directory);
            }
            command
        })
    }

    /// Starts the command of `prepare` in a directory that has a certificate, and waits until it
    /// serves.
    fn start(
        address: SocketAddr,
        plain: SocketAddr,
        base: &'static str,
        prepare: impl FnOnce(&Path) -> Command,
    ) -> Proxy {
        let directory = tempfile::tempdir().unwrap();
        let certificate = write_certificate(directory.path(), address.ip());
        let mut command = prepare(directory.path());
        let log = File::create(directory.path().join("stderr.log")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let mut proxy = Proxy { address, plain, base, certificate, child, directory };
        proxy.await_start();
        proxy
    }

    fn await_start(&mut self) {
        let began = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            let log = || fs::read_to_string(self.directory.path().join("stderr.log")).unwrap();
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the proxy ends: {status}\n{}", log());
            }
            assert!(began.elapsed() < PATIENCE, "the proxy does not start\n{}", log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Returns a PEM file with the certificate that clients trust.
    pub(super) fn authority(&self) -> PathBuf {
        self.directory.path().join("fullchain.pem")
    }

    fn tls_from(&self, client: [u8; 4]) -> Stream {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((client, 0)).into()).unwrap();
        socket.connect(&self.address.into()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        tls::over(socket.into(), &self.certificate)
    }

    /// Connects a device of the text protocol from this address, to a path below the page's,
    /// with more headers.
    pub(super) fn device(
        &self,
        client: [u8; 4],
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Device<Stream>, Error> {
        let url = format!("wss://localhost{}{path}", self.base);
        let mut request = url.into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().append(HeaderName::from_static(name), value.parse().unwrap());
        }
        Device::over(self.tls_from(client), request)
    }

    /// Returns the whole response to a GET.
    pub(super) fn get(&self, path: &str) -> String {
        let mut stream = self.tls_from(ALICE);
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            // nginx ends a connection without TLS's close_notify.
            Err(error) if error.kind() != ErrorKind::UnexpectedEof => panic!("{error}"),
            _ => String::from_utf8(answer).unwrap(),
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Both fail only if the child has already exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns Debian's nginx.conf around an example, as far as it matters here: one process, in a
/// directory of its own.
fn nginx_conf(directory: &Path) -> String {
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("    {kind}_temp_path {kind};\n"))
        .concat();
    format!(
        "daemon off;\nmaster_process off;\npid nginx.pid;\nevents {{}}\nhttp {{\n    access_log off;\n\
         {temporary}    include {}/switchboard.conf;\n}}\n",
        directory.display()
    )
}

/// Returns the host name in an nginx file, and its certificate's folder.
fn certified_host(example: &str) -> (&str, &str) {
    let rest = example.split_once("/etc/letsencrypt/live/").expect("it has a certificate").1;
    rest.split_once('/').expect("it is in a folder")
}

fn replace(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from:?} in\n{text}");
    text.replace(from, to)
}

/// Returns addresses, for TLS and without, on which nobody else has sockets, so that nobody gets
/// the ports before the proxy does: there is one such loopback address for each process id.
fn own_addresses() -> (SocketAddr, SocketAddr) {
    static PORT: AtomicU16 = AtomicU16::new(20_000);
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let port = PORT.fetch_add(2, Ordering::Relaxed);
    let at = |port| SocketAddr::from(([127, 64 | high, middle, low], port));
    (at(port), at(port + 1))
}

/// Writes a self-signed certificate and its key, named as certbot names them.
fn write_certificate(directory: &Path, ip: IpAddr) -> CertificateDer<'static> {
    let names = vec!["localhost".to_owned(), ip.to_string()];
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names).unwrap();
    fs::write(directory.join("fullchain.pem"), cert.pem()).unwrap();
    fs::write(directory.join("privkey.pem"), signing_key.serialize_pem()).unwrap();
    cert.der().clone()
}

/// Returns a program on `PATH`, or in Debian's directory for root.
fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    let found = folders.map(|folder| folder.join(name)).find(|program| program.is_file());
    found.unwrap_or_else(|| {
        panic!("`{name}` runs its example: install it (Debian: apt-get install {name})")
    })
}
