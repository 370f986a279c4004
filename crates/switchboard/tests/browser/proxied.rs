//! The page below a path of another site, behind a real nginx with the example for that.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::browser::Browser;
use crate::server::Server;

const EXAMPLE: &str = include_str!("../../../../packaging/nginx/switchboard-subpath.conf");

const START_MAX: Duration = Duration::from_secs(20);

/// An nginx with the example, but without TLS, which the browser would not trust; stopped when
/// dropped.
struct Nginx {
    child: Child,
    address: SocketAddr,
    _directory: TempDir,
}

impl Nginx {
    fn start(server: &Server) -> Nginx {
        let directory = tempfile::tempdir().expect("a temporary directory");
        // Nobody else has sockets on the loopback address made of this process's id.
        let [_, high, middle, low] = std::process::id().to_be_bytes();
        let address = SocketAddr::from(([127, 64 | high, middle, low], 20_000));
        let upstream = server.page().replace("http://", "").replace('/', "");
        let conf: String = EXAMPLE
            .lines()
            .filter(|line| !line.contains(" ssl_") && !line.contains("listen [::]"))
            .map(|line| line.replace("127.0.0.1:8080", &upstream) + "\n")
            .collect();
        let conf = conf.replace("listen 443 ssl;", &format!("listen {address};"));
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {kind};\n"))
            .concat();
        let frame = format!(
            "daemon off;\nmaster_process off;\npid nginx.pid;\nevents {{}}\n\
             http {{\naccess_log off;\n{temporary}{conf}}}\n"
        );
        fs::write(directory.path().join("nginx.conf"), frame).expect("it is written");
        // Debian's path, which is not on every user's PATH.
        let program = Some("/usr/sbin/nginx").filter(|program| Path::new(program).is_file());
        let child = Command::new(program.unwrap_or("nginx"))
            .arg("-p")
            .arg(directory.path())
            .args(["-c", "nginx.conf", "-e", "stderr"])
            .stdin(Stdio::null())
            .spawn()
            .expect("`nginx` is there (Debian: apt-get install nginx)");
        let mut nginx = Nginx { child, address, _directory: directory };
        nginx.await_start();
        nginx
    }

    fn await_start(&mut self) {
        let began = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            let ended = self.child.try_wait().expect("nginx is a child");
            assert_eq!(ended, None, "nginx ends");
            assert!(began.elapsed() < START_MAX, "nginx does not start");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Both fail only if the child has already exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn below_a_path_pages_connect_and_send_to_each_other() {
    let server = Server::start();
    let nginx = Nginx::start(&server);
    let browser = Browser::start();
    let url = format!("http://{}/switchboard/", nginx.address);
    let first = browser.open(&url).await;
    let second = browser.open(&url).await;
    let socket = url.replace("http:", "ws:");
    first.shows("#websocat", &format!("websocat --linemode-strip-newlines {socket}")).await;
    first.send(&second.id().await, "hello").await;
    second.shows(".entry.in .text", "hello").await;
    first.shows(".state", "delivered").await;
    first.close_without_console_errors().await;
    second.close_without_console_errors().await;
}
