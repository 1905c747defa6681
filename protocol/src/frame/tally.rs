//! How many control frames there were of each type: what a mesh costs beside payloads, counted alike on real wires and
//! in virtual time.

use super::Frame;

/// One row for each type, and the last for all others.
const ROWS: usize = Frame::TYPES.len() + 1;

/// Frames of each type, and their bytes without the length prefixes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally([(u64, u64); ROWS]);

impl Tally {
    /// Counts a frame of a type; `None` is one whose type cannot be read.
    pub fn add(&mut self, code: Option<u64>, bytes: u64) {
        let known = Frame::TYPES.iter().position(|(known, _)| Some(*known) == code);
        let (frames, sum) = &mut self.0[known.unwrap_or(ROWS - 1)];
        *frames += 1;
        *sum += bytes;
    }

    /// Adds what somebody else has counted.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            mine.0 += theirs.0;
            mine.1 += theirs.1;
        }
    }

    /// Returns how many frames there were in all.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.0.iter().map(|(frames, _)| frames).sum()
    }

    /// Returns how many bytes they had.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Returns the name, the frames and the bytes of each type.
    pub fn types(&self) -> impl Iterator<Item = (&'static str, u64, u64)> + '_ {
        let names = Frame::TYPES.iter().map(|(_, name)| *name).chain(["other"]);
        names
            .zip(&self.0)
            .map(|(name, (frames, bytes))| (name, *frames, *bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Goodbye;
    use crate::neighbors::CloseReason;

    #[test]
    fn every_frame_counts_once_and_what_is_not_known_apart() {
        let goodbye = Frame::Goodbye(Goodbye::new(CloseReason::Idle));
        let bytes = goodbye.to_bytes();
        assert_eq!(Frame::code_of(&bytes), Some(goodbye.code()));
        assert_eq!(Frame::code_of(b"\xff"), None);
        let mut tally = Tally::default();
        tally.add(Some(goodbye.code()), bytes.len() as u64);
        tally.add(Some(77), 5);
        tally.add(None, 1);
        let mut twice = tally;
        twice.merge(&tally);
        assert_eq!((twice.frames(), twice.bytes()), (6, 2 * (bytes.len() as u64 + 6)));
        let of = |name| twice.types().find(|row| row.0 == name);
        assert_eq!(of("Goodbye"), Some(("Goodbye", 2, 2 * bytes.len() as u64)));
        assert_eq!(of("other"), Some(("other", 4, 12)));
    }
}
