//! Complete list of the findings that database, WAL, spool, local state and replica do not fit together, with
//! walferry's answer to each. The list is complete so that no finding is ever missed silently.

use std::fmt;

/// Answer to a finding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The database is compared with the page table, and the differing pages are sent.
    Compare,
    /// There is nothing to compare with, so a full image is sent as the next TXID.
    Image,
    /// Open connections cannot be helped: the application must open the database again.
    Reopen,
}

macro_rules! findings {
    ($($(#[$doc:meta])* $variant:ident $name:literal $answer:ident $text:literal;)*) => {
        /// Something that does not fit together.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Finding { $($(#[$doc])* $variant,)* }

        impl Finding {
            /// All findings.
            pub const ALL: &'static [Finding] = &[$(Finding::$variant,)*];

            /// Returns a short name, for status and documents.
            pub fn name(self) -> &'static str {
                match self { $(Finding::$variant => $name,)* }
            }

            /// Returns the answer to the finding.
            pub fn answer(self) -> Answer {
                match self { $(Finding::$variant => Answer::$answer,)* }
            }

            /// Returns the finding of this name.
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
    /// No local state: the database is new, or its state folder was deleted.
    NoState "no-state" Image "there is no local state for it";
    /// The checksum of the state file is wrong.
    StateDamaged "state-damaged" Image "its state file is damaged";
    /// The local state belongs to another replica URL.
    OtherReplica "other-replica" Image "its local state belongs to another replica";
    /// The state folder was deleted while a process used it.
    StateDeleted "state-deleted" Image "its state folder was deleted while it was in use";
    /// The sum over the page table differs from the log's checksum, as after a power loss.
    TableDisproved "table-disproved" Image "its page table does not add up to the log's checksum";
    /// VACUUM ran in another journal mode, or the file is another database.
    PageSizeChanged "page-size-changed" Image "its page size changed";
    /// A file in the spool, and with it every later one, cannot be used.
    SpoolDamaged "spool-damaged" Compare "a file in its spool is damaged or missing";
    /// A file was lost while it waited in the spool.
    SpoolUnreadable "spool-unreadable" Image
        "a file in its spool was damaged, removed or cannot be read any more";
    /// The waiting files exceed the spool's cap or the room on the disk.
    SpoolFull "spool-full" Compare
        "its spool reached its cap or the disk was full, and the spool was dropped";
    /// Another program wrote the database while no process with walferry had it open.
    ChangedWhileClosed "changed-while-closed" Compare "the file changed while it was closed";
    /// A program such as `cp` wrote the file past SQLite while only the sidecar had it open.
    ChangedWhileIdle "changed-while-idle" Compare
        "the file was written by another way than its WAL while no program had it open";
    /// The local disk failed for so long that the WAL was let go.
    CaptureFails "capture-fails" Compare
        "its state folder cannot be written, so that its WAL was let go";
    /// The database was opened, but no connection has its wal-index mapped.
    WalUnseen "wal-unseen" Compare "its WAL cannot be seen";
    /// Another process checkpointed and removed the WAL.
    WalGone "wal-gone" Compare "its WAL is gone, and nobody of ours saw it go";
    /// The log ends without a WAL, and the database has one now.
    UnknownWal "unknown-wal" Compare "it has a WAL of which the log knows nothing";
    /// The WAL is of another generation than the log's last position.
    WalRestarted "wal-restarted" Compare "its WAL was begun anew while nobody of ours watched";
    /// Frames that were shipped are missing from the WAL on the disk.
    WalCutShort "wal-cut-short" Compare "its WAL ends before the log does, as after a power loss";
    /// The WAL is of the same generation but has other frames than those captured.
    OtherFrames "other-frames" Compare "its WAL has other frames than those in the log";
    /// No descriptor was left, or the WAL could not be read.
    WalUnreadable "wal-unreadable" Compare "its WAL cannot be read";
    /// The open WAL has fewer frames than were captured.
    WalWentBack "wal-went-back" Compare "its WAL has fewer frames than it had";
    /// The open WAL was restarted past the gate.
    WalRestartedUnseen "wal-restarted-unseen" Compare "its WAL was begun anew past the gate";
    /// The header of the WAL and the wal-index name different generations.
    WalOfAnother "wal-of-another" Compare "its WAL's file is of another generation than its index";
    /// The database grew by pages without frames: another program wrote the file past the WAL.
    PagesMissing "pages-missing" Compare "it grew by pages that are not in the WAL";
    /// A commit sets the size of the database to no pages.
    EmptyCommit "empty-commit" Compare "its WAL commits an empty database";
    /// A connection with exclusive use of the database restarted the WAL before capture caught up.
    RestartedExclusively "restarted-exclusively" Compare
        "its WAL was begun anew under an exclusive lock before all of it was captured";
    /// A page, or the size of the database, differs from its captured state, with no other finding.
    AuditDiffers "audit-differs" Compare
        "the audit found pages that differ from what was captured of them";
    /// The connection that loaded the extension has exclusive use of the database, and its WAL is not seen.
    HeldExclusively "held-exclusively" Compare
        "the connection that loaded walferry has it to itself";
    /// The file was deleted, renamed or replaced.
    FileReplaced "file-replaced" Reopen
        "the file was deleted or replaced while it was open; open it again";
}

impl Finding {
    /// True if the next start finds this again by itself when the process ends before the answer is complete.
    ///
    /// This holds for every finding that WAL, spool, state and file show. Until the answer is complete,
    /// nothing is captured, and no close of the database counts as clean. So the proven part of the WAL still
    /// ends where it did not fit. The other findings may leave no trace. Pages were written past the WAL, or
    /// the page table differs from the database although its sum is the log's.
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
