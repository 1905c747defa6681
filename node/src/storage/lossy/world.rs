//! Contents and names of a lossy storage, each as seen now and as a power cut would leave them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::super::RelPath;

/// The inode of the journal, which has no name: it is reached by its own handle.
pub(super) const JOURNAL_INODE: u64 = 0;

/// What disks write as one: a write larger than this can be torn by a power cut.
const SECTOR_BYTES: u64 = 4_096;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Folder,
    File(u64),
}

type Names = BTreeMap<RelPath, Node>;

#[derive(Debug)]
pub(super) struct World {
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    names: Names,
    durable_names: Names,
    /// Changes of names, oldest first, that no sync of their folder has covered yet.
    pending: Vec<NameChange>,
}

#[derive(Clone, Debug, Default)]
struct Inode {
    content: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<ContentChange>,
}

#[derive(Clone, Copy, Debug)]
enum ContentChange {
    Write { offset: u64, len: u64 },
    Resize { len: u64 },
}

#[derive(Clone, Debug)]
enum NameChange {
    Add { path: RelPath, node: Node },
    Remove { path: RelPath },
    Rename { from: RelPath, to: RelPath },
}

/// SplitMix64 (Steele, Lea, Flood 2014): a seeded generator without a dependency, good enough to pick subsets.
struct Coin(u64);

impl Coin {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn toss(&mut self) -> bool {
        self.next().is_multiple_of(2)
    }
}

impl Default for World {
    fn default() -> Self {
        Self {
            inodes: BTreeMap::from([(JOURNAL_INODE, Inode::default())]),
            next_inode: JOURNAL_INODE + 1,
            names: Names::new(),
            durable_names: Names::new(),
            pending: Vec::new(),
        }
    }
}

impl World {
    pub(super) fn lookup(&self, path: &RelPath) -> Option<Node> {
        if path.is_root() {
            return Some(Node::Folder);
        }
        self.names.get(path).copied()
    }

    pub(super) fn children(&self, folder: &RelPath) -> impl Iterator<Item = (Vec<u8>, Node)> {
        let folder = folder.clone();
        self.names.iter().filter_map(move |(path, node)| {
            let (parent, name) = path.split()?;
            (parent == folder).then(|| (name.to_vec(), *node))
        })
    }

    pub(super) fn create_file(&mut self, path: &RelPath) -> io::Result<u64> {
        let inode = self.next_inode;
        self.add(path, Node::File(inode))?;
        self.next_inode += 1;
        self.inodes.insert(inode, Inode::default());
        Ok(inode)
    }

    pub(super) fn create_folder(&mut self, path: &RelPath) -> io::Result<()> {
        self.add(path, Node::Folder)
    }

    fn add(&mut self, path: &RelPath, node: Node) -> io::Result<()> {
        if self.lookup(&path.parent()) != Some(Node::Folder) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if self.lookup(path).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.names.insert(path.clone(), node);
        self.pending.push(NameChange::Add {
            path: path.clone(),
            node,
        });
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &RelPath, to: &RelPath) -> io::Result<()> {
        if self.lookup(from).is_none() || self.lookup(&to.parent()) != Some(Node::Folder) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if self.lookup(to).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        move_names(&mut self.names, from, to);
        self.pending.push(NameChange::Rename {
            from: from.clone(),
            to: to.clone(),
        });
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &RelPath) {
        if self.lookup(path).is_none() {
            return;
        }
        remove_names(&mut self.names, path);
        self.pending.push(NameChange::Remove { path: path.clone() });
    }

    pub(super) fn sync_folder(&mut self, folder: &RelPath) {
        let (covered, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending)
            .into_iter()
            // Names stand for folders here: an earlier folder of this name has to be gone before this one has names.
            .partition(|change| change.touches(folder) || change.removes_folder(folder));
        self.pending = rest;
        for change in covered {
            self.apply_durably(change);
        }
    }

    /// A durable rename takes along what was still pending under the old name: the names moved with their folder.
    fn apply_durably(&mut self, change: NameChange) {
        if let NameChange::Rename { from, to } = &change {
            let pending = std::mem::take(&mut self.pending);
            for earlier in pending {
                match earlier {
                    NameChange::Add { path, node } if &path == from => {
                        self.durable_names.insert(path, node);
                    }
                    NameChange::Add { path, node } if path.is_below(from) => {
                        self.pending.push(NameChange::Add {
                            path: moved(&path, from, to),
                            node,
                        });
                    }
                    other => self.pending.push(other),
                }
            }
        }
        apply(&mut self.durable_names, &change);
    }

    pub(super) fn sync_tree(&mut self, folder: &RelPath) -> io::Result<()> {
        let folders: Vec<RelPath> = self
            .names
            .iter()
            .filter(|(path, node)| path.is_below(folder) && **node == Node::Folder)
            .map(|(path, _)| path.clone())
            .collect();
        self.sync_folder(folder);
        for inner in folders {
            self.sync_folder(&inner);
        }
        let files: Vec<u64> = self
            .names
            .iter()
            .filter(|(path, _)| path.is_below(folder))
            .filter_map(|(_, node)| match node {
                Node::File(inode) => Some(*inode),
                Node::Folder => None,
            })
            .collect();
        files.into_iter().try_for_each(|inode| self.sync(inode))
    }

    /// Forgets files that have no name any more, neither now nor after a power cut, unless they are `open`.
    pub(super) fn forget_nameless(&mut self, open: impl Fn(u64) -> bool) {
        let nodes = self.names.values().chain(self.durable_names.values());
        let adding = self.pending.iter().filter_map(|change| match change {
            NameChange::Add { node, .. } => Some(node),
            NameChange::Remove { .. } | NameChange::Rename { .. } => None,
        });
        let inode = |node: &Node| match node {
            Node::File(inode) => Some(*inode),
            Node::Folder => None,
        };
        let named: BTreeSet<u64> = nodes.chain(adding).filter_map(inode).collect();
        self.inodes
            .retain(|inode, _| *inode == JOURNAL_INODE || named.contains(inode) || open(*inode));
    }

    #[cfg(test)]
    pub(super) fn files_kept(&self) -> usize {
        self.inodes.len() - 1
    }

    fn inode(&self, inode: u64) -> io::Result<&Inode> {
        self.inodes
            .get(&inode)
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    fn inode_mut(&mut self, inode: u64) -> io::Result<&mut Inode> {
        self.inodes
            .get_mut(&inode)
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    pub(super) fn size(&self, inode: u64) -> io::Result<u64> {
        Ok(self.inode(inode)?.content.len() as u64)
    }

    pub(super) fn used_bytes(&self) -> u64 {
        let named = self.names.values().filter_map(|node| match node {
            Node::File(inode) => Some(*inode),
            Node::Folder => None,
        });
        named
            .chain([JOURNAL_INODE])
            .filter_map(|inode| self.size(inode).ok())
            .sum()
    }

    pub(super) fn read(&self, inode: u64, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let content = &self.inode(inode)?.content;
        let start = index(offset)?;
        let found = start
            .checked_add(out.len())
            .and_then(|end| content.get(start..end))
            .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        out.copy_from_slice(found);
        Ok(())
    }

    pub(super) fn write(&mut self, inode: u64, offset: u64, data: &[u8]) -> io::Result<()> {
        let start = index(offset)?;
        let inode = self.inode_mut(inode)?;
        let end = start + data.len();
        if inode.content.len() < end {
            inode.content.resize(end, 0);
        }
        inode.content[start..end].copy_from_slice(data);
        inode.pending.push(ContentChange::Write {
            offset,
            len: data.len() as u64,
        });
        Ok(())
    }

    pub(super) fn set_len(&mut self, inode: u64, len: u64) -> io::Result<()> {
        let inode = self.inode_mut(inode)?;
        inode.content.resize(index(len)?, 0);
        inode.pending.push(ContentChange::Resize { len });
        Ok(())
    }

    pub(super) fn sync(&mut self, inode: u64) -> io::Result<()> {
        let inode = self.inode_mut(inode)?;
        for change in std::mem::take(&mut inode.pending) {
            if let ContentChange::Write { offset, len } = change {
                copy_range(&inode.content, &mut inode.durable, offset, offset + len);
            }
        }
        inode.durable.resize(inode.content.len(), 0);
        Ok(())
    }

    /// The world that is found after a power cut.
    pub(super) fn after_crash(&self, seed: u64) -> Self {
        let mut coin = Coin(seed);
        let mut names = self.durable_names.clone();
        for change in &self.pending {
            if coin.toss() {
                apply(&mut names, change);
            }
        }
        names = reachable(&names);
        let mut inodes = BTreeMap::new();
        for (number, inode) in &self.inodes {
            let durable = inode.after_crash(&mut coin);
            inodes.insert(
                *number,
                Inode {
                    content: durable.clone(),
                    durable,
                    pending: Vec::new(),
                },
            );
        }
        let mut found = Self {
            inodes,
            next_inode: self.next_inode,
            durable_names: names.clone(),
            names,
            pending: Vec::new(),
        };
        found.forget_nameless(|_| false);
        found
    }
}

impl Inode {
    fn after_crash(&self, coin: &mut Coin) -> Vec<u8> {
        let mut durable = self.durable.clone();
        for change in &self.pending {
            match *change {
                ContentChange::Resize { len } => {
                    if coin.toss() {
                        durable.resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
                    }
                }
                ContentChange::Write { offset, len } => {
                    let whole = coin.toss();
                    let torn = !whole && coin.toss();
                    for sector in sectors(offset, len) {
                        if whole || (torn && coin.toss()) {
                            copy_range(&self.content, &mut durable, sector.0, sector.1);
                        }
                    }
                }
            }
        }
        durable
    }
}

impl NameChange {
    fn removes_folder(&self, folder: &RelPath) -> bool {
        match self {
            Self::Remove { path } => path == folder || folder.is_below(path),
            Self::Add { .. } | Self::Rename { .. } => false,
        }
    }

    fn touches(&self, folder: &RelPath) -> bool {
        match self {
            Self::Add { path, .. } | Self::Remove { path } => path.parent() == *folder,
            // Only the new folder's sync is sure to cover a rename (rename(2), fsync(2)).
            Self::Rename { to, .. } => to.parent() == *folder,
        }
    }
}

fn apply(names: &mut Names, change: &NameChange) {
    match change {
        NameChange::Add { path, node } => {
            names.insert(path.clone(), *node);
        }
        NameChange::Remove { path } => remove_names(names, path),
        NameChange::Rename { from, to } => move_names(names, from, to),
    }
}

fn move_names(names: &mut Names, from: &RelPath, to: &RelPath) {
    let found: Vec<RelPath> = names
        .keys()
        .filter(|path| *path == from || path.is_below(from))
        .cloned()
        .collect();
    for path in found {
        if let Some(node) = names.remove(&path) {
            names.insert(moved(&path, from, to), node);
        }
    }
}

fn remove_names(names: &mut Names, gone: &RelPath) {
    names.retain(|path, _| path != gone && !path.is_below(gone));
}

fn moved(path: &RelPath, from: &RelPath, to: &RelPath) -> RelPath {
    let below = &path.as_bytes()[from.as_bytes().len()..];
    let bytes = [to.as_bytes(), below].concat();
    RelPath::parse(&bytes).unwrap_or_else(|_| to.clone())
}

/// A name whose folder was lost is lost with it.
fn reachable(names: &Names) -> Names {
    let mut found = Names::new();
    // Shorter paths first, so that a folder is decided before what it holds.
    let mut paths: Vec<_> = names.iter().collect();
    paths.sort_by_key(|(path, _)| path.as_bytes().len());
    for (path, node) in paths {
        let parent = path.parent();
        if parent.is_root() || found.get(&parent) == Some(&Node::Folder) {
            found.insert(path.clone(), *node);
        }
    }
    found
}

fn index(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn sectors(offset: u64, len: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = offset + len;
    let mut start = offset;
    std::iter::from_fn(move || {
        if start >= end {
            return None;
        }
        let next = ((start / SECTOR_BYTES + 1) * SECTOR_BYTES).min(end);
        let sector = (start, next);
        start = next;
        Some(sector)
    })
}

/// Copies what `content` has of a range; a later cut may have taken its end away.
fn copy_range(content: &[u8], durable: &mut Vec<u8>, start: u64, end: u64) {
    let clip = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(content.len());
    let (start, end) = (clip(start), clip(end));
    if start >= end {
        return;
    }
    if durable.len() < end {
        durable.resize(end, 0);
    }
    durable[start..end].copy_from_slice(&content[start..end]);
}
