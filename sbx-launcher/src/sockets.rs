//! `ps --sockets`: which connections are carried, for people and scripts.

mod inlets;

use std::net::Ipv6Addr;
use std::sync::atomic::Ordering::Relaxed;

use libos::sockets::records::{DATAGRAM, SEQPACKET};
use libos::sockets::{ACCEPTED, Connection, Direction, JOINED, OFFERED, PAIR, Side, Sockets};
use serde_json::{Value, json};

/// The carried connections, and what became of others.
#[must_use]
pub fn table(sockets: &Sockets) -> Value {
    let rows = sockets.rows().map(|row| &sockets.connections[row]);
    let is_one = |one: &&Connection| one.state.load(Relaxed) >= OFFERED && !one.is_inlet();
    let rows: Vec<&Connection> = rows.filter(is_one).collect();
    let sum = |of: fn(&Connection, &Direction) -> u64| -> u64 {
        let known = rows.iter().filter(|one| one.state.load(Relaxed) >= ACCEPTED);
        known.flat_map(|one| one.directions.iter().map(|way| of(one, way))).sum()
    };
    json!({
        "connections": rows.iter().map(|one| connection(one)).collect::<Vec<_>>(),
        "carried": sockets.carried.load(Relaxed),
        "pipes": sockets.pipes.load(Relaxed),
        "eventfds": sockets.counters.load(Relaxed),
        "carried_bytes": sockets.carried_bytes.load(Relaxed) + sum(Connection::carried),
        "kernel_bytes": sockets.kernel_bytes.load(Relaxed) + sum(Connection::by_kernel),
        "asleep_bytes": sockets.asleep_bytes.load(Relaxed)
            + sum(|_, direction| direction.writing.asleep.load(Relaxed)),
        "no_row": sockets.no_row.load(Relaxed),
        "no_offer": sockets.no_offer.load(Relaxed),
        "not_taken": sockets.not_taken.load(Relaxed),
        "datagrams": inlets::table(sockets),
    })
}

fn connection(one: &Connection) -> Value {
    let state = match one.state.load(Relaxed) {
        JOINED => "carried",
        ACCEPTED => "accepted",
        _ => "offered",
    };
    json!({
        "name": name(one),
        "state": state,
        "from": holders(&one.sides[0]),
        "to": holders(&one.sides[1]),
        "sent": direction(one, 0),
        "received": direction(one, 1),
    })
}

fn direction(one: &Connection, side: usize) -> Value {
    let direction = &one.directions[side];
    json!({
        "carried": one.carried(direction),
        "by_kernel": one.by_kernel(direction),
        "waiting": direction.filled().1,
        "wakes": direction.writing.bells.load(Relaxed),
        "shut": direction.shut.load(Relaxed) != 0 || one.is_counter() && direction.left_count().is_some(),
    })
}

fn holders(side: &Side) -> Vec<u32> {
    let holders = side.holders.iter().map(|holder| holder.load(Relaxed));
    holders.filter(|pid| *pid != 0).collect()
}

/// Addresses and ports of both ends, or the inode of the one that connected.
fn name(one: &Connection) -> String {
    let [first, from @ .., _, _] = one.name.each_ref().map(|word| word.load(Relaxed));
    let to = [one.name[3].load(Relaxed), one.name[4].load(Relaxed)];
    if one.is_pipe() {
        return format!("pipe {}", first & u64::from(u32::MAX));
    }
    if one.is_counter() {
        return format!("eventfd {}", first & u64::from(u32::MAX));
    }
    if one.is_unix() {
        let made = if one.kind.load(Relaxed) & PAIR != 0 { "pair " } else { "" };
        let kind = match one.socket_type() {
            SEQPACKET => "seqpacket ",
            DATAGRAM => "datagram ",
            _ => "",
        };
        return format!("unix {kind}{made}{}", first & u64::from(u32::MAX));
    }
    format!("{} > {}", address(from, first >> 16), address(to, first))
}

fn address([high, low]: [u64; 2], port: u64) -> String {
    let address = Ipv6Addr::from(u128::from(high) << 64 | u128::from(low));
    match address.to_ipv4_mapped() {
        Some(v4) => format!("{v4}:{}", port & 0xffff),
        None => format!("[{address}]:{}", port & 0xffff),
    }
}

/// What a table says of datagram sockets, for people.
pub fn print_datagrams(table: &Value) {
    inlets::print(&table["datagrams"]);
}
