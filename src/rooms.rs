//! Limits how many full images are uploaded, and how many compactions run, at once. Each holds some parts in
//! memory.
//!
//! Images and compactions wait by size, so that a small database does not wait for hours behind large ones.
//! Images wait by server too, so that a slow or dead server keeps no place from another.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Images at once, up to a size of the database in bytes. An image holds at most five parts, of 8 MiB unless
/// the URL says otherwise: 160 MiB for all images that are not small.
const IMAGES: Sizes = [(1 << 20, 16), (256 << 20, 2), (u64::MAX, 2)];
/// Compactions at once, up to a size of the input files in bytes. A compaction holds up to 32 MiB of its
/// inputs, and two parts.
const JOINS: Sizes = [(1 << 20, 1), (64 << 20, 1), (u64::MAX, 1)];
/// Most servers that are remembered without uploads.
const UNUSED_MAX: usize = 16;

type Sizes = [(u64, usize); 3];

/// Places for the images of one process, or for its compactions.
pub(crate) struct Rooms {
    sizes: Sizes,
    known: Mutex<HashMap<String, Arc<Classes>>>,
}

struct Classes([Arc<Semaphore>; 3]);

/// Place that is held during an image's upload or a compaction.
pub(crate) struct Room {
    _place: Option<OwnedSemaphorePermit>,
    _classes: Arc<Classes>,
}

impl Rooms {
    pub(crate) fn for_images() -> Rooms {
        Rooms { sizes: IMAGES, known: Mutex::default() }
    }

    pub(crate) fn for_joins() -> Rooms {
        Rooms { sizes: JOINS, known: Mutex::default() }
    }

    /// Waits for a place for an image of about `len` bytes; first come, first served.
    pub(crate) async fn enter(&self, server: &str, len: u64) -> Room {
        let classes = self.classes(server);
        let fits = self.sizes.iter().position(|(most, _)| len <= *most);
        // These semaphores are never closed.
        let place = match fits.and_then(|class| classes.0.get(class)) {
            Some(places) => places.clone().acquire_owned().await.ok(),
            None => None,
        };
        Room { _place: place, _classes: classes }
    }

    fn classes(&self, server: &str) -> Arc<Classes> {
        let mut known = self.known.lock();
        if known.len() >= UNUSED_MAX {
            known.retain(|_, classes| Arc::strong_count(classes) > 1);
        }
        let new =
            || Arc::new(Classes(self.sizes.map(|(_, places)| Arc::new(Semaphore::new(places)))));
        known.entry(server.to_string()).or_insert_with(new).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes a place if one is free at once.
    async fn try_enter(rooms: &Rooms, server: &str, len: u64) -> Option<Room> {
        tokio::select! {
            biased;
            room = rooms.enter(server, len) => Some(room),
            () = std::future::ready(()) => None,
        }
    }

    #[tokio::test]
    async fn images_wait_for_their_like_only() {
        let rooms = Rooms::for_images();
        let mut held = Vec::new();
        for (server, len, places) in
            [("a", 4 << 40, 2), ("a", 2 << 20, 2), ("a", 100, 16), ("b", 4 << 40, 2), ("", 0, 16)]
        {
            for _ in 0..places {
                held.push(try_enter(&rooms, server, len).await.expect("a place"));
            }
            assert!(try_enter(&rooms, server, len).await.is_none(), "{server} {len}");
        }
        held.remove(0);
        assert!(try_enter(&rooms, "a", 5 << 40).await.is_some());
        drop(held);
        for number in 0..100 {
            drop(try_enter(&rooms, &number.to_string(), 1).await);
        }
        assert!(rooms.known.lock().len() <= UNUSED_MAX + 1);
    }
}
