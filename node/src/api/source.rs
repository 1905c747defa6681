//! Which files the daemon may send for whom.
//!
//! The daemon never reads a file for a caller who could not. Over the socket a caller shows that it can by handing over
//! a descriptor that is open for reading; over HTTP nobody shows anything, so a path must lie below a folder that the
//! owner configured. Both end in a descriptor: a path is looked up once, and what was checked is what is read.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::control::SendSource;
use super::error::{ApiError, ErrorCode};

/// Why a file is not sent.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The path is relative, and the daemon's working directory is not the caller's.
    #[error("the path {} is not absolute", path.display())]
    Relative {
        /// The path.
        path: PathBuf,
    },
    /// It is neither a regular file nor a folder.
    #[error("{} is neither a file nor a folder", path.display())]
    Kind {
        /// The path.
        path: PathBuf,
    },
    /// The descriptor does not prove that its owner can read.
    #[error("the descriptor of {} is not open for reading", path.display())]
    NotReadable {
        /// The path.
        path: PathBuf,
    },
    /// The descriptor is of another file than the one at the path, or the file was replaced.
    #[error("the descriptor is not that of {}", path.display())]
    Mismatch {
        /// The path.
        path: PathBuf,
    },
    /// The path lies outside what may be sent over HTTP.
    #[error("{} does not lie below any of the configured send.roots", path.display())]
    OutsideRoots {
        /// The path.
        path: PathBuf,
        /// Whether any folder is configured.
        configured: bool,
    },
    /// It is not there.
    #[error("{} does not exist", path.display())]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// It could not be looked at or opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// No name for the receiver can be made of the path.
    #[error("{} has no name that a receiver could use; give one", path.display())]
    Nameless {
        /// The path.
        path: PathBuf,
    },
}

impl From<SourceError> for ApiError {
    fn from(error: SourceError) -> Self {
        let code = match &error {
            SourceError::Relative { .. } | SourceError::Kind { .. } | SourceError::Nameless { .. } => {
                ErrorCode::Usage
            }
            SourceError::NotReadable { .. }
            | SourceError::Mismatch { .. }
            | SourceError::OutsideRoots { .. } => ErrorCode::Refused,
            SourceError::Missing { .. } => ErrorCode::NotFound,
            SourceError::Open { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                ErrorCode::Refused
            }
            SourceError::Open { .. } => ErrorCode::Failed,
        };
        let api = Self::of(code, &error);
        match error {
            SourceError::OutsideRoots { configured: false, .. } => api.hint(
                "no folder is configured: add one to send.roots, upload the bytes as the body, or use `hyperfabric send`",
            ),
            SourceError::OutsideRoots { .. } => api.hint("add its folder to send.roots, or upload the bytes as the body"),
            _ => api,
        }
    }
}

/// Takes a descriptor from a caller who says that it is that of `path`.
///
/// The path must lead to the same file, because a transfer that outlives the daemon is resumed from it.
///
/// # Errors
/// [`SourceError`] when the descriptor does not prove what it should.
pub fn from_descriptor(file: OwnedFd, path: PathBuf) -> Result<SendSource, SourceError> {
    if !path.is_absolute() {
        return Err(SourceError::Relative { path });
    }
    let failed = |errno: Errno| SourceError::Open {
        path: path.clone(),
        source: errno.into(),
    };
    let flags = rustix::fs::fcntl_getfl(&file).map_err(failed)?;
    // O_PATH opens what its caller cannot read, and reports the access mode 0, which is that of reading.
    let reads = matches!(flags & OFlags::ACCMODE, OFlags::RDONLY | OFlags::RDWR);
    if flags.contains(OFlags::PATH) || !reads {
        return Err(SourceError::NotReadable { path });
    }
    let opened = rustix::fs::fstat(&file).map_err(failed)?;
    let named = match rustix::fs::stat(&path) {
        Ok(stat) => stat,
        Err(Errno::NOENT | Errno::NOTDIR) => return Err(SourceError::Mismatch { path }),
        Err(errno) => return Err(failed(errno)),
    };
    if (opened.st_dev, opened.st_ino) != (named.st_dev, named.st_ino) {
        return Err(SourceError::Mismatch { path });
    }
    check_kind(&file, &path)?;
    Ok(SendSource {
        file,
        path,
        upload: false,
    })
}

/// Opens a path that must lie below one of `roots` after every symbolic link is resolved.
///
/// # Errors
/// [`SourceError::OutsideRoots`] for everything outside, whether it exists or not.
pub fn below_roots(roots: &[PathBuf], path: &Path) -> Result<SendSource, SourceError> {
    let path = path.to_path_buf();
    if !path.is_absolute() {
        return Err(SourceError::Relative { path });
    }
    let outside = |path| SourceError::OutsideRoots {
        path,
        configured: !roots.is_empty(),
    };
    let resolved = match path.canonicalize() {
        Ok(resolved) => resolved,
        Err(source) => {
            // What lies outside is not told apart from what does not exist there.
            let plain = path
                .components()
                .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
            if !plain || !roots.iter().any(|root| path.starts_with(root)) {
                return Err(outside(path));
            }
            if source.kind() == std::io::ErrorKind::NotFound {
                return Err(SourceError::Missing { path });
            }
            return Err(SourceError::Open { path, source });
        }
    };
    for root in roots {
        let Ok(root) = root.canonicalize() else { continue };
        if let Ok(below) = resolved.strip_prefix(&root) {
            let file = open_below(&root, below).map_err(|source| SourceError::Open {
                path: path.clone(),
                source,
            })?;
            check_kind(&file, &path)?;
            return Ok(SendSource {
                file,
                path: resolved,
                upload: false,
            });
        }
    }
    Err(outside(path))
}

/// Opens without following any link: what was resolved a moment ago has none, unless it was replaced since.
fn open_below(root: &Path, below: &Path) -> std::io::Result<OwnedFd> {
    let root = rustix::fs::open(
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let below = if below.as_os_str().is_empty() {
        Path::new(".")
    } else {
        below
    };
    // Without NONBLOCK, opening a named pipe waits for its writer.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(root, below, flags, Mode::empty(), resolve)?)
}

/// Opens a path as a caller of the socket does: for reading, without waiting for the other end of a pipe.
///
/// # Errors
/// [`SourceError::Missing`], [`SourceError::Open`] or [`SourceError::Kind`].
pub fn open_for_sending(path: &Path) -> Result<File, SourceError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => {
            return Err(SourceError::Missing {
                path: path.to_path_buf(),
            });
        }
        Err(errno) => {
            return Err(SourceError::Open {
                path: path.to_path_buf(),
                source: errno.into(),
            });
        }
    };
    check_kind(&file, path)?;
    Ok(File::from(file))
}

/// Returns the name under which a file arrives: the one asked for, or else the last segment of its path.
///
/// # Errors
/// [`SourceError::Nameless`] when that is not one segment of UTF-8 text.
pub fn arrival_name(asked: Option<String>, path: &Path) -> Result<String, SourceError> {
    let name = asked.or_else(|| path.file_name().and_then(OsStr::to_str).map(str::to_owned));
    let one_segment = |name: &String| {
        let mut parts = Path::new(name).components();
        matches!(parts.next(), Some(Component::Normal(part)) if part == OsStr::new(name))
            && parts.next().is_none()
    };
    name.filter(one_segment).ok_or_else(|| SourceError::Nameless {
        path: path.to_path_buf(),
    })
}

fn check_kind(file: impl AsFd, path: &Path) -> Result<(), SourceError> {
    let stat = rustix::fs::fstat(file).map_err(|errno| SourceError::Open {
        path: path.to_path_buf(),
        source: errno.into(),
    })?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile | FileType::Directory => Ok(()),
        _ => Err(SourceError::Kind {
            path: path.to_path_buf(),
        }),
    }
}
