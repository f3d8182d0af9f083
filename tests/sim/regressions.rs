//! Histories that once broke a promise. What a seed leads to changes with the simulation; the story
//! is what each is kept for.

use crate::bug::Bug;
use crate::runner::verdict;

fn holds(seed: u64) {
    verdict(seed, Bug::None).0.unwrap_or_else(|why| panic!("seed {seed}: {why}"));
}

/// A walk over the database read the WAL through a file that was opened before the last close.
#[test]
fn a_walk_opens_the_wal_anew() {
    holds(639);
    holds(1214);
}

/// A loss of power took the memory of newer files: the host found an old file of its own at its next
/// TXID, began behind the head, which was another's, and took the log from it.
#[test]
fn a_fence_outlives_the_memory_of_it() {
    [315, 2226, 2436, 2550, 4707].into_iter().for_each(holds);
}

/// A host took the log over while its disk was full, which then kept no note of that. It was fenced, and
/// its next start took the log once more.
#[test]
fn a_claim_is_on_the_disk_before_it_is_in_the_log() {
    holds(143_439);
}

/// Others committed between the capture of a closing process and its exclusive lock.
#[test]
fn a_last_close_captures_what_came_before_its_lock() {
    [44, 131, 335, 10_282].into_iter().for_each(holds);
}

/// The WAL was begun anew twice while a pending capture knew only its position in the old one.
#[test]
fn frames_are_proven_after_they_are_read() {
    holds(2506);
}

/// What was committed during an image was in no WAL any more when the image was done.
#[test]
fn commits_during_an_image_outlive_the_wal() {
    holds(108);
    holds(171);
}

/// The cap of the spool dropped what a comparison had just found, and the wait for it ended.
#[test]
fn the_cap_spares_what_is_being_closed() {
    [2, 67, 136, 200, 259].into_iter().for_each(holds);
}

/// A loss of power took a commit from the database and from the local state, and the next one, which a
/// comparison took in, wrote a page as it was: nothing was left to be sent, and no lag to be shown.
#[test]
fn a_commit_that_changes_nothing_shows_no_lag_behind_a_lost_one() {
    holds(97_392);
}

/// A process that stood by took over, and its lag began with that.
#[test]
fn the_lag_of_a_standby_begins_with_its_commits() {
    [3, 10, 11, 14].into_iter().for_each(holds);
}

/// A comparison found pages of another size, and forgot since when its commits had waited.
#[test]
fn the_lag_outlives_a_change_of_the_page_size() {
    holds(218);
    holds(273);
}

/// A loss of power made a host go on as another lineage, and that took the log from its new owner.
#[test]
fn a_lineage_that_goes_on_takes_the_log_from_nobody_else() {
    [84, 110, 543, 648, 2537].into_iter().for_each(holds);
}

/// An image that had arrived was of no use, and the host that asked for another forgot that the log
/// was its own: it took it from who had fenced it.
#[test]
fn an_image_that_arrived_claims_the_log() {
    [2859, 36_456, 58_131, 85_692].into_iter().for_each(holds);
}

/// The file was replaced by what the local state remembered, after a loss of power had taken newer
/// files from its memory.
#[test]
fn a_copy_that_the_state_remembers_is_stored() {
    [39_870, 60_043].into_iter().for_each(holds);
}

/// A process that took over held a WAL that it had seen long ago against the log.
#[test]
fn who_takes_over_looks_at_the_wal_anew() {
    [33, 529, 917, 1493].into_iter().for_each(holds);
}

/// While somebody tried to have the file alone, a WAL came, was checkpointed and begun anew: where
/// there had been none, the capture took the second for the first.
#[test]
fn a_wal_that_came_and_went_unpinned_is_compared() {
    holds(14_849);
}

/// A host went on as a new lineage, and a file of its former one, found in the spool after a loss of
/// power, made it believe that the new one was in the log: it stopped at its own former files.
#[test]
fn a_new_lineage_leaves_the_files_of_its_former_one() {
    holds(68_039);
}

/// A host whose disk forgot much found its next TXID free, since that file was joined and removed
/// since, and wrote into the past of the log.
#[test]
fn nobody_writes_into_the_past_of_the_log() {
    [585, 625, 5496, 10_485, 75_496, 119_525].into_iter().for_each(holds);
}

/// The same, where the file before it had outlasted those behind it: another writer removes what is not
/// needed, and keeps each file of which it cannot tell whether it begins a lineage.
#[test]
fn a_file_that_outlasts_those_behind_it_is_not_the_end_of_the_log() {
    holds(107_685);
}

/// A look before the first put took the host's own file, whose answer was lost, for a log that had
/// gone on without it, and an image was sent.
#[test]
fn a_file_that_was_not_heard_of_is_no_other_log() {
    [116, 131, 154, 259].into_iter().for_each(holds);
}

/// The same, where several files had arrived unheard and the one before them was within an image.
#[test]
fn several_files_that_were_not_heard_of_are_no_other_log() {
    [48_131, 55_169, 61_873, 83_590].into_iter().for_each(holds);
}

/// The power was lost, and database and local state went back to what the store had before its newest file.
/// A wait in that state was over at once.
#[test]
fn who_waits_behind_a_power_loss_has_the_log_looked_at() {
    [57_995, 152_840, 179_403, 191_646].into_iter().for_each(holds);
}

/// A writer died between its frames and the wal-index, and the WAL was restarted. A commit that looked like a
/// copy made up for the transaction that was none.
#[test]
fn transaction_of_a_writer_that_died_is_not_counted() {
    holds(17_051);
}

/// A writer died while a walk read the WAL, and recovery cut off frames without checksums that the walk had
/// seen: others came in their place, but the last of them was still the one that the walk knew.
#[test]
fn a_walk_ends_with_a_recovery() {
    holds(32_431);
}

/// A writer died in the middle of the wal-index, and another after it: behind the captured position were frames
/// of the second, in places of frames without checksums that the recovery in between had cut off.
#[test]
fn frames_without_checksums_are_not_taken_while_the_wal_index_is_torn() {
    [229_362, 242_615].into_iter().for_each(holds);
}

/// A full disk could not note that an image had arrived, nor the file behind it: the next process asked for
/// the image, and gave its own next file a number that was taken.
#[test]
fn an_image_that_a_full_disk_did_not_note_may_cost_another() {
    holds(66_281);
}
