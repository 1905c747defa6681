//! Where a peer keeps its state, and how a file in it is replaced.
//!
//! One folder holds everything that one peer must remember; two daemons cannot share it ([`DataDir::lock`]).
//! This module knows the names of what belongs to this host: the API's files, the inbox, the configuration. What makes
//! a peer of the mesh has its names in [`StateFolder`], because a bootstrap peer has it too.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hyperfabric_mesh::state::{self, StateError, StateFolder};
use rustix::fs::FlockOperation;

/// Files that hold secrets or state are readable by their owner only.
const FILE_MODE: u32 = 0o600;
/// Folders likewise: a socket's own mode does not exist before it is bound, its folder's does.
const DIR_MODE: u32 = 0o700;

/// The largest small file that [`read_bounded`] accepts: keys, tokens, certificates and configurations are far below.
pub const SMALL_FILE_BYTES_MAX: u64 = 1 << 20;

/// Why the data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// Neither `--data-dir` nor the environment says where the folder is.
    #[error("no data folder: give --data-dir, or set XDG_DATA_HOME or HOME")]
    NoHome,
    /// A file or folder could not be read, written or made.
    #[error("cannot {verb} {}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A file could not be replaced.
    #[error(transparent)]
    State(#[from] StateError),
    /// A small file is too large to be what it should be.
    #[error("{} is larger than {SMALL_FILE_BYTES_MAX} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Another process works with this folder.
    #[error("another daemon{} already runs with {}", holder.map_or_else(String::new, |pid| format!(" (process {pid})")), path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
        /// The other process, as far as it is known.
        holder: Option<u32>,
    },
}

impl PathError {
    /// Returns a closure for `map_err` that says what was tried on which path.
    pub fn io(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { verb, path, source }
    }
}

/// The folder that holds everything that one peer must remember.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataDir(PathBuf);

impl DataDir {
    /// Takes the given folder, or else `$XDG_DATA_HOME/hyperfabric`, or else `~/.local/share/hyperfabric`.
    ///
    /// # Errors
    /// [`PathError::NoHome`] when none of the three is known.
    pub fn find(given: Option<PathBuf>) -> Result<Self, PathError> {
        Self::find_in(given, std::env::var_os("XDG_DATA_HOME"), std::env::var_os("HOME"))
    }

    fn find_in(
        given: Option<PathBuf>,
        xdg: Option<std::ffi::OsString>,
        home: Option<std::ffi::OsString>,
    ) -> Result<Self, PathError> {
        // The XDG specification tells programs to ignore a relative path.
        let absolute =
            |value: Option<std::ffi::OsString>| value.map(PathBuf::from).filter(|p| p.is_absolute());
        given
            .or_else(|| absolute(xdg).map(|p| p.join("hyperfabric")))
            .or_else(|| absolute(home).map(|p| p.join(".local/share/hyperfabric")))
            .map(Self)
            .ok_or(PathError::NoHome)
    }

    /// Uses `path` as it is.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Makes the folder, readable by its owner only, if it is not there.
    ///
    /// # Errors
    /// [`PathError::Io`] when it cannot be made.
    pub fn create(&self) -> Result<(), PathError> {
        make_private_dir(&self.0)
    }

    /// Keeps every other process from using the folder until the guard is dropped or this process ends.
    ///
    /// # Errors
    /// [`PathError::Locked`] when another process has it.
    pub fn lock(&self) -> Result<DataDirLock, PathError> {
        let path = self.0.join("lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .open(&path)
            .map_err(PathError::io("open", &path))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                let holder = file
                    .read_to_string(&mut text)
                    .ok()
                    .and_then(|_| text.trim().parse().ok());
                return Err(PathError::Locked {
                    path: self.0.clone(),
                    holder,
                });
            }
            Err(errno) => return Err(PathError::io("lock", &path)(errno.into())),
        }
        let written = file
            .set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(PathError::io("write", &path))?;
        Ok(DataDirLock { _file: file })
    }

    /// The folder itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The peer's identity, membership and store.
    #[must_use]
    pub fn state(&self) -> StateFolder {
        StateFolder::new(&self.0)
    }

    /// The bearer token of the local API.
    #[must_use]
    pub fn api_token(&self) -> PathBuf {
        self.0.join("api.token")
    }

    /// The socket over which descriptors are handed to the daemon.
    #[must_use]
    pub fn api_socket(&self) -> PathBuf {
        self.0.join("api.sock")
    }

    /// Where the running daemon serves the local API, as `127.0.0.1:PORT`.
    #[must_use]
    pub fn api_addr(&self) -> PathBuf {
        self.0.join("api.addr")
    }

    /// Where received files appear, below a folder per sender.
    #[must_use]
    pub fn inbox(&self) -> PathBuf {
        self.0.join("inbox")
    }

    /// Where files lie until they are complete and verified.
    #[must_use]
    pub fn partial(&self) -> PathBuf {
        self.0.join("partial")
    }

    /// Where the bodies of uploads lie until their transfers have ended.
    #[must_use]
    pub fn uploads(&self) -> PathBuf {
        self.0.join("uploads")
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.0.join("config.yaml")
    }
}

/// Proof that this process alone works with a [`DataDir`].
#[derive(Debug)]
pub struct DataDirLock {
    _file: File,
}

/// Makes a folder and its parents, readable by their owner only, if they are not there.
///
/// # Errors
/// [`PathError::Io`] when it cannot be made.
pub fn make_private_dir(path: &Path) -> Result<(), PathError> {
    let made = fs::DirBuilder::new().recursive(true).mode(DIR_MODE).create(path);
    made.map_err(PathError::io("make the folder", path))
}

/// Replaces a file so that after a crash it has either its old or its new content, and only its owner can read it.
///
/// # Errors
/// [`PathError::State`] when the content cannot be written, made durable or put in place; the old file is then intact.
pub fn replace_file(path: &Path, content: &[u8]) -> Result<(), PathError> {
    Ok(state::replace(path, content)?)
}

/// Removes a file; one that is not there is no error.
///
/// # Errors
/// [`PathError::Io`] when it is there and cannot be removed.
pub fn remove_file(path: &Path) -> Result<(), PathError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(PathError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Reads a small file; `None` when it is not there.
///
/// # Errors
/// [`PathError::TooLarge`] beyond [`SMALL_FILE_BYTES_MAX`], [`PathError::Io`] when it cannot be read.
pub fn read_bounded(path: &Path) -> Result<Option<Vec<u8>>, PathError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(PathError::io("read", path)(error)),
    };
    let mut content = Vec::new();
    file.take(SMALL_FILE_BYTES_MAX + 1)
        .read_to_end(&mut content)
        .map_err(PathError::io("read", path))?;
    if content.len() as u64 > SMALL_FILE_BYTES_MAX {
        return Err(PathError::TooLarge {
            path: path.to_path_buf(),
        });
    }
    Ok(Some(content))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_data_folder_is_the_given_one_then_xdg_then_home() {
        let find = |given: Option<&str>, xdg: Option<&str>, home: Option<&str>| {
            DataDir::find_in(
                given.map(PathBuf::from),
                xdg.map(Into::into),
                home.map(Into::into),
            )
        };
        assert_eq!(
            find(Some("here"), Some("/x"), Some("/h")).unwrap(),
            DataDir::at("here")
        );
        assert_eq!(
            find(None, Some("/x"), Some("/h")).unwrap(),
            DataDir::at("/x/hyperfabric")
        );
        assert_eq!(
            find(None, Some("relative"), Some("/h")).unwrap(),
            DataDir::at("/h/.local/share/hyperfabric")
        );
        assert!(matches!(find(None, None, None), Err(PathError::NoHome)));
    }

    #[test]
    fn a_replaced_file_is_private_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        replace_file(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_replacement_names_the_file() {
        let error = replace_file(Path::new("/nonexistent/key"), b"").unwrap_err();
        assert_eq!(error.to_string(), "cannot use /nonexistent/key");
    }

    #[test]
    fn a_second_lock_names_the_process_that_has_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = DataDir::at(folder.path());
        let lock = data_dir.lock().unwrap();
        match data_dir.lock() {
            Err(PathError::Locked { holder, .. }) => assert_eq!(holder, Some(std::process::id())),
            other => panic!("expected the folder to be locked, got {other:?}"),
        }
        drop(lock);
        data_dir.lock().unwrap();
    }

    #[test]
    fn a_small_file_is_read_whole_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        assert_eq!(read_bounded(&path).unwrap(), None);
        fs::write(&path, vec![7; SMALL_FILE_BYTES_MAX as usize]).unwrap();
        assert_eq!(
            read_bounded(&path).unwrap().unwrap().len() as u64,
            SMALL_FILE_BYTES_MAX
        );
        fs::write(&path, vec![7; SMALL_FILE_BYTES_MAX as usize + 1]).unwrap();
        assert!(matches!(read_bounded(&path), Err(PathError::TooLarge { .. })));
    }
}
