//! Datagram sockets in `ps --sockets`.

use std::sync::atomic::Ordering::Relaxed;

use libos::sockets::inlets::{Heard, Inlet, LEFT, LOCAL, Place, RECEIVER, SENDERS, SHARED};
use libos::sockets::{Connection, JOINED, Sockets};
use serde_json::{Value, json};

use super::{address, holders};

/// Those that there are, and what all have received.
pub(super) fn table(sockets: &Sockets) -> Value {
    let all = &sockets.inlets;
    let of = |row: usize| (&sockets.connections[row], &all.all[row]);
    let is_one = |one: &Connection| one.is_inlet() && one.state.load(Relaxed) == JOINED;
    let rows: Vec<_> = sockets.rows().map(of).filter(|(one, _)| is_one(one)).collect();
    let sum = |of: fn(&Connection, &Inlet) -> u64| -> u64 {
        rows.iter().map(|(one, inlet)| of(one, inlet)).sum()
    };
    json!({
        "sockets": rows.iter().map(|(one, inlet)| socket(one, inlet)).collect::<Vec<_>>(),
        "begun": all.begun.load(Relaxed),
        "carried_bytes": all.carried_bytes.load(Relaxed) + sum(|one, _| carried(one)),
        "kernel_bytes": all.kernel_bytes.load(Relaxed)
            + sum(|_, inlet| inlet.by_kernel.load(Relaxed)),
        "asleep_bytes": all.asleep_bytes.load(Relaxed)
            + sum(|_, inlet| inlet.asleep.load(Relaxed)),
        "dropped": all.dropped.load(Relaxed) + sum(|_, inlet| inlet.dropped.load(Relaxed)),
    })
}

fn carried(one: &Connection) -> u64 {
    one.directions[SENDERS].reading.record_bytes.load(Relaxed)
}

fn socket(one: &Connection, inlet: &Inlet) -> Value {
    let heard = inlet.heard();
    json!({
        "name": heard.map_or_else(String::new, |heard| name(&heard, inlet)),
        "holders": holders(&one.sides[RECEIVER]),
        "state": state(one, heard.map_or(0, |heard| heard.flags), inlet),
        "carried": carried(one),
        "by_kernel": inlet.by_kernel.load(Relaxed),
        "asleep": inlet.asleep.load(Relaxed),
        "waiting": one.directions[SENDERS].filled().1,
        "dropped": inlet.dropped.load(Relaxed),
    })
}

/// Whether datagrams reach it by its ring, or why not.
fn state(one: &Connection, flags: u32, inlet: &Inlet) -> &'static str {
    let is_connected = inlet.heard().is_some_and(|heard| heard.peer.port != 0);
    if flags & LEFT != 0 {
        "options"
    } else if one.directions[SENDERS].shut.load(Relaxed) != 0 {
        "shut"
    } else if flags & SHARED != 0 && flags & LOCAL == 0 && !is_connected {
        "shared"
    } else if inlet.sent.load(Relaxed) == 0 {
        "strangers"
    } else {
        "carried"
    }
}

fn name(heard: &Heard, inlet: &Inlet) -> String {
    if heard.flags & LOCAL != 0 {
        let bound = inlet.bound.name();
        let text = String::from_utf8_lossy(bound.bytes().get(2..).unwrap_or_default()).into_owned();
        return match text.strip_prefix('\0') {
            Some(name) => format!("unix @{}", name.escape_debug()),
            None if text.is_empty() => format!("unix {}", heard.own.address[0]),
            None => format!("unix {}", text.trim_end_matches('\0').escape_debug()),
        };
    }
    let place = |place: &Place| address(place.address, u64::from(place.port));
    match heard.peer.port {
        0 => format!("udp {}", place(&heard.own)),
        _ => format!("udp {} < {}", place(&heard.own), place(&heard.peer)),
    }
}

/// For people.
pub(super) fn print(answer: &Value) {
    let rows = answer["sockets"].as_array();
    if rows.is_some_and(|rows| !rows.is_empty()) {
        println!(
            "{:<48} {:>8} {:<9} {:>14} {:>14} {:>14} {:>8}",
            "DATAGRAM SOCKET", "HOLDER", "STATE", "RECEIVED", "BY KERNEL", "ASLEEP", "DROPPED"
        );
    }
    for row in rows.into_iter().flatten() {
        let number = |key: &str| row[key].as_u64().unwrap_or(0);
        println!(
            "{:<48} {:>8} {:<9} {:>14} {:>14} {:>14} {:>8}",
            row["name"].as_str().unwrap_or(""),
            row["holders"][0].as_u64().unwrap_or(0),
            row["state"].as_str().unwrap_or(""),
            number("carried"),
            number("by_kernel"),
            number("asleep"),
            number("dropped"),
        );
    }
    println!(
        "datagrams: {} bytes carried to {} sockets so far; {} by the kernel, {} of them since their reader slept",
        answer["carried_bytes"], answer["begun"], answer["kernel_bytes"], answer["asleep_bytes"]
    );
}
