//! Data that a job must remember for each page, however many pages there are: little of it in memory, the
//! rest in a file without a name. Closing the file frees its room.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// Bytes of a [`Tape`] that are kept in memory.
const KEPT: usize = 256 << 10;

/// Place where files without a name are made.
#[derive(Clone)]
pub struct Place {
    path: Arc<Path>,
    create: fn(&Path) -> io::Result<File>,
}

impl Place {
    /// Makes files with `create` at this path. The files have no name afterwards.
    pub fn new(path: &Path, create: fn(&Path) -> io::Result<File>) -> Place {
        Place { path: path.into(), create }
    }

    /// Adds the path to the error.
    fn told(&self, error: &io::Error) -> io::Error {
        let path = self.path.display();
        io::Error::new(error.kind(), format!("cannot use a temporary file {path}: {error}"))
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place({})", self.path.display())
    }
}

/// Bytes of a file without a name. They do not change while the stretch lives.
#[derive(Clone, Debug)]
pub struct Stretch {
    file: Arc<File>,
    place: Place,
    offset: u64,
    /// Number of bytes.
    pub len: u64,
}

impl Stretch {
    /// Returns the end of the stretch in the file.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }

    /// Fills the buffer from byte `at` of the stretch.
    pub fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let read = self.file.read_exact_at(buffer, self.offset.saturating_add(at));
        read.map_err(|error| self.place.told(&error))
    }
}

/// A file without a name that grows at its end. It is made at the first write.
#[derive(Debug)]
pub struct Scratch {
    place: Place,
    file: Option<Arc<File>>,
    len: u64,
}

impl Scratch {
    /// Sets the place of the file, without making it.
    pub fn new(place: Place) -> Scratch {
        Scratch { place, file: None, len: 0 }
    }

    /// Writes these bytes at the end, and returns their stretch.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<Stretch> {
        let file = match &self.file {
            Some(file) => file.clone(),
            None => {
                let made = (self.place.create)(&self.place.path);
                let made = Arc::new(made.map_err(|error| self.place.told(&error))?);
                self.file.insert(made).clone()
            }
        };
        let written = file.write_all_at(bytes, self.len);
        written.map_err(|error| self.place.told(&error))?;
        let (offset, len) = (self.len, bytes.len() as u64);
        self.len = offset.saturating_add(len);
        Ok(Stretch { file, place: self.place.clone(), offset, len })
    }

    /// Forgets all bytes behind this stretch, or all bytes if the stretch is not of this file. No forgotten
    /// stretch may be in use any more.
    pub fn rewind(&mut self, last: Option<&Stretch>) {
        let of_this = |stretch: &&Stretch| {
            self.file.as_ref().is_some_and(|file| Arc::ptr_eq(file, &stretch.file))
        };
        let last = last.filter(of_this);
        self.len = last.map_or(0, Stretch::end);
    }
}

/// A clone has its own file, so the stretches of the original do not change.
impl Clone for Scratch {
    fn clone(&self) -> Scratch {
        Scratch::new(self.place.clone())
    }
}

/// Bytes that are written in sequence, and then read in that order.
#[derive(Debug, Default)]
pub struct Tape {
    memory: Vec<u8>,
    /// `None` keeps all bytes in memory.
    scratch: Option<Scratch>,
    /// The bytes in the file, as one stretch from the start.
    written: Option<Stretch>,
}

impl Tape {
    /// Makes an empty tape that keeps little in memory.
    pub fn new(place: Place) -> Tape {
        Tape { memory: Vec::new(), scratch: Some(Scratch::new(place)), written: None }
    }

    /// True if there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.memory.is_empty() && self.written.is_none()
    }

    /// Adds bytes.
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        let full = self.memory.len().saturating_add(bytes.len()) > KEPT;
        if let Some(scratch) = self.scratch.as_mut().filter(|_| full && !self.memory.is_empty()) {
            let Stretch { file, place, offset, len } = scratch.append(&self.memory)?;
            let len = offset.saturating_add(len);
            self.written = Some(Stretch { file, place, offset: 0, len });
            self.memory.clear();
        }
        let (has, needed) = (self.memory.capacity(), self.memory.len().saturating_add(bytes.len()));
        if self.scratch.is_some() && needed > has {
            // The vector's own growth would exceed [`KEPT`].
            let wanted = has.saturating_mul(2).min(KEPT).max(needed);
            self.memory.reserve_exact(wanted.saturating_sub(self.memory.len()));
        }
        self.memory.extend_from_slice(bytes);
        Ok(())
    }

    /// Reads from byte `at`. Returns the number of bytes read, 0 at the end.
    pub fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let before = self.written.as_ref().map_or(0, |written| written.len);
        if let Some(written) = self.written.as_ref().filter(|_| at < before) {
            let left = usize::try_from(before - at).unwrap_or(usize::MAX);
            let count = buffer.len().min(left);
            written.read_exact_at(buffer.get_mut(..count).unwrap_or_default(), at)?;
            return Ok(count);
        }
        let at = usize::try_from(at - before).unwrap_or(usize::MAX);
        let rest = self.memory.get(at..).unwrap_or_default();
        let count = buffer.len().min(rest.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), rest.get(..count)) {
            to.copy_from_slice(from);
        }
        Ok(count)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn create(path: &Path) -> io::Result<File> {
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        std::fs::remove_file(path)?;
        Ok(file)
    }

    #[test]
    fn a_tape_gives_what_it_was_given_and_keeps_little() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(&dir.path().join("scratch.tmp"), create);
        let all: Vec<u8> = (0..5 * KEPT as u32 + 77).map(|i| (i % 251) as u8).collect();
        for (place, few) in [(Some(place), true), (None, false)] {
            let mut tape = place.map_or_else(Tape::default, Tape::new);
            assert!(tape.is_empty());
            all.chunks(1013).for_each(|chunk| tape.push(chunk).unwrap());
            assert_eq!(tape.memory.capacity() <= KEPT, few, "{}", tape.memory.capacity());
            for _ in 0..2 {
                let (mut found, mut buffer) = (Vec::new(), vec![0; 70_001]);
                loop {
                    let count = tape.read_at(&mut buffer, found.len() as u64).unwrap();
                    found.extend_from_slice(&buffer[..count]);
                    if count == 0 {
                        break;
                    }
                }
                assert!(found == all);
            }
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it has no name");
        }
    }

    #[test]
    fn a_file_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut tape = Tape::new(Place::new(&dir.path().join("none/scratch.tmp"), create));
        tape.push(&vec![1; KEPT]).unwrap();
        let error = tape.push(&[1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("none/scratch.tmp"), "{error}");
    }
}
