//! An extension's file, without what is for debuggers, which may be most of it: that is zeros here, and takes
//! neither time nor memory.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use libos::image;

/// Larger than any file that has an image.
const LEN_MAX: u64 = 1 << 30;
/// As much of a file as its headers take up.
const HEAD_LEN: u64 = 4096;

/// Read it. A pipe or a device could keep the supervisor for ever, and is refused.
///
/// # Errors
/// It cannot be read, is no regular file, or is too large.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    if about.len() > LEN_MAX {
        let why = format!("{} bytes; an image has at most {LEN_MAX}", about.len());
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
    }
    let mut bytes = vec![0; about.len() as usize];
    let head = about.len().min(HEAD_LEN);
    fill(&file, &mut bytes, 0..head)?;
    match image::needed(&bytes[..head as usize], about.len()) {
        Some(ranges) => {
            ranges.into_iter().try_for_each(|range| fill(&file, &mut bytes, range))?;
            Ok(bytes)
        }
        // What is wrong with it is said by who places it.
        None => {
            let mut whole = Vec::new();
            file.take(LEN_MAX).read_to_end(&mut whole)?;
            Ok(whole)
        }
    }
}

fn fill(file: &File, bytes: &mut [u8], range: Range<u64>) -> io::Result<()> {
    file.read_exact_at(&mut bytes[range.start as usize..range.end as usize], range.start)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// The launcher's own extension, as it was built for it.
    fn sample() -> PathBuf {
        PathBuf::from(env!("SBX_TRACE_IMAGE"))
    }

    /// A region that has nothing of what is imported.
    struct Nothing;

    impl image::Imports for Nothing {
        fn find(&self, _: &str) -> Option<u64> {
            None
        }

        fn missing(&self) -> u64 {
            1
        }
    }

    #[test]
    fn what_is_read_is_placed_as_the_whole_file_is() {
        use libos::layout::{LEN_MIN, Place};
        let place = Place::new(ext_api::limits::BASE_MIN, LEN_MIN).expect("a place");
        let whole = std::fs::read(sample()).expect("the file");
        let part = read(&sample()).expect("the file");
        let bytes = |file: &[u8]| image::place(file, 1, place, &Nothing).expect("an image").bytes;
        assert_eq!(whole.len(), part.len());
        assert!(bytes(&whole) == bytes(&part));
    }

    #[test]
    fn what_is_no_image_is_read_whole() {
        let file = Path::new("/proc/self/exe");
        assert_eq!(read(file).expect("a file").len(), std::fs::read(file).expect("a file").len());
        assert!(read(Path::new("/proc/self/status")).is_ok_and(|text| text.starts_with(b"Name:")));
        let path = std::env::temp_dir().join(format!("sbx-image-{}", std::process::id()));
        std::fs::write(&path, &std::fs::read(sample()).expect("the file")[..5000])
            .expect("written");
        assert_eq!(read(&path).expect("a truncated file").len(), 5000);
        File::create(&path).and_then(|file| file.set_len(LEN_MAX + 1)).expect("written");
        assert_eq!(read(&path).map_err(|e| e.kind()), Err(io::ErrorKind::FileTooLarge));
        std::fs::remove_file(&path).expect("removed");
    }
}
