//! `ext`: loading, unloading and listing extensions.

use serde_json::Value;

use super::{Ext, Result, absolute, ask};
use crate::control::Request;
use crate::sandbox::terms::Terms;

/// Load, unload, list.
pub(super) fn carry_out(ext: Ext) -> Result<i32> {
    match ext {
        Ext::Load { name, file, config, listen, clamp, tee } => {
            let file = absolute(file)?;
            let tees = tee.then(String::new).into_iter().collect();
            let terms = Terms { config, listen, clamps: clamp, tees };
            let loaded = ask(&name, Request::Load { file, terms })?;
            println!(
                "loaded {} into slot {}",
                loaded["name"].as_str().unwrap_or(""),
                loaded["slot"]
            );
            for port in loaded["ports"].as_array().into_iter().flatten() {
                println!("  listens on {}", port.as_str().unwrap_or(""));
            }
            let missing = loaded["missing"].as_array().map_or(0, Vec::len);
            if missing > 0 {
                eprintln!(
                    "sbx-launcher: {missing} imports are not in the region; an upcall that uses one \
                     fails by its name: {}",
                    loaded["missing"]
                );
            }
        }
        Ext::Upgrade { name, file, config } => {
            let file = absolute(file)?;
            let loaded = ask(&name, Request::Upgrade { file, config })?;
            println!(
                "upgraded {}, which is in slot {} now",
                loaded["name"].as_str().unwrap_or(""),
                loaded["slot"]
            );
        }
        Ext::Unload { name, extension } => {
            ask(&name, Request::Unload { name: extension })?;
        }
        Ext::Ls { name, json } => {
            let answer = ask(&name, Request::Extensions)?;
            if json {
                println!("{answer}");
                return Ok(0);
            }
            print_extensions(&answer);
            print_order(&answer);
        }
    }
    Ok(0)
}

fn each(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn print_extensions(answer: &Value) {
    for ext in each(&answer["extensions"]) {
        let text = |key: &str| ext[key].as_str().unwrap_or("").to_owned();
        let mib = |key: &str| ext[key].as_f64().unwrap_or(0.0) / f64::from(1 << 20);
        println!(
            "{}  {}  slot {}  heap {:.1} of {} MiB  {} restarts  {}{}",
            text("name"),
            text("state"),
            ext["slot"],
            mib("heap_used"),
            mib("heap"),
            ext["restarts"],
            text("file"),
            narrowing(ext)
        );
        for handler in each(&ext["handlers"]) {
            let text = |key: &str| handler[key].as_str().unwrap_or("").to_owned();
            let runs = handler["runs"].as_str().map(|when| format!("  runs {when}"));
            println!("  {}{}{}", text("name"), text("signature"), runs.unwrap_or_default());
        }
    }
}

/// Who is asked about which system calls.
fn print_order(answer: &Value) {
    /// Of more calls not all names are printed.
    const NAMES_MAX: usize = 8;
    for group in each(&answer["asked"]) {
        let names: Vec<&str> = each(&group["calls"]).filter_map(Value::as_str).collect();
        let more = names.len().saturating_sub(NAMES_MAX);
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        let names = names[..names.len().min(NAMES_MAX)].join(" ");
        println!("{} {names}{more}:", group["when"].as_str().unwrap_or(""));
        for (at, asked) in (1..).zip(each(&group["order"])) {
            let handler = asked["handler"].as_str().unwrap_or("");
            let by_policy = if asked["by_policy"] == true { "  by policy" } else { "" };
            let too_many = if asked["too_many"] == true { "  not asked: too many" } else { "" };
            println!("  {at}. {handler}{}{by_policy}{too_many}", narrowing(asked));
        }
    }
}

/// A tee, and clamps.
fn narrowing(of: &Value) -> String {
    let tee = (of["tee"] == true).then(|| "  tee".to_owned());
    let clamps = each(&of["clamps"]).filter_map(Value::as_str).map(|clamp| format!("  {clamp}"));
    tee.into_iter().chain(clamps).collect()
}
