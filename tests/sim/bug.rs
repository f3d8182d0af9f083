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
    /// An image whose answer was lost counts as sent.
    UnsureImageBelieved,
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
    /// A lineage that goes on for one whose files the disk forgot takes the log from anybody.
    TwinTakesAny,
    /// A join leaves one of its files out.
    InputSkipped,
    /// The first file of a lineage is removed like any other.
    LineageStartRemoved,
    /// Level 0 is removed by its age, whether it was joined or not.
    UncoveredRemoved,
    /// Everything before the newest snapshot is removed, however young.
    YoungRemoved,
    /// The cap drops what is just being closed, and the close says that there was nothing.
    CapWhileClosing,
    /// A file that stays although those behind it are gone, as that of a lineage's beginning, is taken
    /// for the log's end.
    BeginningTakenForEnd,
    /// At an attach the database file is looked at before the wal-index is read.
    FingerprintFirst,
    /// A cleanly closed database: whatever generation comes begins at frame 1.
    FirstGenerationBelieved,
    /// A restart that was let through covers any later generation.
    StaleRestart,
    /// A position in the same generation is believed without a look at its frame.
    PositionBelieved,
    /// A guard is believed although it was dropped meanwhile.
    DroppedGuardBelieved,
    /// Counts are compared as if recovery did not set the count of commits to 0.
    RecoveryForgotten,
    /// Copies of a commit's last frame, up to a sector boundary, are counted as commits.
    CopiesCounted,
    /// While it is not known where capture stands, all counts as captured.
    UnknownIsCaptured,
    /// While index and file do not fit together, all counts as captured.
    UnclearIsCaptured,
    /// A walk whose look at the wal-index failed reads the file alone.
    UnseenIndex,
    /// A place in the WAL, without its checksum and count, is where capture stands.
    PlaceBelieved,
    /// A wal-index that is as it was at the last look proves that the WAL is.
    EqualIndexBelieved,
    /// The log was found to be ours, and this is not remembered.
    ClaimNotNoted,
    /// A log is taken over before the disk knows from whom.
    ClaimNotAnnounced,
    /// Frames that end with one without a checksum are taken for those that the wal-index had named.
    UnmarkedBelieved,
    /// A walk is right if the WAL has the same salts at its end.
    WalkUnproven,
    /// While index and file do not fit together, commits wait anew with each look.
    UnclearLagForgotten,
    /// Commits count as captured before the file with them is written, and still do when it cannot be.
    CapturedBeforeWritten,
    /// After a power loss the state is believed to be the log's end, though the store has more.
    LogEndNotLookedAt,
}

/// Mistakes that fewer than one history in 10,000 shows: they are looked for only by their names, first at
/// the history that showed them last.
pub const RARE: [(Bug, u64); 9] = [
    (Bug::EqualIndexBelieved, 120_319),
    (Bug::ClaimNotNoted, 127_647),
    (Bug::StaleWalFile, 0),
    (Bug::ClaimNotAnnounced, 143_439),
    (Bug::UnmarkedBelieved, 93_768),
    (Bug::WalkUnproven, 32_431),
    (Bug::CapturedBeforeWritten, 0),
    (Bug::BeginningTakenForEnd, 0),
    (Bug::LogEndNotLookedAt, 57_995),
];

/// The others, each with a history that shows it: the place to look first.
pub const ALL: [(Bug, u64); 49] = [
    (Bug::AckBeforeDurable, 0),
    (Bug::StateBeforeSpool, 1),
    (Bug::ReleaseBeforeAck, 0),
    (Bug::SkipTxid, 0),
    (Bug::GateOpenEarly, 14),
    (Bug::DropPage, 1),
    (Bug::ForgetDivergence, 0),
    (Bug::FenceIgnored, 0),
    (Bug::GenerationUnchecked, 1913),
    (Bug::LagForgotten, 30),
    (Bug::CleanWhileUnknown, 299),
    (Bug::TxidOnly, 17),
    (Bug::TornSpoolBelieved, 38),
    (Bug::StandbyForgotten, 2407),
    (Bug::SpoolNotRead, 1),
    (Bug::EpochIgnored, 1593),
    (Bug::UnsureImageBelieved, 12),
    (Bug::LockIgnored, 0),
    (Bug::CleanOfAnyPiece, 1964),
    (Bug::CapForgotten, 0),
    (Bug::CloseRace, 63),
    (Bug::TransitionsPassed, 2338),
    (Bug::StandbyLagForgotten, 13),
    (Bug::UnusableKept, 26),
    (Bug::LagForgottenByImage, 652),
    (Bug::LaterCommitsLeft, 48),
    (Bug::CapWhileClosing, 115),
    (Bug::TwinTakesAny, 30),
    (Bug::LateUploadBelieved, 67),
    (Bug::GateLeftOpen, 12),
    (Bug::JoinedComesLater, 2441),
    (Bug::StaleAttachBelieved, 1),
    (Bug::ClaimNotSynced, 162),
    (Bug::InputSkipped, 16),
    (Bug::LineageStartRemoved, 1266),
    (Bug::UncoveredRemoved, 6),
    (Bug::YoungRemoved, 5),
    (Bug::FingerprintFirst, 151),
    (Bug::FirstGenerationBelieved, 120),
    (Bug::StaleRestart, 141),
    (Bug::PositionBelieved, 907),
    (Bug::DroppedGuardBelieved, 6868),
    (Bug::RecoveryForgotten, 4463),
    (Bug::CopiesCounted, 4601),
    (Bug::UnknownIsCaptured, 5),
    (Bug::UnclearIsCaptured, 10),
    (Bug::UnseenIndex, 1432),
    (Bug::PlaceBelieved, 8563),
    (Bug::UnclearLagForgotten, 803),
];
