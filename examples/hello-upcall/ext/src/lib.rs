//! One total and one greeting for every process of a sandbox.

use ext_api::prelude::*;

#[extension(name = "hello", heap = "16M")]
pub mod hello {
    use super::{Config, ConfigError, Cx};
    use std::collections::HashMap;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Ordinary std structures, shared by all participants.
    pub struct State {
        greeting: String,
        total: AtomicU64,
        greeted: Mutex<HashMap<String, u64>>,
    }

    #[init]
    fn init(_cx: &Cx, config: Config) -> Result<State, ConfigError> {
        let greeting = config.get("greeting", "hello".to_owned())?;
        config.finish()?;
        Ok(State { greeting, total: AtomicU64::new(0), greeted: Mutex::default() })
    }

    /// Nothing: what an upcall itself costs.
    #[handler]
    fn null() {}

    /// Add to the total of the sandbox; the total.
    #[handler]
    fn add(state: &State, n: u64) -> u64 {
        state.total.fetch_add(n, Ordering::Relaxed) + n
    }

    /// Greet somebody, and count how often anybody has.
    #[handler]
    fn greet(state: &State, name: &str) -> String {
        let mut greeted = state.greeted.lock().unwrap();
        let times = greeted.entry(name.to_owned()).or_insert(0);
        *times += 1;
        format!("{}, {name} ({times})", state.greeting)
    }

    /// The same bytes again.
    #[handler]
    fn echo(data: &[u8]) -> Vec<u8> {
        data.to_vec()
    }

    /// How many have been greeted so far under this name, if anybody was.
    #[handler]
    fn times(state: &State, name: &str) -> Option<u64> {
        state.greeted.lock().unwrap().get(name).copied()
    }

    /// Panic, to see what a caller is told.
    #[handler]
    fn fail(why: &str) -> Result<(), String> {
        if why == "panic" { panic!("asked to panic") } else { Err(why.to_owned()) }
    }

    /// Try to start a thread, which an extension cannot.
    #[handler]
    fn spawn() -> String {
        match std::thread::Builder::new().spawn(|| ()) {
            Ok(_) => "started".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    /// Allocate until the heap is full.
    #[handler]
    fn fill() -> u64 {
        let mut blocks: Vec<Vec<u8>> = Vec::new();
        let mut block = Vec::new();
        while block.try_reserve_exact(1 << 20).is_ok() {
            blocks.push(std::mem::take(&mut block));
        }
        blocks.len() as u64
    }
}
