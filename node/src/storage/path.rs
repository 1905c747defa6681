//! A path that stays where it belongs: relative, normal, free of `..`, checked once when it is made.
//!
//! Names are bytes, as Linux has them. Whoever holds a [`RelPath`] needs no further check before walking it, apart
//! from links, which only the walk itself can refuse.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Bytes of one name, the limit of every file system that Linux commonly has.
pub const NAME_BYTES_MAX: usize = 255;

/// Bytes of a whole relative path.
pub const PATH_BYTES_MAX: usize = 4_096;

/// Why bytes are not a path that may be used below a folder of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathFault {
    /// Nothing was given.
    #[error("the path is empty")]
    Empty,
    /// It begins at the root of the file system.
    #[error("the path is absolute")]
    Absolute,
    /// It has a component `..`.
    #[error("the path climbs out of its folder")]
    ClimbsOut,
    /// It has an empty component or `.`.
    #[error("the path has an empty or \".\" component")]
    NotNormal,
    /// It has a NUL byte.
    #[error("the path has a NUL byte")]
    Nul,
    /// One name is longer than file systems take.
    #[error("a name in the path is longer than {NAME_BYTES_MAX} bytes")]
    NameTooLong,
    /// The whole is too long.
    #[error("the path is longer than {PATH_BYTES_MAX} bytes")]
    PathTooLong,
}

/// A normal path below some folder. The empty one is the folder itself.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RelPath(Vec<u8>);

impl RelPath {
    /// The folder itself.
    pub const ROOT: Self = Self(Vec::new());

    /// Checks and takes a path of one or more names separated by `/`.
    ///
    /// # Errors
    /// Names the first thing that is wrong with it.
    pub fn parse(path: &[u8]) -> Result<Self, PathFault> {
        if path.is_empty() {
            return Err(PathFault::Empty);
        }
        if path.len() > PATH_BYTES_MAX {
            return Err(PathFault::PathTooLong);
        }
        if path[0] == b'/' {
            return Err(PathFault::Absolute);
        }
        for name in path.split(|&byte| byte == b'/') {
            check_name(name)?;
        }
        Ok(Self(path.to_vec()))
    }

    /// The path of `name` in the folder that this path names.
    ///
    /// # Errors
    /// When `name` is not one plain name, or the whole becomes too long.
    pub fn join(&self, name: &[u8]) -> Result<Self, PathFault> {
        if name.contains(&b'/') {
            return Err(PathFault::NotNormal);
        }
        self.join_path(&Self::parse(name)?)
    }

    /// The path of `path` below the folder that this path names.
    ///
    /// # Errors
    /// When the whole becomes too long.
    pub fn join_path(&self, path: &Self) -> Result<Self, PathFault> {
        if self.0.is_empty() {
            return Ok(path.clone());
        }
        let mut whole = Vec::with_capacity(self.0.len() + 1 + path.0.len());
        whole.extend_from_slice(&self.0);
        whole.push(b'/');
        whole.extend_from_slice(&path.0);
        if whole.len() > PATH_BYTES_MAX {
            return Err(PathFault::PathTooLong);
        }
        Ok(Self(whole))
    }

    /// The folder that holds it, and its name there; `None` for the root.
    pub fn split(&self) -> Option<(Self, &[u8])> {
        if self.0.is_empty() {
            return None;
        }
        match self.0.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => Some((Self(self.0[..slash].to_vec()), &self.0[slash + 1..])),
            None => Some((Self::ROOT, &self.0)),
        }
    }

    /// The folder that holds it; the root holds itself.
    pub fn parent(&self) -> Self {
        self.split().map_or(Self::ROOT, |(parent, _)| parent)
    }

    /// Its names, outermost first.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|&byte| byte == b'/').filter(|name| !name.is_empty())
    }

    /// Whether it is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it lies below `folder`, at any depth; nothing lies below itself.
    pub fn is_below(&self, folder: &Self) -> bool {
        if folder.is_root() {
            return !self.is_root();
        }
        self.0.len() > folder.0.len() && self.0.starts_with(&folder.0) && self.0[folder.0.len()] == b'/'
    }

    /// Its bytes, names separated by `/`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The place that it names below `root`.
    pub fn under(&self, root: &Path) -> PathBuf {
        if self.is_root() {
            root.to_path_buf()
        } else {
            root.join(OsStr::from_bytes(&self.0))
        }
    }
}

fn check_name(name: &[u8]) -> Result<(), PathFault> {
    match name {
        b"" | b"." => Err(PathFault::NotNormal),
        b".." => Err(PathFault::ClimbsOut),
        _ if name.contains(&0) => Err(PathFault::Nul),
        _ if name.len() > NAME_BYTES_MAX => Err(PathFault::NameTooLong),
        _ => Ok(()),
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RelPath({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_way_out_is_refused_by_name() {
        let long_name = vec![b'a'; NAME_BYTES_MAX + 1];
        let long_path = [b"a/".repeat(PATH_BYTES_MAX / 2), b"a".to_vec()].concat();
        let cases: [(&[u8], PathFault); 9] = [
            (b"", PathFault::Empty),
            (b"/etc/passwd", PathFault::Absolute),
            (b"..", PathFault::ClimbsOut),
            (b"a/../../b", PathFault::ClimbsOut),
            (b"a//b", PathFault::NotNormal),
            (b"./a", PathFault::NotNormal),
            (b"a\0b", PathFault::Nul),
            (&long_name, PathFault::NameTooLong),
            (&long_path, PathFault::PathTooLong),
        ];
        for (path, fault) in cases {
            assert_eq!(RelPath::parse(path), Err(fault));
        }
    }

    #[test]
    fn a_path_splits_into_what_it_was_joined_from() {
        let folder = RelPath::parse(b"inbox/a").unwrap();
        let file = folder.join(b"f.bin").unwrap();
        assert_eq!(file.split(), Some((folder.clone(), &b"f.bin"[..])));
        assert!(file.is_below(&folder) && file.is_below(&RelPath::ROOT));
        assert!(!folder.is_below(&folder));
        assert!(!RelPath::parse(b"inbox/ab").unwrap().is_below(&folder));
        assert_eq!(folder.join(b"x/y"), Err(PathFault::NotNormal));
    }

    proptest! {
        #[test]
        fn an_accepted_path_never_leaves_its_folder(bytes in proptest::collection::vec(
            prop_oneof![Just(b'/'), Just(b'.'), Just(b'a'), Just(0u8)], 0..12)) {
            if let Ok(path) = RelPath::parse(&bytes) {
                let place = path.under(Path::new("/root-folder"));
                prop_assert!(place.starts_with("/root-folder"));
                prop_assert!(place.components().all(|part| part != std::path::Component::ParentDir));
                prop_assert_eq!(path.as_bytes(), &bytes[..]);
            }
        }
    }
}
