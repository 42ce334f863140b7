//! Participants of other pid namespaces than the supervisor's: what they call themselves in the tables, and what the
//! kernel calls them here.
//!
//! A participant writes its own pid into what it claims, as the namespace that it is in has it. That number may be
//! another process's here, so nobody is signalled, traced or swept by it: the supervisor notes both when the process
//! is stopped by it, or attaches.

use std::os::unix::fs::MetadataExt;

/// A process as its own pid namespace has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named {
    /// The namespace, as the number of its file; 0 if it is not known.
    pub space: u64,
    /// Its pid there.
    pub pid: u32,
}

/// Who is who.
#[derive(Debug)]
pub struct Spaces {
    own: u64,
    /// Processes of other namespaces: the pid here, and what they are there.
    others: Vec<(u32, Named)>,
}

impl Default for Spaces {
    fn default() -> Self {
        Self { own: own_space(), others: Vec::new() }
    }
}

impl Spaces {
    /// Our own namespace.
    #[must_use]
    pub const fn own(&self) -> u64 {
        self.own
    }

    /// Note what process `pid`, which cannot be gone, calls itself.
    pub fn learn(&mut self, pid: u32) {
        self.others.retain(|(known, _)| *known != pid);
        let named = named(pid);
        if named.space != self.own {
            self.others.push((pid, named));
        }
    }

    /// What process `pid` calls itself.
    #[must_use]
    pub fn named(&self, pid: u32) -> Named {
        let known = self.others.iter().find(|(known, _)| *known == pid);
        known.map_or(Named { space: self.own, pid }, |(_, named)| *named)
    }

    /// Process `pid` is no more.
    pub fn forget(&mut self, pid: u32) {
        self.others.retain(|(known, _)| *known != pid);
    }

    /// What the thread `tid` of the process `named` is here: process and thread. None if nobody has said.
    #[must_use]
    pub fn here(&self, named: Named, tid: u32) -> Option<(i32, i32)> {
        if self.is_own(named.space) {
            return Some((named.pid as i32, tid as i32));
        }
        let (pid, _) = self.others.iter().find(|(_, known)| *known == named)?;
        let mut threads = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
        let is_it = |path: &std::path::Path| innermost(path.join("status").to_str()?);
        let found = threads.find(|thread| is_it(&thread.path()) == Some(tid))?;
        Some((*pid as i32, found.file_name().to_str()?.parse().ok()?))
    }

    /// Is it our namespace? So one counts that could not be seen.
    #[must_use]
    pub const fn is_own(&self, space: u64) -> bool {
        space == 0 || space == self.own
    }
}

/// What process `pid`, which cannot be gone, calls itself.
#[must_use]
pub fn named(pid: u32) -> Named {
    let own = own_space();
    let other = space_of(&pid.to_string()).filter(|&space| space != own);
    let inner = other.and_then(|_| innermost(&format!("/proc/{pid}/status")));
    match (other, inner) {
        (Some(space), Some(pid)) => Named { space, pid },
        _ => Named { space: own, pid },
    }
}

fn own_space() -> u64 {
    static OWN: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *OWN.get_or_init(|| space_of("self").unwrap_or(0))
}

/// The pid namespace of a process.
fn space_of(pid: &str) -> Option<u64> {
    std::fs::metadata(format!("/proc/{pid}/ns/pid")).ok().map(|file| file.ino())
}

/// What a task is called in its own namespace.
fn innermost(status: &str) -> Option<u32> {
    let text = std::fs::read_to_string(status).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().last()?.parse().ok()
}
