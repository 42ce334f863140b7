//! Packs files, and reads them where they are mapped.
//!
//! `pager-caller pack IN OUT` · `pager-caller cat FILE` · `pager-caller check FILE ORIGINAL`

#![expect(unsafe_code, reason = "reads memory that the extension has mapped, and forks")]

use std::io::Write;
use std::process::ExitCode;

use pager::packed;
use pager::pager::Client;

const BLOCK_LEN: usize = 64 << 10;

type Failed = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let args = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned());
    let args: Vec<String> = args.collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args[..] {
        ["pack", from, to] => pack(from, to),
        ["cat", file] => cat(file),
        ["check", file, original] => check(file, original),
        _ => Err("usage: pager-caller pack IN OUT | cat FILE | check FILE ORIGINAL".into()),
    };
    if let Err(why) = result {
        eprintln!("pager-caller: {why}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn pack(from: &str, to: &str) -> Result<(), Failed> {
    let original = std::fs::read(from)?;
    if original.is_empty() {
        return Err(format!("{from} is empty").into());
    }
    let packed = packed::pack(&original, BLOCK_LEN);
    std::fs::write(to, &packed)?;
    println!("{} bytes packed into {}", original.len(), packed.len());
    Ok(())
}

/// The file's bytes in this process, none of them read yet.
fn mapped(client: &Client, file: &str) -> Result<&'static [u8], Failed> {
    let address = client.map(file)?;
    let len = client.len(address)?.ok_or("it is not mapped")?;
    // SAFETY: the extension keeps so many bytes readable there until `unmap`, and never changes one.
    Ok(unsafe { std::slice::from_raw_parts(address as *const u8, len as usize) })
}

fn cat(file: &str) -> Result<(), Failed> {
    let client = Client::attach()?;
    let bytes = mapped(&client, file)?;
    // For a system call the pages have to be there.
    for part in bytes.chunks(16 * BLOCK_LEN) {
        client.touch(part.as_ptr() as u64, part.len() as u64)?;
        std::io::stdout().write_all(part)?;
    }
    Ok(())
}

fn check(file: &str, original: &str) -> Result<(), Failed> {
    let client = Client::attach()?;
    let (original, bytes) = (std::fs::read(original)?, mapped(&client, file)?);
    // What a system call gets of a page that is not filled.
    let (_reader, writer) = std::io::pipe()?;
    println!("a system call on an unfilled page: {}", write_error(&writer, bytes.as_ptr()));
    // Threads at once, here and there.
    let same = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4usize)
            .map(|first| {
                let (original, step) = (&original, 7919);
                scope.spawn(move || {
                    (0..bytes.len()).skip(first).step_by(step).all(|at| bytes[at] == original[at])
                })
            })
            .collect();
        threads.into_iter().all(|thread| thread.join().unwrap_or(false))
    });
    println!("threads: {same}");
    let second = mapped(&client, file)?;
    // A child of ours has our mappings.
    // SAFETY: the child reads memory and ends.
    let status = match unsafe { libc::fork() } {
        // SAFETY: ends the child.
        0 => unsafe { libc::_exit(i32::from(second != original)) },
        child => {
            let mut status = -1;
            // SAFETY: our own child.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            status
        }
    };
    println!("a child: {}", status == 0);
    println!("whole: {}", bytes == original && second == original);
    client.unmap(second.as_ptr() as u64)?;
    println!("unmapped: {}", client.len(second.as_ptr() as u64)?.is_none());
    // SAFETY: not sound: there is nothing any more, and the process ends here.
    let byte = unsafe { std::hint::black_box(second.as_ptr()).read_volatile() };
    Err(format!("read {byte} where nothing is").into())
}

/// What `write(2)` of one byte at `from` says.
fn write_error(to: &std::io::PipeWriter, from: *const u8) -> std::io::Error {
    use std::os::fd::AsRawFd;
    // SAFETY: the kernel reads at most one byte, if it can.
    unsafe { libc::write(to.as_raw_fd(), from.cast(), 1) };
    std::io::Error::last_os_error()
}
