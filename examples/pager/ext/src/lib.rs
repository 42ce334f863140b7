//! Compressed files in memory: a process maps one, and each part is decompressed when it is touched
//! for the first time. The compressed bytes lie in the region, once for all processes.

#![expect(unsafe_code, reason = "maps memory in the process that it runs in")]

use ext_api::prelude::*;

pub mod packed;

/// The extension `pager`.
#[extension(name = "pager", heap = "256M", budget = "1s", kill_safe)]
pub mod pager {
    use std::fs::{Metadata, OpenOptions};
    use std::io::Read;
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
    use std::ptr::null_mut;

    use ext_api::prelude::*;
    use ext_api::shared::{LockError, RwLock};

    use crate::packed::Packed;

    /// Files that are known, and mappings, at one time.
    const FILES_MAX: usize = 256;
    const MAPPINGS_MAX: usize = 4096;
    /// What the processor says of a fault that was no attempt to read: to write, to execute.
    const NO_READ: u64 = 2 | 16;

    /// A packed file, for good.
    #[derive(Debug)]
    struct File {
        version: Version,
        packed: &'static Packed,
    }

    /// Which file, and which bytes of it: a path may lead to another one later, or from elsewhere.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Version {
        file: [u64; 2],
        changed: [i64; 2],
        len: u64,
    }

    /// A file in the memory of a process.
    #[derive(Debug, Clone, Copy)]
    struct Mapping {
        pid: u32,
        /// The process as a [`Peer`]: another one after an exec.
        process: u64,
        start: usize,
        packed: &'static Packed,
    }

    /// What all processes share. Neither list ever grows beyond what it has room for from the start,
    /// so that one that was being changed when a process was killed is right all the same.
    #[derive(Debug)]
    pub struct State {
        files: RwLock<Vec<File>>,
        mappings: RwLock<Vec<Mapping>>,
    }

    #[init]
    fn init(_cx: &Cx) -> Result<State, String> {
        Ok(State {
            files: RwLock::new(Vec::with_capacity(FILES_MAX)),
            mappings: RwLock::new(Vec::with_capacity(MAPPINGS_MAX)),
        })
    }

    fn text(error: impl std::fmt::Display) -> String {
        error.to_string()
    }

    /// As `lock.write()`, when its holder may have been killed.
    fn change<T, R>(
        lock: &RwLock<Vec<T>>,
        mut work: impl FnMut(&mut Vec<T>) -> R,
    ) -> Result<R, String> {
        match lock.write() {
            Err(LockError::Broken { .. }) => {
                lock.recover(|_| ()).map_err(text)?;
                lock.write().map(|mut list| work(&mut list)).map_err(text)
            }
            other => other.map(|mut list| work(&mut list)).map_err(text),
        }
    }

    fn list<T: Copy>(lock: &RwLock<Vec<T>>, of: impl Fn(&T) -> bool) -> Result<Vec<T>, String> {
        let found = |list: &Vec<T>| list.iter().copied().filter(&of).collect();
        match lock.read() {
            Err(LockError::Broken { .. }) => change(lock, |list| found(list)),
            other => other.map(|list| found(&list)).map_err(text),
        }
    }

    /// Map a packed file into the calling process; its address. Nothing is read from it yet.
    #[handler]
    fn map(state: &State, path: &str) -> Result<u64, String> {
        let packed = packed(state, path).map_err(|why| format!("{path}: {why}"))?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: new memory wherever the kernel likes.
        let at = unsafe { libc::mmap(null_mut(), packed.span(), libc::PROT_NONE, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(format!("no room for {} bytes", packed.len()));
        }
        let (pid, process) = this_process()?;
        let mapping = Mapping { pid, process, start: at as usize, packed };
        if !keep(state, mapping)? {
            // SAFETY: just made, and nobody has its address.
            unsafe { libc::munmap(at, packed.span()) };
            return Err(format!("{MAPPINGS_MAX} mappings are in use"));
        }
        Ok(at as u64)
    }

    /// What the file holds, which is read if it is not known. Whoever asks for it meanwhile waits.
    fn packed(state: &State, path: &str) -> Result<&'static Packed, String> {
        // One that is no file may have nothing to say for long.
        let at_once = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let mut file = at_once.map_err(text)?;
        let about = file.metadata().map_err(text)?;
        if !about.is_file() {
            return Err("it is no file".into());
        }
        let version = Version::of(&about);
        let mut read = move || {
            let mut bytes = Vec::with_capacity(about.len() as usize);
            file.read_to_end(&mut bytes).map_err(text)?;
            Packed::parse(bytes)
        };
        change(&state.files, |files| {
            if let Some(known) = files.iter().find(|file| file.version == version) {
                return Ok(known.packed);
            }
            if files.len() == FILES_MAX {
                return Err(format!("{FILES_MAX} files are known already"));
            }
            let packed = Box::leak(read()?.into());
            files.push(File { version, packed });
            Ok(packed)
        })?
    }

    impl Version {
        fn of(about: &Metadata) -> Self {
            Self {
                file: [about.dev(), about.ino()],
                changed: [about.mtime(), about.mtime_nsec()],
                len: about.len(),
            }
        }
    }

    fn this_process() -> Result<(u32, u64), String> {
        let pid = Cx::pid();
        Cx::peer(pid).map(|peer| (pid, peer.to_raw())).map_err(text)
    }

    fn keep(state: &State, mapping: Mapping) -> Result<bool, String> {
        change(&state.mappings, |list| {
            if list.len() == MAPPINGS_MAX {
                list.retain(is_alive);
            }
            let room = list.len() < MAPPINGS_MAX;
            if room {
                list.push(mapping);
            }
            room
        })
    }

    fn is_alive(mapping: &Mapping) -> bool {
        Cx::peer(mapping.pid).is_ok_and(|peer| peer.to_raw() == mapping.process)
    }

    /// Bytes of the file that is mapped at `address`.
    #[handler]
    fn len(state: &State, address: u64) -> Result<Option<u64>, String> {
        Ok(mapping_at(state, address as usize)?.map(|mapping| mapping.packed.len() as u64))
    }

    /// Fill what a system call is to read: the kernel does not ask us, and says EFAULT.
    #[handler]
    fn touch(state: &State, address: u64, len: u64) -> Result<(), String> {
        let mapping = mapping_at(state, address as usize)?.ok_or("nothing is mapped there")?;
        let first = (address as usize - mapping.start) / mapping.packed.block_len();
        let last = (address as usize - mapping.start + len.max(1) as usize - 1)
            / mapping.packed.block_len();
        (first..=last).try_for_each(|block| fill(&mapping, block))
    }

    /// Take a mapping away.
    #[handler]
    fn unmap(state: &State, address: u64) -> Result<(), String> {
        let mapping = mapping_at(state, address as usize)?.ok_or("nothing is mapped there")?;
        change(&state.mappings, |list| {
            list.retain(|it| (it.process, it.start) != (mapping.process, mapping.start));
        })?;
        // SAFETY: ours; who asks for it uses it no more.
        unsafe { libc::munmap(mapping.start as *mut libc::c_void, mapping.packed.span()) };
        Ok(())
    }

    /// The mapping of the process that this runs in with `address` in it. A forked child has those of
    /// its parent.
    fn mapping_at(state: &State, address: usize) -> Result<Option<Mapping>, String> {
        let (pid, process) = this_process()?;
        let here = |it: &Mapping| it.process == process && it.contains(address);
        if let Some(found) = list(&state.mappings, here)?.first() {
            return Ok(Some(*found));
        }
        let Ok(parent) = Cx::peer(std::os::unix::process::parent_id()) else { return Ok(None) };
        let there = |it: &Mapping| it.process == parent.to_raw() && it.contains(address);
        let Some(found) = list(&state.mappings, there)?.first().copied() else { return Ok(None) };
        // SAFETY: asks the kernel about a page; its answer goes into one byte.
        let known = unsafe { libc::mincore(found.start as *mut libc::c_void, 1, &mut 0) } == 0;
        let own = Mapping { pid, process, ..found };
        Ok((known && keep(state, own)?).then_some(own))
    }

    impl Mapping {
        fn contains(&self, address: usize) -> bool {
            (self.start..self.start + self.packed.span()).contains(&address)
        }
    }

    /// A page that is not there yet, or a program's error.
    #[on(signal = "SIGSEGV")]
    fn fault(state: &State, _signal: u64, address: u64, _code: u64, access: u64) -> bool {
        if access & NO_READ != 0 {
            return false;
        }
        let Ok(Some(mapping)) = mapping_at(state, address as usize) else { return false };
        let block = (address as usize - mapping.start) / mapping.packed.block_len();
        fill(&mapping, block).is_ok()
    }

    /// Its mappings are nobody's any more.
    #[on(process = "exit")]
    fn gone(state: &State, pid: u64) {
        let _ = change(&state.mappings, |list| {
            list.retain(|it| u64::from(it.pid) != pid || is_alive(it));
        });
    }

    /// Put a block where it belongs, whole: other threads see nothing or all of it.
    fn fill(mapping: &Mapping, block: usize) -> Result<(), String> {
        let packed = mapping.packed;
        let len = packed.block_len();
        let (read, write) = (libc::PROT_READ, libc::PROT_READ | libc::PROT_WRITE);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        // SAFETY: new memory wherever the kernel likes.
        let at = unsafe { libc::mmap(null_mut(), len, write, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err("no memory for a block".into());
        }
        // SAFETY: just mapped, writable, and nobody else has its address.
        let bytes = unsafe { std::slice::from_raw_parts_mut(at.cast::<u8>(), len) };
        let done = packed.unpack(block, bytes);
        // SAFETY: as above.
        unsafe { libc::mprotect(at, len, read) };
        let to = (mapping.start + block * len) as *mut libc::c_void;
        if done.is_ok() {
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            // SAFETY: replaces a block of our own mapping by its contents, for the first time or
            // once more.
            let moved = unsafe { libc::mremap(at, len, len, flags, to) };
            return if moved == to { Ok(()) } else { Err("no room in the address space".into()) };
        }
        // SAFETY: as above.
        unsafe { libc::munmap(at, len) };
        done
    }
}
