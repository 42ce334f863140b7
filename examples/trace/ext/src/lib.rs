//! Counts the system calls of all programs in the sandbox, their failures and their time, and writes
//! those that are asked for to a file.

use ext_api::prelude::*;

mod decode;
mod words;

/// The extension `trace`.
#[extension(name = "trace", kill_safe)]
pub mod trace {
    use std::fmt::Write as _;
    use std::io::{ErrorKind, Write as _};
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    use std::time::Duration;

    use ext_api::calls::{Arg, HOOKABLE_CALLS, SET_WORDS, args_of, find, name_of as known};
    use ext_api::limits::STACK_LEN;
    use ext_api::prelude::*;
    use ext_api::shared::{Counter, Guard, LockError, Mutex, Queue};

    use super::decode::{self, Shown};
    use super::words;

    const CALLS: usize = SET_WORDS * 64;
    /// Times are counted by the power of two of their nanoseconds.
    const BUCKETS: usize = 40;
    /// Calls that wait to be written.
    const QUEUE: usize = 16 << 10;
    /// Pieces of them that are taken from there at a time: programs wait meanwhile.
    const BATCH: usize = 16;
    /// What a pipe takes in one piece: nobody else's text comes between.
    const WHOLE: usize = 4096;
    /// How long a program waits while there is no room for what it does.
    const PATIENCE_MS: u64 = 200;
    /// How long `flush` waits for whoever writes.
    const FLUSH_PATIENCE: Duration = Duration::from_secs(4);
    /// Bytes of what arguments point to that are kept.
    const TEXT: usize = 240;
    /// Bytes of data that are shown.
    const DATA: usize = 32;

    /// Each call is counted in several places, by the stack that the upcall runs on: threads on different cores
    /// seldom meet at one.
    const STRIPES: usize = 4;

    /// What is known of one call.
    #[derive(Debug)]
    #[repr(align(64))]
    struct Figures {
        failed: AtomicU64,
        ns: AtomicU64,
        by_time: [AtomicU64; BUCKETS],
    }

    impl Figures {
        fn zero() -> Self {
            let zero = || AtomicU64::new(0);
            Self { failed: zero(), ns: zero(), by_time: std::array::from_fn(|_| zero()) }
        }

        fn words(&self) -> impl Iterator<Item = &AtomicU64> {
            [&self.failed, &self.ns].into_iter().chain(&self.by_time)
        }
    }

    /// The figures of the calling thread.
    fn figures_here(state: &State, number: usize) -> Option<&Figures> {
        let here = 0u8;
        let stripe = (&raw const here).addr() / STACK_LEN % STRIPES;
        state.calls.get(number).map(|stripes| &stripes[stripe])
    }

    /// Those of all threads; how many calls.
    fn total(stripes: &[Figures; STRIPES]) -> (Figures, u64) {
        let total = Figures::zero();
        for stripe in stripes {
            total.words().zip(stripe.words()).for_each(|(to, from)| {
                to.fetch_add(from.load(Relaxed), Relaxed);
            });
        }
        let count = total.by_time.iter().map(|bucket| bucket.load(Relaxed)).sum();
        (total, count)
    }

    /// A call that has been made, or (with `END` and so on for a number) what became of a process.
    #[derive(Debug, Clone, Copy)]
    struct Record {
        pid: u32,
        number: u32,
        result: i64,
        ns: u64,
        args: [u64; 6],
        /// What two of them point to, one after the other.
        text: [u8; TEXT],
        lens: [u8; 2],
        /// Bit per text: there was more.
        more: u8,
    }

    /// A record as it is queued, in pieces of two cache lines: most fit into one.
    #[derive(Debug, Clone, Copy)]
    #[repr(C)]
    struct Piece {
        /// [`MORE`] of what belongs to the piece before.
        pid: u32,
        number: u16,
        lens: [u8; 2],
        more: u8,
        text: [u8; PIECE_TEXT],
        result: i64,
        ns: u64,
        args: [u64; 6],
    }

    const PIECE_TEXT: usize = 55;
    const PIECES_MAX: usize = TEXT.div_ceil(PIECE_TEXT);
    const MORE: u32 = u32::MAX;
    const _: () = assert!(size_of::<Piece>() == 128);

    impl Record {
        fn piece(&self, pid: u32, from: usize) -> Piece {
            let mut text = [0; PIECE_TEXT];
            let rest = &self.text[from.min(TEXT)..];
            let len = rest.len().min(PIECE_TEXT);
            text[..len].copy_from_slice(&rest[..len]);
            let Self { number, result, ns, args, lens, more, .. } = *self;
            Piece { pid, number: number as u16, lens, more, text, result, ns, args }
        }

        fn text_len(&self) -> usize {
            self.lens.iter().map(|len| usize::from(*len)).sum()
        }

        /// Begin one with its first piece.
        fn begun(first: &Piece) -> Self {
            let mut text = [0; TEXT];
            text[..PIECE_TEXT].copy_from_slice(&first.text);
            let Piece { pid, number, lens, more, result, ns, args, .. } = *first;
            Self { pid, number: number.into(), result, ns, args, text, lens, more }
        }
    }

    /// The result of a call that is yet to be made.
    const UNKNOWN: i64 = i64::MIN;
    const FORKED: u32 = CALLS as u32;
    const EXECUTED: u32 = FORKED + 1;
    const ENDED: u32 = FORKED + 2;

    /// What all processes share.
    #[derive(Debug)]
    pub struct State {
        calls: Vec<[Figures; STRIPES]>,
        /// Bit per call: it is written.
        print: [u64; SET_WORDS],
        out: String,
        json: bool,
        queue: Queue<Piece>,
        /// Who takes from the queue writes that before anybody else takes more: how many calls it has.
        in_hand: Mutex<u64>,
        lost: Counter,
    }

    /// `print`: calls that are written, as names, `@file`, `@network` or `all`, separated by colons;
    /// `out`: to this file (the sandbox's log, if none is given); `json`: 1 for a line of JSON each.
    #[init]
    fn init(_cx: &Cx, config: Config) -> Result<State, String> {
        let text = |error: ConfigError| error.to_string();
        let print: String = config.get("print", String::new()).map_err(text)?;
        let print = find(&print.replace(':', " "));
        Ok(State {
            calls: (0..CALLS).map(|_| std::array::from_fn(|_| Figures::zero())).collect(),
            print: print
                .map_err(|at| format!("print: no call can be hooked by the name at {at}"))?,
            out: config.get("out", String::new()).map_err(text)?,
            json: config.get("json", 0u8).map_err(text)? != 0,
            queue: Queue::new(QUEUE),
            in_hand: Mutex::new(0),
            lost: Counter::new(),
        })
    }

    /// The kernel has carried out a call.
    #[on(syscall_exit = "all")]
    fn done(state: &State, call: &mut Call) -> Verdict {
        let number = call.number() as usize;
        let Some(figures) = figures_here(state, number) else { return Verdict::Pass };
        let (result, ns) = (call.result(), call.took_ns());
        if (-4095..0).contains(&result) {
            figures.failed.fetch_add(1, Relaxed);
        }
        figures.ns.fetch_add(ns, Relaxed);
        figures.by_time[(ns.max(1).ilog2() as usize).min(BUCKETS - 1)].fetch_add(1, Relaxed);
        if state.print[number / 64] >> (number % 64) & 1 == 1 {
            put(state, &record(call));
        }
        Verdict::Pass
    }

    /// A program is about to execute another: if it can, nobody is there to say so afterwards.
    #[on(syscall = "execve execveat")]
    fn executes(state: &State, call: &mut Call) -> Verdict {
        let number = call.number() as usize;
        if state.print[number / 64] >> (number % 64) & 1 == 1 {
            put(state, &Record { result: UNKNOWN, ..record(call) });
        }
        Verdict::Pass
    }

    #[inline]
    fn record(call: &mut Call) -> Record {
        const EFAULT: i64 = -14;
        let (result, ns) = (call.result(), call.took_ns());
        let mut record = Record {
            pid: Cx::pid(),
            number: call.number() as u32,
            result,
            ns,
            args: std::array::from_fn(|at| call.arg(at)),
            text: [0; TEXT],
            lens: [0; 2],
            more: 0,
        };
        if result == EFAULT {
            return record;
        }
        let (mut used, mut texts) = (0, 0);
        for (at, kind) in call.args().enumerate() {
            if !decode::points(kind) || texts == 2 {
                continue;
            }
            let room = &mut record.text[used..];
            let whole = match kind {
                Arg::Path | Arg::Text => call.peek_text(at, room),
                Arg::In => call.peek(at, usize::try_from(result).unwrap_or(0).min(DATA), room),
                Arg::Out => call.peek(at, (call.arg(at + 1) as usize).min(DATA), room),
                _ => call.peek(at, (call.arg(at + 1) as usize).min(TEXT), room),
            };
            let data = matches!(kind, Arg::Out) && call.arg(at + 1) > DATA as u64
                || kind == Arg::In && result > DATA as i64;
            // Of a text that ends where nothing is, that which is there.
            let len = whole.unwrap_or_else(|| match kind {
                Arg::Path | Arg::Text => text_len(room),
                _ => room.len(),
            });
            record.lens[texts] = len as u8;
            record.more |= u8::from(data || whole.is_none()) << texts;
            used += len;
            texts += 1;
        }
        record
    }

    fn text_len(text: &[u8]) -> usize {
        text.iter().position(|byte| *byte == 0).unwrap_or(text.len())
    }

    /// Wait for room, but not for long.
    fn put(state: &State, record: &Record) {
        let first = record.piece(record.pid, 0);
        if record.text_len() <= PIECE_TEXT {
            return put_pieces(state, &[first]);
        }
        let mut pieces = [first; PIECES_MAX];
        let count = record.text_len().div_ceil(PIECE_TEXT).min(PIECES_MAX);
        for (at, piece) in pieces[..count].iter_mut().enumerate().skip(1) {
            *piece = record.piece(MORE, at * PIECE_TEXT);
        }
        put_pieces(state, &pieces[..count]);
    }

    fn put_pieces(state: &State, pieces: &[Piece]) {
        for turn in 0..=PATIENCE_MS * 4 {
            if let Ok(true) = state.queue.push_all(pieces) {
                return;
            }
            if turn != PATIENCE_MS * 4 {
                std::thread::sleep(Duration::from_micros(250));
            }
        }
        state.lost.add(1);
    }

    /// A process has a child.
    #[on(process = "fork")]
    fn forked(state: &State, pid: u64, parent: u64) {
        event(state, FORKED, pid, parent);
    }

    /// A process executes a program.
    #[on(process = "exec")]
    fn executed(state: &State, pid: u64) {
        event(state, EXECUTED, pid, 0);
    }

    /// A process has ended.
    #[on(process = "exit")]
    fn ended(state: &State, pid: u64, status: u64) {
        event(state, ENDED, pid, status);
    }

    fn event(state: &State, number: u32, pid: u64, value: u64) {
        if state.print == [0; SET_WORDS] {
            return;
        }
        let (text, pid) = ([0; TEXT], pid as u32);
        let result = value as i64;
        put(
            state,
            &Record { pid, number, result, ns: 0, args: [0; 6], text, lens: [0; 2], more: 0 },
        );
    }

    /// Write what waits.
    #[on(timer = "2ms")]
    fn write(state: &State) {
        if state.queue.is_empty() {
            return;
        }
        // Those who go on making calls meanwhile are for the next time.
        if let Some(mut in_hand) = turn(state, Duration::ZERO) {
            drain(state, &mut in_hand, QUEUE / BATCH);
        }
    }

    /// Write what waits, to the end; how many calls were not written since there was no room.
    #[handler]
    fn flush(state: &State) -> u64 {
        match turn(state, FLUSH_PATIENCE) {
            Some(mut in_hand) => drain(state, &mut in_hand, usize::MAX),
            None => state.lost.add(state.queue.len() as u64),
        }
        state.lost.sum()
    }

    /// The turn to take from the queue and write. None if another has it all the time.
    fn turn(state: &State, patience: Duration) -> Option<Guard<'_, u64>> {
        let wait_ns = u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX);
        match state.in_hand.lock_within(wait_ns) {
            Ok(turn) => Some(turn),
            Err(LockError::TimedOut { .. }) => None,
            Err(LockError::Broken { .. }) => {
                // It was killed, or stopped since the file took nothing.
                let forget = |in_hand: &mut u64| state.lost.add(std::mem::take(in_hand));
                state.in_hand.recover(forget).ok()?;
                state.in_hand.lock_within(wait_ns).ok()
            }
        }
    }

    fn drain(state: &State, in_hand: &mut u64, batches: usize) {
        let mut text = String::with_capacity(WHOLE);
        let file = std::fs::OpenOptions::new().append(true).open(&state.out);
        let (mut records, mut lines) = (Vec::with_capacity(BATCH), 0);
        for _ in 0..batches {
            if !take(state, &mut records) {
                break;
            }
            *in_hand += records.len() as u64;
            for record in records.drain(..) {
                let before = text.len();
                if state.json {
                    as_json(&mut text, &record);
                } else {
                    as_line(&mut text, &record);
                }
                if text.len() > WHOLE && before != 0 {
                    let line = text.split_off(before);
                    give(state, file.as_ref().ok(), &mut text, lines);
                    text.push_str(&line);
                    *in_hand -= std::mem::take(&mut lines);
                }
                lines += 1;
            }
        }
        give(state, file.as_ref().ok(), &mut text, lines);
        *in_hand = 0;
    }

    /// Take some records, whole ones. False if there are none.
    fn take(state: &State, records: &mut Vec<Record>) -> bool {
        let (mut taken, mut missing) = (0, 0);
        let any = state.queue.pop_while(|piece| {
            taken += 1;
            if piece.pid != MORE {
                let record = Record::begun(&piece);
                missing = record.text_len().saturating_sub(PIECE_TEXT);
                records.push(record);
            } else if let Some(record) = records.last_mut().filter(|_| missing != 0) {
                let from = record.text_len() - missing;
                let len = missing.min(PIECE_TEXT);
                record.text[from..from + len].copy_from_slice(&piece.text[..len]);
                missing -= len;
            }
            // What is left of one whose taker was killed belongs to nobody.
            taken < BATCH || missing != 0
        });
        any.is_ok_and(|count| count != 0)
    }

    fn give(state: &State, file: Option<&std::fs::File>, text: &mut String, lines: u64) {
        match file.map(|mut file| file.write_all(text.as_bytes())) {
            // Who has closed the file does not want it.
            Some(Err(error)) if error.kind() != ErrorKind::BrokenPipe => state.lost.add(lines),
            Some(_) => {}
            None => print!("{text}"),
        }
        text.clear();
    }

    fn name_of(record: &Record) -> &'static str {
        known(u64::from(record.number)).unwrap_or("?")
    }

    fn as_line(line: &mut String, record: &Record) {
        line.push('[');
        decode::decimal(line, u64::from(record.pid));
        line.push_str("] ");
        let _ = match record.number {
            FORKED => writeln!(line, "+++ forked by {} +++", record.result),
            EXECUTED => writeln!(line, "+++ executes a program +++"),
            ENDED => writeln!(line, "+++ {} +++", end(record.result)),
            _ => {
                call_as_line(line, record);
                Ok(())
            }
        };
    }

    fn call_as_line(line: &mut String, record: &Record) {
        let name = name_of(record);
        line.push_str(name);
        let mut before = "(";
        each_arg(record, name, |arg| {
            line.push_str(before);
            arg.write(line);
            before = ", ";
        });
        line.push_str(if before == "(" { "() = " } else { ") = " });
        if record.result == UNKNOWN {
            return line.push_str("?\n");
        }
        decode::result(line, record.result);
        line.push_str(" <");
        decode::thousandths(line, record.ns);
        line.push_str(" us>\n");
    }

    fn as_json(line: &mut String, record: &Record) {
        let pid = record.pid;
        let _ = match record.number {
            FORKED => writeln!(line, "{{\"pid\":{pid},\"forked_by\":{}}}", record.result),
            EXECUTED => writeln!(line, "{{\"pid\":{pid},\"executes\":true}}"),
            ENDED => writeln!(line, "{{\"pid\":{pid},\"status\":{}}}", record.result),
            _ => {
                let name = name_of(record);
                let _ = write!(line, "{{\"pid\":{pid},\"call\":\"{name}\",\"args\":[");
                let (mut before, mut text) = ("\"", String::new());
                each_arg(record, name, |arg| {
                    line.push_str(before);
                    arg.write(&mut text);
                    for letter in text.drain(..) {
                        let escape = matches!(letter, '"' | '\\');
                        line.extend(escape.then_some('\\').into_iter().chain([letter]));
                    }
                    line.push('"');
                    before = ",\"";
                });
                let (result, ns) = (record.result, record.ns);
                writeln!(line, "],\"result\":{result},\"ns\":{ns}}}")
            }
        };
    }

    /// Each argument that is shown.
    fn each_arg(record: &Record, name: &str, mut then: impl FnMut(Shown<'_>)) {
        let (mut used, mut texts) = (0, 0);
        for (at, kind) in args_of(u64::from(record.number)).enumerate() {
            let value = record.args[at];
            if kind == Arg::Mode && at != 0 && !decode::has_mode(name, record.args[at - 1]) {
                continue;
            }
            if !decode::points(kind) {
                then(match words::of(record.number, at) {
                    Some(words) => Shown::Words(words, value),
                    None => Shown::Number(kind, value),
                });
                continue;
            }
            if texts == 2 {
                then(Shown::Number(Arg::Word, value));
                continue;
            }
            let len = usize::from(record.lens[texts]);
            let text = &record.text[used..used + len];
            then(match kind {
                _ if len == 0 && value == 0 => Shown::Number(Arg::Word, value),
                Arg::Address if len > 2 => Shown::Address(text),
                _ => Shown::Text(text, record.more >> texts & 1 == 1),
            });
            used += len;
            texts += 1;
        }
    }

    fn end(status: i64) -> String {
        match (status & 0x7f, status >> 8 & 0xff) {
            (0, code) => format!("ended with status {code}"),
            (signal, _) => format!("killed by signal {signal}"),
        }
    }

    /// A table of the calls that were made, those that took longest first.
    #[handler]
    fn summary(state: &State) -> String {
        let mut rows: Vec<_> = HOOKABLE_CALLS
            .iter()
            .map(|(name, number, _)| (*name, total(&state.calls[*number as usize])))
            .filter(|(_, (_, count))| *count != 0)
            .collect();
        rows.sort_by_key(|(_, (figures, _))| std::cmp::Reverse(figures.ns.load(Relaxed)));
        let head = "    total us      calls   failed    mean ns  half ns <   99% ns < call\n";
        let mut text = if state.json { String::from("[") } else { String::from(head) };
        for (at, (name, (figures, count))) in rows.into_iter().enumerate() {
            let [failed, ns] = [&figures.failed, &figures.ns].map(|word| word.load(Relaxed));
            let below = |percent: u64| {
                let mut seen = 0;
                let bucket = figures.by_time.iter().position(|bucket| {
                    seen += bucket.load(Relaxed);
                    seen * 100 >= count * percent
                });
                2u64 << bucket.unwrap_or(BUCKETS - 1)
            };
            let (half, most) = (below(50), below(99));
            let _ = if state.json {
                let comma = if at == 0 { "" } else { "," };
                write!(
                    text,
                    "{comma}{{\"call\":\"{name}\",\"calls\":{count},\"failed\":{failed},\
                     \"total_ns\":{ns},\"half_below_ns\":{half},\"p99_below_ns\":{most}}}"
                )
            } else {
                let (us, mean) = (ns / 1000, ns / count.max(1));
                writeln!(
                    text,
                    "{us:>12} {count:>10} {failed:>8} {mean:>10} {half:>10} {most:>10} {name}"
                )
            };
        }
        if state.json {
            text.push(']');
        }
        text
    }

    /// Begin anew.
    #[handler]
    fn forget(state: &State) {
        let all = state.calls.iter().flatten().flat_map(Figures::words);
        all.for_each(|word| word.store(0, Relaxed));
    }
}
