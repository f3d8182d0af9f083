//! What can be found when database, WAL, spool, local state and replica do not fit together, and
//! what is done about each: the whole list, so that nothing is ever missed silently.

use std::fmt;

/// How a finding is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The database is compared with the page table, and what differs is sent.
    Compare,
    /// There is nothing to compare with: a full image is sent as the next TXID.
    Image,
    /// Nothing can be done for the connections that are open: they must be opened anew.
    Reopen,
}

macro_rules! findings {
    ($($(#[$doc:meta])* $variant:ident $name:literal $answer:ident $text:literal;)*) => {
        /// Something that does not fit.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Finding { $($(#[$doc])* $variant,)* }

        impl Finding {
            /// All of them.
            pub const ALL: &'static [Finding] = &[$(Finding::$variant,)*];

            /// A short name, for status and documents.
            pub fn name(self) -> &'static str {
                match self { $(Finding::$variant => $name,)* }
            }

            /// What is done about it.
            pub fn answer(self) -> Answer {
                match self { $(Finding::$variant => Answer::$answer,)* }
            }

            /// The one of this name.
            pub fn named(name: &str) -> Option<Finding> {
                Finding::ALL.iter().copied().find(|found| found.name() == name)
            }

            fn text(self) -> &'static str {
                match self { $(Finding::$variant => $text,)* }
            }
        }
    };
}

findings! {
    /// No local state: a new database, or its folder was deleted.
    NoState "no-state" Image "there is no local state for it";
    /// The state file does not stand up to its checksum.
    StateDamaged "state-damaged" Image "its state file is damaged";
    /// The state belongs to another replica URL.
    OtherReplica "other-replica" Image "its local state belongs to another replica";
    /// The folder was deleted under a running process.
    StateDeleted "state-deleted" Image "its state folder was deleted while it was in use";
    /// The sum over the page table is not the log's checksum, as after a power loss.
    TableDisproved "table-disproved" Image "its page table does not add up to the log's checksum";
    /// VACUUM in another journal mode, or another database.
    PageSizeChanged "page-size-changed" Image "its page size changed";
    /// A file in the spool cannot be used, nor those behind it.
    SpoolDamaged "spool-damaged" Compare "a file in its spool is damaged or missing";
    /// A file in the spool was lost while it waited there.
    SpoolUnreadable "spool-unreadable" Image
        "a file in its spool was damaged, removed or cannot be read any more";
    /// More waits than the spool may take, or than the disk has room for.
    SpoolFull "spool-full" Compare
        "its spool reached its cap or the disk was full, and the spool was dropped";
    /// Written by somebody while no process of ours had it.
    ChangedWhileClosed "changed-while-closed" Compare "the file changed while it was closed";
    /// Written past SQLite while the sidecar alone had it open, as by `cp`.
    ChangedWhileIdle "changed-while-idle" Compare
        "the file was written by another way than its WAL while no program had it open";
    /// The local disk has failed for so long that the WAL was let go.
    CaptureFails "capture-fails" Compare
        "its state folder cannot be written, so that its WAL was let go";
    /// It was opened, and no connection has its wal-index mapped.
    WalUnseen "wal-unseen" Compare "its WAL cannot be seen";
    /// Checkpointed and removed by somebody else.
    WalGone "wal-gone" Compare "its WAL is gone, and nobody of ours saw it go";
    /// A log that ends without a WAL, and now there is one.
    UnknownWal "unknown-wal" Compare "it has a WAL of which the log knows nothing";
    /// Another generation than the log's last.
    WalRestarted "wal-restarted" Compare "its WAL was begun anew while nobody of ours watched";
    /// Frames that were shipped are not on the disk.
    WalCutShort "wal-cut-short" Compare "its WAL ends before the log does, as after a power loss";
    /// The same generation, with other frames than those captured.
    OtherFrames "other-frames" Compare "its WAL has other frames than those in the log";
    /// No descriptor, or a read error.
    WalUnreadable "wal-unreadable" Compare "its WAL cannot be read";
    /// Fewer frames than were captured, while it was open.
    WalWentBack "wal-went-back" Compare "its WAL has fewer frames than it had";
    /// Restarted past the gate, while it was open.
    WalRestartedUnseen "wal-restarted-unseen" Compare "its WAL was begun anew past the gate";
    /// Header and wal-index name two generations.
    WalOfAnother "wal-of-another" Compare "its WAL's file is of another generation than its index";
    /// Growth without frames for it: the file was written by another way.
    PagesMissing "pages-missing" Compare "it grew by pages that are not in the WAL";
    /// A commit of no pages at all.
    EmptyCommit "empty-commit" Compare "its WAL commits an empty database";
    /// By a connection that has it to itself, when capture could not keep up.
    RestartedExclusively "restarted-exclusively" Compare
        "its WAL was begun anew under an exclusive lock before all of it was captured";
    /// A page, or the size, is not as it was captured, though nothing else does not fit.
    AuditDiffers "audit-differs" Compare
        "the audit found pages that differ from what was captured of them";
    /// By the connection that loaded the extension, whose WAL is not seen.
    HeldExclusively "held-exclusively" Compare
        "the connection that loaded walferry has it to itself";
    /// Deleted, renamed or replaced.
    FileReplaced "file-replaced" Reopen
        "the file was deleted or replaced while it was open; open it again";
}

impl Finding {
    /// Tells whether the next start comes to it by itself, if this process ends before it is answered.
    ///
    /// The answer is yes for all that WAL, spool, state and file tell. Until it is answered nothing is captured,
    /// and no close of the database counts as clean, so that what is proven of the WAL ends where it did not fit.
    /// Of the others there need be no trace: pages were written past the WAL, or the page table is not the
    /// database's though its sum is the log's.
    pub fn is_found_again(self) -> bool {
        !matches!(self, Finding::AuditDiffers | Finding::TableDisproved)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())?;
        f.write_str(match self.answer() {
            Answer::Compare => ": comparing it with the page table; what differs is sent",
            Answer::Image => ": sending a full image",
            Answer::Reopen => "",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_known_by_its_name() {
        for found in Finding::ALL {
            assert_eq!(Finding::named(found.name()), Some(*found));
        }
        assert_eq!(Finding::named("of-another-version"), None);
    }
}
