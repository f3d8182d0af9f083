//! Checks of an upload's parts for all backends: an upload with a gap or a short part is refused before its
//! file is visible.

use std::collections::BTreeMap;

use super::{Error, ErrorKind, Key};

/// Parts of an upload that were sent so far: number and length in bytes.
#[derive(Debug)]
pub(super) struct Parts {
    key: Key,
    part_len: usize,
    lengths: BTreeMap<u32, usize>,
}

impl Parts {
    /// Returns a set without parts. `part_len` is the length in bytes of every part but the last.
    pub(super) fn new(key: Key, part_len: usize) -> Parts {
        Parts { key, part_len, lengths: BTreeMap::new() }
    }

    /// Records a part that is about to be sent.
    pub(super) fn add(&mut self, number: u32, len: usize) -> Result<(), Error> {
        if len > self.part_len {
            return Err(self.refuse(&format!(
                "part {number} has {len} bytes, more than the part length {}",
                self.part_len
            )));
        }
        if self.lengths.contains_key(&number) {
            return Err(self.refuse(&format!("part {number} was sent twice")));
        }
        self.lengths.insert(number, len);
        Ok(())
    }

    /// Returns the number of parts that were sent.
    pub(super) fn count(&self) -> usize {
        self.lengths.len()
    }

    /// Returns an error if the parts do not make a whole file.
    pub(super) fn check(&self) -> Result<(), Error> {
        let last = self.lengths.len().saturating_sub(1);
        for (expected, (&number, &len)) in self.lengths.iter().enumerate() {
            if number as usize != expected {
                return Err(self.refuse(&format!("part {expected} was never sent")));
            }
            if expected < last && len != self.part_len {
                return Err(self.refuse(&format!(
                    "part {number} has {len} bytes, but only the last may be shorter than {}",
                    self.part_len
                )));
            }
        }
        Ok(())
    }

    fn refuse(&self, why: &str) -> Error {
        Error::new(ErrorKind::Invalid, format!("the upload of {} is not whole: {why}", self.key))
    }
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use super::*;
    use crate::ltx::FileName;
    use crate::units::{Level, Txid};

    fn check(sent: &[(u32, usize)]) -> Result<(), String> {
        let key = Key { level: Level::L0, name: FileName::single(Txid(1)) };
        let mut parts = Parts::new(key, 10);
        sent.iter()
            .try_for_each(|&(number, len)| parts.add(number, len))
            .and_then(|()| parts.check())
            .map_err(|err| err.message)
    }

    #[test]
    fn parts_make_a_whole_file_or_are_refused() {
        for whole in
            [&[][..], &[(0, 10)], &[(0, 3)], &[(1, 4), (0, 10)], &[(2, 10), (0, 10), (1, 10)]]
        {
            assert_eq!(check(whole), Ok(()), "{whole:?}");
        }
        for (broken, word) in [
            (&[(1, 10)][..], "part 0 was never sent"),
            (&[(0, 10), (2, 1)], "part 1 was never sent"),
            (&[(0, 9), (1, 1)], "only the last"),
            (&[(0, 11)], "more than the part length"),
            (&[(0, 10), (0, 10)], "sent twice"),
        ] {
            let message = check(broken).expect_err("a broken upload passed");
            assert!(message.contains(word), "{broken:?}: {message}");
        }
    }
}
