//! Mistakes that the checks must find: each is made in the model of the shell, never in the engine.

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    None,
    /// A put that failed counts as done.
    AckBeforeDurable,
    /// The state passes a file before it is in the spool.
    StateBeforeSpool,
    /// The spool forgets a file when it is sent.
    ReleaseBeforeAck,
    /// The log may get a hole.
    SkipTxid,
    /// The WAL is begun anew before it was captured, and nobody notices.
    GateOpenEarly,
    /// A file lacks a page that was changed.
    DropPage,
    /// A WAL that does not go on from the log is taken as if it did.
    ForgetDivergence,
    /// Another writer's file counts as ours.
    FenceIgnored,
    /// After a comparison the newest known wal-index is older than what was compared.
    StaleIndex,
    /// A restart that was let through and did not come counts for the next that nobody asked for.
    StaleGrant,
    /// Frames are read from the WAL without a look at its header.
    GenerationUnchecked,
    /// After a crash while pieces were joined, the joined one may be read after its parts.
    JoinedComesLater,
    /// A close that lost its place in the WAL forgets how long its commits have waited.
    LagForgotten,
    /// A close in peace vouches for the database file although a comparison is due.
    CleanWhileUnknown,
    /// TXIDs alone make the log: whether a page table fits it is not asked.
    TxidOnly,
    /// After a power loss a position in the WAL is believed without its checksum.
    UnsyncedPositionBelieved,
    /// A spool file that a power loss tore is believed by its name.
    TornSpoolBelieved,
    /// The shipper never looks for the commits of other processes.
    StandbyForgotten,
    /// The end of an upload that was given up counts for the one under way.
    LateUploadBelieved,
    /// What was seen at an attach is believed, however long ago that was.
    StaleAttachBelieved,
    /// Whoever takes over begins behind the state, without a look into the spool.
    SpoolNotRead,
    /// A comparison that began before the WAL came and went vouches for the new one.
    EpochIgnored,
    /// An image whose answer was lost is sent again without a look.
    UnsureImageForgotten,
    /// Two processes of one host ship.
    LockIgnored,
    /// A clean close vouches for any piece.
    CleanOfAnyPiece,
    /// What the spool's cap dropped is not looked for again.
    CapForgotten,
    /// At a last close, what came between the capture and the lock is forgotten.
    CloseRace,
    /// Frames are taken although the WAL has come and gone since.
    TransitionsPassed,
    /// A WAL that begins while its pin is not held yet is taken from its first frame.
    FreshUnpinned,
    /// The gate stays open from before the WAL was there.
    GateLeftOpen,
    /// A process that stands by tells its commits to an engine that is thrown away.
    StandbyLagForgotten,
    /// A spool file that is not usable stays, and its number is given out again.
    UnusableKept,
    /// A comparison that ends in an image forgets how long its commits have waited.
    LagForgottenByImage,
    /// What was committed behind a walk, in a WAL that is gone by its end, is left to the next open.
    LaterCommitsLeft,
    /// A walk reads the WAL through a file that was opened before the WAL was removed.
    StaleWalFile,
    /// That a lineage is in the log is not synced: a loss of power makes it a new one.
    ClaimNotSynced,
    /// What others did to the WAL while its pin was dropped for a close is not looked at.
    UnpinnedBelieved,
    /// A lineage that goes on for one whose files the disk forgot takes the log from anybody.
    TwinTakesAny,
    /// The cap drops what is just being closed, and the close says that there was nothing.
    CapWhileClosing,
}

/// Those that are found, each with a history that shows it: the place to look first.
pub const FOUND: [(Bug, u64); 31] = [
    (Bug::AckBeforeDurable, 0),
    (Bug::StateBeforeSpool, 0),
    (Bug::ReleaseBeforeAck, 0),
    (Bug::SkipTxid, 0),
    (Bug::GateOpenEarly, 1),
    (Bug::DropPage, 1),
    (Bug::ForgetDivergence, 0),
    (Bug::FenceIgnored, 0),
    (Bug::GenerationUnchecked, 2506),
    (Bug::LagForgotten, 165),
    (Bug::CleanWhileUnknown, 82),
    (Bug::TxidOnly, 0),
    (Bug::UnsyncedPositionBelieved, 2861),
    (Bug::TornSpoolBelieved, 1),
    (Bug::StandbyForgotten, 2043),
    (Bug::SpoolNotRead, 1),
    (Bug::EpochIgnored, 302),
    (Bug::UnsureImageForgotten, 30),
    (Bug::LockIgnored, 0),
    (Bug::CleanOfAnyPiece, 1745),
    (Bug::CapForgotten, 67),
    (Bug::CloseRace, 44),
    (Bug::TransitionsPassed, 2492),
    (Bug::FreshUnpinned, 180),
    (Bug::StandbyLagForgotten, 4),
    (Bug::UnusableKept, 1),
    (Bug::LagForgottenByImage, 116),
    (Bug::LaterCommitsLeft, 30),
    (Bug::StaleWalFile, 30),
    (Bug::CapWhileClosing, 2),
    (Bug::TwinTakesAny, 543),
];

/// Those for which no history is known yet that shows them; `WALFERRY_BUG=name` looks for one.
pub const SOUGHT: [Bug; 8] = [
    Bug::LateUploadBelieved,
    Bug::StaleGrant,
    Bug::StaleIndex,
    Bug::GateLeftOpen,
    Bug::UnpinnedBelieved,
    Bug::JoinedComesLater,
    Bug::StaleAttachBelieved,
    Bug::ClaimNotSynced,
];
