//! Files, kept while they are what they were: each request asks the kernel for length and time of the
//! last change, and reads a file again only if these have changed.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ext_api::shared::Mutex;

/// What a file is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    inode: u64,
    /// Seconds and nanoseconds of the last change.
    changed: (i64, i64),
    len: u64,
}

impl Version {
    /// For clients to compare.
    #[must_use]
    pub fn tag(&self) -> String {
        let (seconds, ns) = self.changed;
        format!("\"{:x}-{seconds:x}-{ns:x}-{:x}\"", self.inode, self.len)
    }

    /// When it was changed last, in seconds of the day.
    #[must_use]
    pub const fn changed_s(&self) -> i64 {
        self.changed.0
    }
}

/// A file as it was read.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Which one it was.
    pub version: Version,
    /// All of it.
    pub bytes: Arc<[u8]>,
}

#[derive(Debug, Default)]
struct Cache {
    files: HashMap<String, (Kept, u64)>,
    bytes: usize,
    /// Counts uses: what has the smallest number was used longest ago.
    clock: u64,
}

impl Cache {
    fn find(&mut self, path: &str) -> Option<Kept> {
        let (kept, used) = self.files.get_mut(path)?;
        self.clock += 1;
        *used = self.clock;
        Some(kept.clone())
    }

    fn keep(&mut self, path: &str, kept: Kept, limit: usize) {
        self.forget(path);
        if kept.bytes.len() > limit {
            return;
        }
        while self.bytes + kept.bytes.len() > limit {
            let oldest = self.files.iter().min_by_key(|(_, (_, used))| *used);
            let Some(oldest) = oldest.map(|(path, _)| path.clone()) else { break };
            self.forget(&oldest);
        }
        self.bytes += kept.bytes.len();
        self.clock += 1;
        self.files.insert(path.to_owned(), (kept, self.clock));
    }

    fn forget(&mut self, path: &str) {
        if let Some((kept, _)) = self.files.remove(path) {
            self.bytes -= kept.bytes.len();
        }
    }
}

/// The files below a folder. Links are followed: what the folder's owner has put there is served.
#[derive(Debug)]
pub struct Files {
    root: PathBuf,
    cache: Mutex<Cache>,
    limit: usize,
    largest: usize,
}

impl Files {
    /// Keep up to `limit` bytes of those below `root`; none longer than `largest` is read.
    #[must_use]
    pub fn new(root: &Path, limit: usize, largest: usize) -> Self {
        Self { root: root.to_owned(), cache: Mutex::new(Cache::default()), limit, largest }
    }

    /// The file at `path`, which does not lead out of the root.
    ///
    /// # Errors
    /// The kernel's; [`io::ErrorKind::FileTooLarge`]; [`io::ErrorKind::IsADirectory`].
    pub fn get(&self, path: &str) -> io::Result<Kept> {
        let full = self.root.join(path);
        let version = version_of(&std::fs::metadata(&full)?)?;
        let known = self.cache.lock().ok().and_then(|mut cache| cache.find(path));
        match known.filter(|known| known.version == version) {
            Some(known) => Ok(known),
            None => self.read(path, &full),
        }
    }

    fn read(&self, path: &str, full: &Path) -> io::Result<Kept> {
        let file = File::open(full)?;
        let version = version_of(&file.metadata()?)?;
        if version.len > self.largest as u64 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut bytes = Vec::with_capacity(version.len as usize);
        // One that grows meanwhile is what it was when we asked.
        file.take(version.len).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != version.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let kept = Kept { version, bytes: bytes.into() };
        if let Ok(mut cache) = self.cache.lock() {
            cache.keep(path, kept.clone(), self.limit);
        }
        Ok(kept)
    }

    /// How many files are kept, and their bytes.
    #[must_use]
    pub fn kept(&self) -> [usize; 2] {
        self.cache.lock().map_or([0; 2], |cache| [cache.files.len(), cache.bytes])
    }
}

fn version_of(metadata: &std::fs::Metadata) -> io::Result<Version> {
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !metadata.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let changed = (metadata.mtime(), metadata.mtime_nsec());
    Ok(Version { inode: metadata.ino(), changed, len: metadata.len() })
}

#[cfg(test)]
mod tests {
    use super::Files;

    #[test]
    fn files_are_kept_while_they_stay_the_same_and_there_is_room() {
        let root = std::env::temp_dir().join(format!("sbx-http-files-{}", std::process::id()));
        std::fs::create_dir_all(root.join("folder")).expect("made");
        let write =
            |name: &str, text: &str| std::fs::write(root.join(name), text).expect("written");
        let files = Files::new(&root, 10, 20);
        let get = |name: &str| files.get(name).map(|kept| kept.bytes.to_vec());
        write("a", "12345");
        write("b", "abc");
        assert_eq!(get("a").expect("a"), b"12345");
        let first = files.get("a").expect("a");
        assert!(std::sync::Arc::ptr_eq(&first.bytes, &files.get("a").expect("kept").bytes));
        assert_eq!((get("b").expect("b"), files.kept()), (b"abc".to_vec(), [2, 8]));
        write("a", "123456");
        assert_eq!((get("a").expect("changed"), files.kept()), (b"123456".to_vec(), [2, 9]));
        write("c", "7777");
        assert_eq!((get("c").expect("c"), files.kept()), (b"7777".to_vec(), [2, 10]), "b went");
        write("long", &"x".repeat(15));
        assert_eq!((get("long").expect("served").len(), files.kept()), (15, [2, 10]));
        write("long", &"x".repeat(21));
        assert_eq!(get("long").expect_err("long").kind(), std::io::ErrorKind::FileTooLarge);
        assert_eq!(get("folder").expect_err("one").kind(), std::io::ErrorKind::IsADirectory);
        std::fs::remove_dir_all(&root).expect("removed");
    }
}
