//! Standard output and standard error, of which nobody may read the rest.
//!
//! `println!` panics when its reader has gone away, such as `head`. Here what is left to say is dropped then: the exit code
//! is the one that the command would have had.

use std::fmt;
use std::io::{self, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result};

/// Prints a line to standard output, and returns from the function if that fails for another reason than that nobody reads
/// it.
macro_rules! say {
    ($($what:tt)*) => {{
        $crate::cli::output::line(format_args!($($what)*))?;
    }};
}
pub(super) use say;

/// Prints a line. Returns whether somebody reads it.
pub(super) fn line(text: fmt::Arguments<'_>) -> Result<bool> {
    print(format_args!("{text}\n"))
}

/// Prints text as it is, at once. Returns whether somebody reads it.
pub(super) fn print(text: fmt::Arguments<'_>) -> Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_fmt(text).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("cannot write to standard output"),
    }
}

/// Says what is not part of the answer.
pub(super) fn note(text: fmt::Arguments<'_>) {
    // Nobody is left to be told that nobody listens.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Writes a page for people. A page that cannot be written whole leaves what was there before.
pub(super) fn write_page(path: &Path, page: &str) -> Result<()> {
    let written = match path.metadata() {
        // Beside a pipe or a terminal there is nothing to rename.
        Ok(found) if !found.is_file() => std::fs::write(path, page),
        _ => replace(path, page),
    };
    written.with_context(|| format!("cannot write {}", path.display()))
}

fn replace(path: &Path, page: &str) -> io::Result<()> {
    // A link stays one.
    let path = &path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.part", std::process::id()));
    let written = write_whole(beside.as_ref(), page).and_then(|()| std::fs::rename(&beside, path));
    if written.is_err() {
        // The first error is the one to tell.
        let _ = std::fs::remove_file(&beside);
    }
    written
}

fn write_whole(path: &Path, page: &str) -> io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    file.write_all(page.as_bytes())?;
    // Some file systems say only now that they are full.
    file.sync_all()
}
