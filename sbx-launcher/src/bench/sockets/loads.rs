//! What clients ask of which servers.

use std::io;

use super::{BenchError, Servers, Way};

/// A kind of load.
pub(super) struct Load {
    pub(super) name: &'static str,
    pub(super) ways: &'static [Way],
    cpu: usize,
    /// Which server, by its name in [`super::SERVERS`].
    pub(super) server: &'static str,
    client: Client,
}

/// Who asks.
enum Client {
    /// `redis-benchmark`: requests, connections, and more.
    Redis(u64, &'static str, &'static [&'static str]),
    /// wrk: connections, path and more.
    Wrk(&'static str, &'static str, &'static [&'static str]),
    /// pgbench that selects by key: connections.
    Pgbench(&'static str),
    /// The launcher, as [`super::ask`] does.
    Own(&'static str),
}

const ALL: &[Way] = &[Way::Tcp, Way::Unix, Way::Region];
pub(super) const BOTH: &[Way] = &[Way::Tcp, Way::Region];
const FOUR: &[Way] = &[Way::Tcp, Way::Unix, Way::Region, Way::RegionUnix];
const CLOSE: &[&str] = &["-H", "Connection: close"];
const CLIENT_CPU: usize = super::CLIENT_CPU;
const SERVER_CPU: usize = super::SERVER_CPU;

use Client::{Own, Pgbench, Redis, Wrk};

pub(super) const LOADS: [Load; 23] = [
    load("redis GET c1", ALL, CLIENT_CPU, "redis", Redis(40_000, "1", &[])),
    load("redis GET c50", ALL, CLIENT_CPU, "redis", Redis(200_000, "50", &[])),
    load("redis GET c50 P16", ALL, CLIENT_CPU, "redis", Redis(1_000_000, "50", &["-P", "16"])),
    load("redis GET 16 KiB c1", BOTH, CLIENT_CPU, "redis", Redis(20_000, "1", &["--dbnum", "1"])),
    load("redis GET c1, one core", BOTH, SERVER_CPU, "redis", Redis(40_000, "1", &[])),
    load("redis GET c50, one core", BOTH, SERVER_CPU, "redis", Redis(100_000, "50", &[])),
    load("nginx reply c1", BOTH, CLIENT_CPU, "nginx", Wrk("1", "reply", &[])),
    load("nginx reply c50", BOTH, CLIENT_CPU, "nginx", Wrk("50", "reply", &[])),
    load("nginx 16 KiB file c50", BOTH, CLIENT_CPU, "nginx", Wrk("50", "16k", &[])),
    load("nginx, a connection each, c10", BOTH, CLIENT_CPU, "nginx", Wrk("10", "reply", CLOSE)),
    load("memcached GET c1", BOTH, CLIENT_CPU, "memcached", Own("memcached-1")),
    load("memcached GET c50", BOTH, CLIENT_CPU, "memcached", Own("memcached-50")),
    load("pgbench -S c1", FOUR, CLIENT_CPU, "postgres", Pgbench("1")),
    load("pgbench -S c8", FOUR, CLIENT_CPU, "postgres", Pgbench("8")),
    load("node http c1", BOTH, CLIENT_CPU, "node", Wrk("1", "", &[])),
    load("node http c50", BOTH, CLIENT_CPU, "node", Wrk("50", "", &[])),
    load("connect, accept, close", BOTH, CLIENT_CPU, "tcp-close", Own("connect")),
    load("connect, accept, close, one core", BOTH, SERVER_CPU, "tcp-close", Own("connect")),
    load("1 byte there and back", BOTH, CLIENT_CPU, "tcp-threads", Own("byte")),
    load("1 byte there and back, looking", BOTH, CLIENT_CPU, "tcp-looks", Own("byte-looks")),
    load("1 byte there and back, one core", BOTH, SERVER_CPU, "tcp-threads", Own("byte")),
    load("1 byte there and back, asleep", BOTH, CLIENT_CPU, "tcp-threads", Own("byte-asleep")),
    load(
        "1 byte there and back, asleep, one core",
        BOTH,
        SERVER_CPU,
        "tcp-threads",
        Own("byte-asleep"),
    ),
];

const fn load(
    name: &'static str,
    ways: &'static [Way],
    cpu: usize,
    server: &'static str,
    client: Client,
) -> Load {
    Load { name, ways, cpu, server, client }
}

/// Of all that a client says: requests per second, and how many.
type Read = fn(&str) -> Option<(f64, f64)>;

impl Load {
    /// Requests per second, and CPU seconds of client and server per million of them.
    pub(super) fn measure(
        &self,
        servers: &Servers,
        way: Way,
        scale: u64,
    ) -> Result<(f64, f64), BenchError> {
        self.ask(servers, way, scale)
            .map_err(|error| BenchError::Io("running servers and clients", error))
    }

    fn ask(&self, servers: &Servers, way: Way, scale: u64) -> io::Result<(f64, f64)> {
        let port = servers.port(self.server, way);
        let socket = servers.socket(self.server, way);
        let rate = |argv: &[&str], read: Read| {
            let (rate, seconds, count) = servers.rate(self.server, way, self.cpu, argv, read)?;
            Ok((rate, seconds * 1e6 / count))
        };
        match self.client {
            Redis(count, clients, more) => {
                let count = (count / scale).max(1000);
                let number = count.to_string();
                let to = if way == Way::Unix { ["-s", &socket] } else { ["-p", &port] };
                let fixed = ["-t", "get", "-q", "-c", clients, "-n", &number];
                let argv = [&["redis-benchmark"][..], &to, &fixed, more].concat();
                let (rate, seconds, _) =
                    servers.rate(self.server, way, self.cpu, &argv, of_redis)?;
                Ok((rate, seconds * 1e6 / count as f64))
            }
            Wrk(clients, path, more) => {
                let url = format!("http://127.0.0.1:{port}/{path}");
                let fixed = ["wrk", "-t1", "-d1", "-c", clients];
                rate(&[&fixed[..], more, &[&*url]].concat(), of_wrk)
            }
            Pgbench(clients) => {
                let is_unix = matches!(way, Way::Unix | Way::RegionUnix);
                let host = if is_unix { servers.folder() } else { "127.0.0.1".into() };
                let time = if scale == 1 { ["-T", "1"] } else { ["-t", "200"] };
                let fixed =
                    ["pgbench", "-S", "-n", "-M", "prepared", time[0], time[1], "-U", "postgres"];
                let to = ["-c", clients, "-h", &host, "-p", &port, "postgres"];
                rate(&[&fixed[..], &to].concat(), of_pgbench)
            }
            Own(what) => {
                let launcher = servers.launcher();
                let ms = (1000 / scale).max(100).to_string();
                rate(&[&launcher, "bench-ask", what, &port, &ms], of_own)
            }
        }
    }
}

fn word(line: &str, at: usize) -> Option<f64> {
    line.split_whitespace().nth(at)?.parse().ok()
}

fn of_redis(text: &str) -> Option<(f64, f64)> {
    let line = text.lines().rev().find(|line| line.contains("requests per second"))?;
    let before = line.split(" requests per second").next()?;
    Some((before.split_whitespace().next_back()?.parse().ok()?, 1.0))
}

fn of_wrk(text: &str) -> Option<(f64, f64)> {
    let figure = |key: &str, at| word(text.lines().find(|line| line.contains(key))?, at);
    Some((figure("Requests/sec:", 1)?, figure("requests in", 0)?))
}

fn of_pgbench(text: &str) -> Option<(f64, f64)> {
    let figure = |key: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
        // Of all that there were to be, if that was given.
        rest.split([' ', '/']).next()?.parse::<f64>().ok()
    };
    Some((figure("tps = ")?, figure("number of transactions actually processed: ")?))
}

fn of_own(text: &str) -> Option<(f64, f64)> {
    Some((word(text, 0)?, word(text, 1)?))
}

#[cfg(test)]
mod tests {
    use super::{of_pgbench, of_redis, of_wrk};

    #[test]
    fn what_clients_say_is_read() {
        let text = "GET: rps=1.0\nGET: 392156.88 requests per second, p50=0.031 msec\n";
        assert_eq!(of_redis(text), Some((392_156.88, 1.0)));
        let text = "  20000 requests in 1.10s, 3MB read\nRequests/sec:  18181.5\n";
        assert_eq!(of_wrk(text), Some((18181.5, 20000.0)));
        let text = "number of transactions actually processed: 31\ntps = 16.5 (without x)\n";
        assert_eq!(of_pgbench(text), Some((16.5, 31.0)));
        let text = "number of transactions actually processed: 31/40\ntps = 16.5 (without x)\n";
        assert_eq!(of_pgbench(text), Some((16.5, 31.0)));
        assert_eq!(of_pgbench("pgbench: error"), None);
    }
}
