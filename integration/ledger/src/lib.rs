//! An extension that keeps the same figures in each shared structure: what a kill leaves of them
//! can be checked.

#![expect(unsafe_code, reason = "faults on purpose")]

use ext_api::prelude::*;

#[extension(name = "ledger", heap = "32M", kill_safe)]
#[expect(missing_docs, missing_debug_implementations, reason = "for tests only")]
pub mod ledger {
    use ext_api::prelude::*;
    use std::collections::HashMap;
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

    use ext_api::shared::{Counter, LockError, Mutex, Queue, RwLock};

    /// Two figures that are equal whenever nobody changes them.
    type Pair = [u64; 2];

    /// Something with a table of functions.
    trait Shape: Send {
        fn size(&self) -> u64;
    }

    struct Square(u64);
    struct Named(String);

    impl Shape for Square {
        fn size(&self) -> u64 {
            self.0 * self.0
        }
    }

    impl Shape for Named {
        fn size(&self) -> u64 {
            self.0.len() as u64
        }
    }

    #[derive(Default)]
    struct Kept {
        map: HashMap<String, u64>,
        shapes: Vec<Box<dyn Shape>>,
    }

    pub struct State {
        kept: std::sync::Mutex<Kept>,
        mutex: Mutex<Pair>,
        rwlock: RwLock<Pair>,
        queue: Queue<u64>,
        counter: Counter,
        notes: Notes,
        late: Late,
    }

    /// How late a timer came, in nanoseconds.
    struct Late {
        samples: Vec<AtomicU64>,
        count: AtomicU64,
    }

    /// What events have said.
    struct Notes {
        /// Last number of each poster.
        last: [AtomicU64; 64],
        count: AtomicU64,
        /// Came out of order, twice, or while another one was being delivered to its process.
        wrong: AtomicU64,
        busy: AtomicU64,
        pid: AtomicU64,
    }

    #[init]
    fn init(_cx: &Cx) -> Result<State, String> {
        Ok(State {
            kept: std::sync::Mutex::default(),
            mutex: Mutex::new([0, 0]),
            rwlock: RwLock::new([0, 0]),
            queue: Queue::new(8),
            counter: Counter::new(),
            late: Late {
                samples: (0..1 << 13).map(|_| AtomicU64::new(0)).collect(),
                count: AtomicU64::new(0),
            },
            notes: Notes {
                last: std::array::from_fn(|_| AtomicU64::new(0)),
                count: AtomicU64::new(0),
                wrong: AtomicU64::new(0),
                busy: AtomicU64::new(0),
                pid: AtomicU64::new(0),
            },
        })
    }

    /// Figures as 64-bit words: mutex, lock, counter. What is queued is not handed over.
    #[save(version = 3)]
    fn save(state: &State) -> Result<Vec<u8>, String> {
        let words = [
            state.mutex.lock().map_err(text)?[0],
            state.rwlock.read().map_err(text)?[0],
            state.counter.sum(),
        ];
        Ok(words.into_iter().flat_map(u64::to_le_bytes).collect())
    }

    #[upgrade]
    fn upgrade(cx: &Cx, config: Config, old: Saved<'_>) -> Result<State, String> {
        if old.version != 3 {
            return Err(format!("state of version {} is not known here", old.version));
        }
        if config.get("refuse", false).map_err(|error| error.to_string())? {
            return Err("as it was told".into());
        }
        let (words, _) = old.bytes.as_chunks::<8>();
        let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
        let mut next = || words.next().ok_or("too short");
        let state = init(cx)?;
        let (mutex, rwlock) = (next()?, next()?);
        *state.mutex.lock().map_err(text)? = [mutex; 2];
        *state.rwlock.write().map_err(text)? = [rwlock; 2];
        state.counter.add(next()?);
        Ok(state)
    }

    fn change(pair: &mut Pair) -> u64 {
        for figure in pair.iter_mut() {
            *figure = std::hint::black_box(*figure + 1);
        }
        pair[0]
    }

    fn rebuild(pair: &mut Pair) {
        pair[1] = pair[0];
    }

    /// What a caller is told of a lock: nothing about who held it.
    fn text(error: LockError) -> String {
        match error {
            LockError::Broken { .. } => "broken".to_owned(),
            other => other.to_string(),
        }
    }

    /// An event: the `number`th of `poster` for one process.
    #[handler]
    fn note(state: &State, poster: u64, number: u64) {
        let notes = &state.notes;
        let busy = notes.busy.swap(1, SeqCst);
        let last = notes.last[poster as usize % 64].swap(number, SeqCst);
        notes.wrong.fetch_add(u64::from(busy != 0 || number != last + 1), SeqCst);
        notes.pid.store(u64::from(Cx::pid()), SeqCst);
        notes.count.fetch_add(1, SeqCst);
        notes.busy.store(0, SeqCst);
    }

    /// An event that may come to any process, at the same time as others.
    #[handler]
    fn work(state: &State, spins: u64) {
        (0..spins).for_each(|_| std::hint::spin_loop());
        state.notes.pid.store(u64::from(Cx::pid()), SeqCst);
        state.notes.count.fetch_add(1, SeqCst);
    }

    /// An event that has another one like it follow, in its own process.
    #[handler]
    fn again() -> Result<u64, CallError> {
        Cx::post(To::pid(Cx::pid()), Cx::find("ledger.again")?, &[])
    }

    /// Events so far: 0 their number, 1 how many were wrong, 2 pid of the last one's process.
    #[handler]
    fn noted(state: &State, which: u64) -> u64 {
        let notes = &state.notes;
        match which {
            0 => notes.count.load(SeqCst),
            1 => notes.wrong.load(SeqCst),
            _ => notes.pid.load(SeqCst),
        }
    }

    /// Forget them.
    #[handler]
    fn forget_notes(state: &State) {
        let notes = &state.notes;
        let all = [&notes.count, &notes.wrong, &notes.busy, &notes.pid];
        notes.last.iter().chain(all).for_each(|word| word.store(0, SeqCst));
    }

    /// Post from a handler; how many mailboxes have it.
    #[handler]
    fn relay(to: u64, poster: u64, number: u64) -> Result<u64, CallError> {
        let note = Cx::find("ledger.note")?;
        Cx::post(To::peer(Peer::from_raw(to)), note, &[poster, number])
    }

    /// The path that `path` leads to.
    #[handler]
    fn real_path(path: &str) -> Result<String, std::io::Error> {
        std::fs::canonicalize(path).map(|path| path.display().to_string())
    }

    /// A timer's handler: one sample for each period, those that were missed included.
    #[handler]
    fn late(state: &State, first: u64, period: u64, missed: u64) {
        let since = Cx::now_ns().saturating_sub(first);
        let late = &state.late;
        for back in (0..=missed).rev() {
            let at = late.count.fetch_add(1, SeqCst) as usize;
            if let Some(sample) = late.samples.get(at) {
                sample.store(since % period + back * period, SeqCst);
            }
        }
    }

    /// The sample that so many of a thousand are not above; 1001 is how many there are.
    #[handler]
    fn late_by(state: &State, permille: u64) -> u64 {
        let count = (state.late.count.load(SeqCst) as usize).min(state.late.samples.len());
        if permille > 1000 {
            return count as u64;
        }
        let samples = state.late.samples.iter().take(count);
        let mut samples: Vec<u64> = samples.map(|sample| sample.load(SeqCst)).collect();
        samples.sort_unstable();
        let at = (count * permille as usize).div_ceil(1000).saturating_sub(1);
        samples.get(at).copied().unwrap_or(0)
    }

    /// Forget the samples.
    #[handler]
    fn late_forget(state: &State) {
        state.late.count.store(0, SeqCst);
    }

    /// An event that is answered by another one.
    #[handler]
    fn bounce(to: u64, handler: u64, word: u64) -> Result<u64, CallError> {
        Cx::post(To::peer(Peer::from_raw(to)), handler, &[word])
    }

    /// An event that adds one to a word of the process that it is for.
    #[handler]
    fn add_to(word: u64) {
        let word = word as *const AtomicU64;
        // SAFETY: the poster is the process itself, which gave the address of a live word.
        unsafe { &*word }.fetch_add(1, SeqCst);
    }

    /// Stay inside an upcall for so long.
    #[handler]
    fn linger(us: u64) {
        std::thread::sleep(std::time::Duration::from_micros(us));
    }

    #[handler]
    fn mutex_add(state: &State) -> Result<u64, String> {
        state.mutex.lock().map(|mut pair| change(&mut pair)).map_err(text)
    }

    #[handler]
    fn mutex_recover(state: &State) -> Result<(), String> {
        state.mutex.recover(rebuild).map_err(text)
    }

    #[handler]
    fn rwlock_add(state: &State) -> Result<u64, String> {
        state.rwlock.write().map(|mut pair| change(&mut pair)).map_err(text)
    }

    #[handler]
    fn rwlock_recover(state: &State) -> Result<(), String> {
        state.rwlock.recover(rebuild).map_err(text)
    }

    /// The figure, if both are equal.
    #[handler]
    fn rwlock_read(state: &State) -> Result<u64, String> {
        let pair = state.rwlock.read().map_err(text)?;
        if pair[0] == pair[1] { Ok(pair[0]) } else { Err(format!("torn: {pair:?}")) }
    }

    #[handler]
    fn push(state: &State, item: u64) -> Result<bool, String> {
        state.queue.push(item).map(|pushed| pushed.is_ok()).map_err(text)
    }

    #[handler]
    fn pop(state: &State) -> Result<Option<u64>, String> {
        state.queue.pop().map_err(text)
    }

    #[handler]
    fn queued(state: &State) -> u64 {
        state.queue.len() as u64
    }

    #[handler]
    fn count(state: &State) -> u64 {
        state.counter.add(1);
        state.counter.sum()
    }

    /// Holds the mutex and the lock for so long.
    #[handler]
    fn hold(state: &State, ms: u64) -> Result<(), String> {
        let _held = state.mutex.lock().map_err(text)?;
        std::thread::sleep(std::time::Duration::from_millis(ms));
        Ok(())
    }

    /// Fills a map of std with so many entries, and boxes of two kinds.
    #[handler]
    fn fill(state: &State, count: u64) -> Result<u64, String> {
        let mut kept = state.kept.lock().map_err(|error| error.to_string())?;
        for index in 0..count {
            kept.map.insert(format!("key {index}"), index * 3);
        }
        kept.shapes = vec![Box::new(Square(3)), Box::new(Named("seven!!".to_owned()))];
        Ok(kept.map.len() as u64)
    }

    /// The sum of what `fill` left.
    #[handler]
    fn kept(state: &State) -> Result<u64, String> {
        let kept = state.kept.lock().map_err(|error| error.to_string())?;
        let known = kept.map.iter().filter(|(key, value)| **key == format!("key {}", **value / 3));
        let shapes: u64 = kept.shapes.iter().map(|shape| shape.size()).sum();
        Ok(known.count() as u64 * 100 + shapes)
    }

    /// Reads where nothing is.
    #[handler]
    fn fault(_state: &State) -> u64 {
        // SAFETY: none; the upcall is to end here.
        unsafe { std::hint::black_box(16 as *const u64).read_volatile() }
    }

    /// Stays inside for so long, and fails then.
    #[handler]
    fn fault_after(state: &State, us: u64) -> u64 {
        std::thread::sleep(std::time::Duration::from_micros(us));
        fault(state)
    }

    /// Allocates, writes, gives back.
    #[handler]
    fn allocate(_state: &State, len: u64) -> u64 {
        let block = std::hint::black_box(vec![1u8; len as usize]);
        block.iter().map(|&byte| u64::from(byte)).sum()
    }
}
