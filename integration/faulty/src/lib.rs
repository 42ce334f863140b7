//! An extension that fails in every way there is.
#![expect(unsafe_code, reason = "does on purpose what unsafe code does by mistake")]

use ext_api::prelude::*;

#[extension(name = "faulty", heap = "16M", budget = "100ms")]
#[expect(missing_docs, missing_debug_implementations, reason = "for tests only")]
pub mod faulty {
    use std::arch::asm;
    use std::collections::HashMap;
    use std::hint::black_box;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use ext_api::prelude::*;

    /// What tells a restarted extension from one that goes on.
    pub struct State {
        calls: AtomicU64,
        map: Mutex<HashMap<u64, Vec<u8>>>,
        file: Mutex<Option<std::fs::File>>,
    }

    #[init]
    fn init(_cx: &Cx) -> Result<State, String> {
        Ok(State {
            calls: AtomicU64::new(0),
            map: Mutex::new(HashMap::new()),
            file: Mutex::new(None),
        })
    }

    /// Counts its calls since `init`.
    #[handler]
    fn count(state: &State) -> u64 {
        state.calls.fetch_add(1, Ordering::Relaxed) + 1
    }

    #[handler]
    fn read_at(_state: &State, address: u64) -> u64 {
        // SAFETY: none; the address is the test's.
        unsafe { (address as *const u64).read_volatile() }
    }

    #[handler]
    fn write_at(_state: &State, address: u64) {
        // SAFETY: none; the address is the test's.
        unsafe { (address as *mut u64).write_volatile(1) };
    }

    #[handler]
    fn jump_to(_state: &State, address: u64) {
        // SAFETY: none; the address is the test's.
        let target: extern "C" fn() = unsafe { std::mem::transmute(address as usize) };
        black_box(target)();
    }

    #[handler]
    fn overflow(_state: &State, depth: u64) -> u64 {
        fn deeper(depth: u64) -> u64 {
            let page = black_box([depth; 64]);
            if depth == 0 { page[0] } else { deeper(depth - 1) + page[1] }
        }
        deeper(depth)
    }

    #[handler]
    fn illegal(_state: &State) {
        // SAFETY: none; raises SIGILL.
        unsafe { asm!("ud2") };
    }

    #[handler]
    fn trap(_state: &State) {
        // SAFETY: none; raises SIGTRAP.
        unsafe { asm!("int3") };
    }

    #[handler]
    fn divide(_state: &State, by: u64) -> u64 {
        let quotient: u64;
        // SAFETY: none; raises SIGFPE for 0.
        unsafe {
            asm!("xor edx, edx", "div {by}", by = in(reg) by, inout("rax") 100u64 => quotient, out("rdx") _);
        };
        quotient
    }

    #[handler]
    fn abort(_state: &State) {
        std::process::abort();
    }

    #[handler]
    fn panic(_state: &State, text: &str) {
        panic!("{text}");
    }

    /// Uses CPU time without end.
    #[handler]
    fn spin(_state: &State) {
        loop {
            std::hint::spin_loop();
        }
    }

    /// Uses about so much CPU time.
    #[handler]
    fn work(_state: &State, rounds: u64) -> u64 {
        (0..rounds).fold(0, |sum: u64, round| black_box(sum.wrapping_mul(31).wrapping_add(round)))
    }

    #[handler]
    fn sleep(_state: &State, ms: u64) {
        std::thread::sleep(Duration::from_millis(ms));
    }

    /// Takes a lock of std and fails with it.
    #[handler]
    fn abort_locked(state: &State) {
        let _held = state.map.lock();
        std::process::abort();
    }

    /// Waits for that lock.
    #[handler]
    fn lock(state: &State) -> u64 {
        state.map.lock().map_or(0, |map| map.len() as u64)
    }

    /// Keeps memory.
    #[handler]
    fn keep(state: &State, key: u64, len: u64) -> u64 {
        let Ok(mut map) = state.map.lock() else { return 0 };
        map.insert(key, vec![1; len as usize]);
        map.len() as u64
    }

    /// Opens a file and keeps it.
    #[handler]
    fn open(state: &State, path: &str) -> Result<(), String> {
        let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
        *state.file.lock().map_err(|error| error.to_string())? = Some(file);
        Ok(())
    }

    /// The first bytes of the file that is kept.
    #[handler]
    fn read(state: &State) -> Result<u64, String> {
        use std::os::unix::fs::FileExt;
        let kept = state.file.lock().map_err(|error| error.to_string())?;
        let file = kept.as_ref().ok_or("no file is kept")?;
        file.read_at(&mut [0; 4], 0).map(|len| len as u64).map_err(|error| error.to_string())
    }

    /// Uses a function that the region does not have.
    #[handler]
    fn missing(_state: &State) -> Result<String, String> {
        std::env::current_exe()
            .map(|path| path.display().to_string())
            .map_err(|e| e.to_string())?;
        std::os::unix::fs::chroot("/").map(|()| "/".to_owned()).map_err(|e| e.to_string())
    }

    #[handler]
    fn environment(_state: &State) -> u64 {
        std::env::vars_os().count() as u64
    }

    #[handler]
    fn spawn(_state: &State) -> Result<(), String> {
        std::thread::Builder::new().spawn(|| ()).map(drop).map_err(|error| error.to_string())
    }

    #[handler]
    fn command(_state: &State) -> Result<(), String> {
        std::process::Command::new("/bin/true")
            .status()
            .map(drop)
            .map_err(|error| error.to_string())
    }
}
