//! Forwarders beside each other: each sends connections on to the same echo server.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{SERVER_CPU, Server};

/// Where the echo server is that all of them send on to.
pub(super) const UPSTREAM: u16 = 7520;

/// A forwarder that is not ours: its name, its Debian package, and how it is started.
pub(super) struct Rival {
    pub(super) name: &'static str,
    pub(super) package: &'static str,
    start: fn(&Path, u16) -> io::Result<Vec<String>>,
}

pub(super) const RIVALS: [Rival; 3] = [
    Rival { name: "nginx stream", package: "nginx-light libnginx-mod-stream", start: nginx },
    Rival { name: "haproxy", package: "haproxy", start: haproxy },
    Rival { name: "socat", package: "socat", start: socat },
];

impl Rival {
    /// Start it on a core of its own; None if it is not installed.
    pub(super) fn serve(&self, folder: &Path, port: u16) -> io::Result<Option<Server>> {
        let argv = (self.start)(folder, port)?;
        let installed = Command::new("which").arg(&argv[0]).output()?.status.success();
        if !installed {
            return Ok(None);
        }
        let core = SERVER_CPU.to_string();
        let pinned = ["taskset", "-c", &core].map(str::to_owned);
        let argv: Vec<String> = pinned.into_iter().chain(argv).collect();
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        Server::program(&argv, port, true).map(Some)
    }
}

fn text(path: PathBuf) -> String {
    path.to_string_lossy().into_owned()
}

fn nginx(folder: &Path, port: u16) -> io::Result<Vec<String>> {
    const MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";
    let shown = folder.display();
    let load =
        if Path::new(MODULE).exists() { format!("load_module {MODULE};") } else { String::new() };
    let conf = format!(
        "{load} worker_processes 1; daemon off; master_process off; pid {shown}/pid; error_log {shown}/error;
         events {{ worker_connections 1024; }}
         stream {{ server {{ listen 127.0.0.1:{port}; tcp_nodelay on;
           proxy_pass 127.0.0.1:{UPSTREAM}; }} }}"
    );
    let file = folder.join("nginx.conf");
    std::fs::write(&file, conf)?;
    Ok(["nginx", "-c", &text(file), "-p", &text(folder.to_owned())].map(str::to_owned).to_vec())
}

fn haproxy(folder: &Path, port: u16) -> io::Result<Vec<String>> {
    let conf = format!(
        "global\n  nbthread 1\n  maxconn 2000\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s
  timeout server 60s\nfrontend in\n  bind 127.0.0.1:{port}\n  default_backend out\nbackend out
  server one 127.0.0.1:{UPSTREAM}\n"
    );
    let file = folder.join("haproxy.cfg");
    std::fs::write(&file, conf)?;
    Ok(["haproxy", "-db", "-f", &text(file)].map(str::to_owned).to_vec())
}

fn socat(_: &Path, port: u16) -> io::Result<Vec<String>> {
    let from = format!("TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork,nodelay,backlog=128");
    Ok(vec!["socat".to_owned(), from, format!("TCP:127.0.0.1:{UPSTREAM},nodelay")])
}
