//! Tests of the engine's decisions, each with one scene.

use super::*;
use crate::store::ErrorKind;
use crate::units::Timestamp;

fn engine(claimed: bool, acked: u64) -> Engine {
    let options = Options { sync_interval: 1000, jitter_seed: 7 };
    let mut engine = Engine::new(options, WriterId(1));
    assert_eq!(engine.poll(0), None, "nothing before the disk was read");
    let opened = Opened {
        claimed,
        acked: Txid(acked),
        closed: Vec::new(),
        uncommitted_since_close: false,
        since: 0,
        need: Need::Nothing,
        sure: true,
    };
    engine.handle(0, Event::Opened(opened));
    engine
}

fn store_failure(kind: ErrorKind) -> Failure {
    Failure::Store { kind, message: "no".into() }
}

fn close(engine: &mut Engine, now: Millis, txid: u64) {
    assert_eq!(engine.poll(now), Some(Action::Close { txid: Txid(txid) }));
    engine.handle(now, Event::Closed(Some(Txid(txid))));
    assert_eq!(engine.poll(now), Some(Action::Put { txid: Txid(txid) }));
}

#[test]
fn an_idle_database_does_nothing_at_all() {
    let mut engine = engine(true, 5);
    assert_eq!((engine.poll(1), engine.wakeup(1)), (None, None));
    assert!(engine.is_drained());
}

#[test]
fn a_local_job_is_tried_a_few_times_before_it_is_given_up() {
    let mut engine = engine(true, 5);
    engine.handle(0, Event::Committed { at: 0 });
    engine.handle(0, Event::Hurry);
    let local = || Failure::Local { message: "the WAL is not there".into() };
    for (failure, stuck) in [(1, false), (2, false), (3, true)] {
        let now = engine.wakeup(1000 * failure).unwrap();
        assert_eq!(engine.poll(now), Some(Action::Close { txid: Txid(6) }), "{failure}");
        engine.handle(now, Event::LocalFailed(local()));
        assert_eq!(engine.is_stuck(), stuck, "{failure}");
    }
    engine.handle(5000, Event::Hurry);
    close(&mut engine, 5000, 6);
    engine.handle(5000, Event::RequestFailed(store_failure(ErrorKind::Unavailable)));
    assert!(engine.is_stuck(), "the store does not answer");
}

#[test]
fn the_first_commit_ships_at_once_and_the_next_waits_for_the_interval() {
    let mut engine = engine(true, 5);
    engine.handle(100, Event::Committed { at: 100 });
    assert!(!engine.is_drained());
    close(&mut engine, 100, 6);
    engine.handle(150, Event::PutDone { txid: Txid(6) });
    assert!(engine.is_drained());
    engine.handle(200, Event::Committed { at: 200 });
    assert_eq!(engine.poll(200), None);
    assert_eq!(engine.wakeup(200), Some(1100));
    close(&mut engine, 1100, 7);
    assert_eq!(engine.status().unacked_since, Some(200));
}

#[test]
fn what_was_told_of_and_is_no_commit_leaves_no_lag() {
    let mut engine = engine(true, 5);
    engine.handle(100, Event::Committed { at: 100 });
    close(&mut engine, 100, 6);
    assert!(!engine.has_shipped_all_closed(), "a file waits");
    engine.handle(150, Event::PutDone { txid: Txid(6) });
    engine.handle(200, Event::Committed { at: 200 });
    assert!(engine.has_shipped_all_closed() && !engine.is_drained());
    engine.handle(201, Event::FoundNothing);
    assert!(engine.is_drained());
    assert_eq!((engine.status().unacked_since, engine.wakeup(201)), (None, None));
}

#[test]
fn one_put_at_a_time_and_what_comes_meanwhile_forms_the_next_file() {
    let mut engine = engine(true, 5);
    engine.handle(0, Event::Committed { at: 0 });
    close(&mut engine, 0, 6);
    engine.handle(10, Event::Committed { at: 10 });
    assert_eq!((engine.poll(5000), engine.wakeup(5000)), (None, None));
    engine.handle(6000, Event::PutDone { txid: Txid(6) });
    close(&mut engine, 6000, 7);
}

#[test]
fn a_lost_answer_is_repeated_and_recognised() {
    let mut engine = engine(true, 5);
    engine.handle(0, Event::Committed { at: 0 });
    close(&mut engine, 0, 6);
    engine.handle(10, Event::RequestFailed(store_failure(ErrorKind::Unavailable)));
    assert_eq!(engine.status().phase, Phase::Waiting);
    let at = engine.wakeup(10).unwrap();
    assert!(at > 10);
    assert_eq!(engine.poll(at), Some(Action::Put { txid: Txid(6) }));
    engine.handle(at, Event::PutRefused { txid: Txid(6) });
    assert_eq!(engine.poll(at), Some(Action::Inspect { txid: Txid(6) }));
    assert_eq!(engine.poll(at), None, "the inspection is under way");
    engine.handle(at, Event::Inspected { txid: Txid(6), verdict: Verdict::Ours });
    assert!(engine.is_drained());
}

#[test]
fn a_refused_put_of_ours_is_an_ack_and_a_foreign_one_fences() {
    for (verdict, fenced) in
        [(Verdict::Ours, false), (Verdict::Foreign { writer: WriterId(2) }, true)]
    {
        let mut engine = engine(true, 5);
        engine.handle(0, Event::Committed { at: 0 });
        close(&mut engine, 0, 6);
        engine.handle(1, Event::PutRefused { txid: Txid(6) });
        assert_eq!(engine.poll(1), Some(Action::Inspect { txid: Txid(6) }));
        engine.handle(2, Event::Inspected { txid: Txid(6), verdict });
        assert_eq!(matches!(engine.status().phase, Phase::Fenced { .. }), fenced);
        assert_eq!(engine.status().acked, Txid(if fenced { 5 } else { 6 }));
        engine.handle(3, Event::Committed { at: 3 });
        if fenced {
            assert_eq!((engine.poll(99_999), engine.wakeup(3)), (None, None));
        }
    }
}

#[test]
fn a_new_lineage_claims_its_place_and_steps_behind_a_stranger() {
    let mut engine = engine(false, 5);
    let claim = Action::Resync { txid: Txid(6), scan: false, claim: true };
    assert_eq!(engine.poll(0), Some(claim));
    engine.handle(0, Event::Closed(Some(Txid(6))));
    assert_eq!(engine.poll(0), Some(Action::Put { txid: Txid(6) }));
    engine.handle(1, Event::PutRefused { txid: Txid(6) });
    assert_eq!(engine.poll(1), Some(Action::Inspect { txid: Txid(6) }));
    let verdict = Verdict::Foreign { writer: WriterId(9) };
    engine.handle(2, Event::Inspected { txid: Txid(6), verdict });
    assert_eq!(engine.poll(2), Some(Action::FindHead));
    engine.handle(
        3,
        Event::HeadFound(Some(Head {
            txid: Txid(8),
            post_apply: None,
            timestamp: Timestamp(0),
            writer: WriterId(9),
        })),
    );
    let image = Action::Image { level: Level::L0, txid: Txid(9), pre_apply: None };
    assert_eq!(engine.poll(3), Some(image));
    engine.handle(4, Event::ImageSent { txid: Txid(9), complete: true });
    assert!(engine.is_drained());
}

#[test]
fn a_put_that_succeeds_while_an_image_becomes_due_counts() {
    let mut engine = engine(true, 5);
    engine.handle(100, Event::Committed { at: 100 });
    close(&mut engine, 100, 6);
    engine.handle(110, Event::ImageNeeded);
    engine.handle(120, Event::PutDone { txid: Txid(6) });
    assert_eq!(engine.status().acked, Txid(6), "else our own file looks like that of a twin");
    assert_eq!(engine.poll(130), Some(Action::FindHead));
}

#[test]
fn an_empty_replica_gets_a_snapshot_first() {
    let options = Options { sync_interval: 0, jitter_seed: 1 };
    let mut engine = Engine::new(options, WriterId(1));
    let opened = Opened {
        claimed: false,
        acked: Txid::ZERO,
        closed: Vec::new(),
        uncommitted_since_close: true,
        since: 0,
        need: Need::Image,
        sure: true,
    };
    engine.handle(0, Event::Opened(opened));
    assert_eq!(engine.poll(0), Some(Action::FindHead));
    engine.handle(0, Event::RequestFailed(store_failure(ErrorKind::Denied)));
    assert!(engine.is_stuck());
    let at = engine.wakeup(0).unwrap();
    assert_eq!(engine.poll(at), Some(Action::FindHead));
    engine.handle(at, Event::HeadFound(None));
    let image = Action::Image { level: Level::SNAPSHOT, txid: Txid(1), pre_apply: None };
    assert_eq!(engine.poll(at), Some(image));
    engine.handle(at, Event::Committed { at });
    assert_eq!(engine.poll(at), None, "commits wait for the image");
    engine.handle(at, Event::ImageSent { txid: Txid(1), complete: false });
    assert_eq!(engine.poll(at), Some(Action::Close { txid: Txid(2) }));
}

#[test]
fn a_failed_inspection_is_asked_again_not_put_again() {
    let mut engine = engine(true, 5);
    engine.handle(0, Event::Committed { at: 0 });
    close(&mut engine, 0, 6);
    engine.handle(1, Event::PutRefused { txid: Txid(6) });
    assert_eq!(engine.poll(1), Some(Action::Inspect { txid: Txid(6) }));
    engine.handle(2, Event::RequestFailed(store_failure(ErrorKind::Unavailable)));
    let at = engine.wakeup(2).unwrap();
    assert_eq!(engine.poll(at), Some(Action::Inspect { txid: Txid(6) }));
}

fn head(txid: u64, writer: u64) -> Event {
    Event::HeadFound(Some(Head {
        txid: Txid(txid),
        post_apply: None,
        timestamp: Timestamp(0),
        writer: WriterId(writer),
    }))
}

/// Returns an engine whose page table is gone, with its image of TXID 6 in progress.
fn imaging(closed: Vec<Closed>) -> Engine {
    let options = Options { sync_interval: 0, jitter_seed: 1 };
    let mut engine = Engine::new(options, WriterId(1));
    let opened = Opened {
        claimed: true,
        acked: Txid(5),
        closed,
        uncommitted_since_close: false,
        since: 10,
        need: Need::Image,
        sure: true,
    };
    engine.handle(10, Event::Opened(opened));
    assert_eq!(engine.poll(10), Some(Action::FindHead));
    engine.handle(11, head(5, 1));
    assert!(matches!(engine.poll(11), Some(Action::Image { txid: Txid(6), .. })));
    engine
}

#[test]
fn images_whose_answers_were_lost_do_not_fence_their_own_writer() {
    let mut engine = imaging(Vec::new());
    let mut now = 11;
    for txid in [6, 7, 8] {
        // The file arrived, but the answer did not. The next attempt finds the name taken.
        engine.handle(now, Event::ImageFailed(store_failure(ErrorKind::Unavailable)));
        now = engine.wakeup(now).unwrap();
        assert_eq!(engine.poll(now), Some(Action::FindHead));
        // This listing lags behind.
        engine.handle(now, head(txid - 1, 1));
        assert!(matches!(engine.poll(now), Some(Action::Image { .. })));
        engine.handle(now, Event::ImageRefused);
        now = engine.wakeup(now).unwrap();
        assert_eq!(engine.poll(now), Some(Action::FindHead));
        engine.handle(now, head(txid, 1));
        let next = Txid(txid + 1);
        assert!(matches!(engine.poll(now), Some(Action::Image { txid, .. }) if txid == next));
    }
}

#[test]
fn an_image_does_not_step_over_a_writer_that_came_after_us() {
    let mut engine = imaging(Vec::new());
    engine.handle(12, Event::ImageRefused);
    let at = engine.wakeup(12).unwrap();
    assert_eq!(engine.poll(at), Some(Action::FindHead));
    engine.handle(at, head(6, 2));
    let fenced = Phase::Fenced { by: WriterId(2), at: Txid(6) };
    assert_eq!((engine.status().phase, engine.poll(99_999)), (fenced, None));
}

#[test]
fn an_image_that_failed_asks_again_where_the_log_ends() {
    let mut engine = engine(true, 3);
    engine.handle(5, Event::ReplicaLost);
    assert_eq!(engine.poll(5), Some(Action::FindHead));
    engine.handle(6, Event::HeadFound(None));
    assert!(matches!(engine.poll(6), Some(Action::Image { txid: Txid(4), .. })));
    assert_eq!(engine.located(), None);
    engine.handle(7, Event::ImageFailed(store_failure(ErrorKind::Unavailable)));
    let at = engine.wakeup(7).unwrap();
    assert_eq!(engine.poll(at), Some(Action::FindHead));
    // Another writer has started a log, which ends at the same TXID as ours.
    engine.handle(at, head(3, 2));
    let fenced = Phase::Fenced { by: WriterId(2), at: Txid(3) };
    assert_eq!((engine.status().phase, engine.poll(99_999)), (fenced, None));
}

#[test]
fn the_wait_between_images_that_fail_grows_and_their_failure_shows() {
    let mut engine = imaging(Vec::new());
    assert_eq!(engine.located().map(|head| head.txid), Some(Txid(5)));
    let (mut now, mut waits) = (11, Vec::new());
    for _ in 0..7 {
        engine.handle(now, Event::ImageFailed(store_failure(ErrorKind::Denied)));
        let at = engine.wakeup(now).unwrap();
        waits.push(at - now);
        now = at;
        assert_eq!(engine.poll(now), Some(Action::FindHead));
        engine.handle(now, head(5, 1));
        assert!(engine.is_stuck());
        assert!(matches!(engine.poll(now), Some(Action::Image { .. })));
    }
    assert!(waits[0] <= 250 && waits[6] >= 15_000, "{waits:?}");
    engine.handle(now, Event::ImageSent { txid: Txid(6), complete: true });
    assert!(!engine.is_stuck());
}

#[test]
fn an_image_takes_the_place_of_closed_files_and_their_lag() {
    let mut engine = imaging(vec![Closed::new(Txid(6), 3)]);
    assert_eq!(engine.status().unacked_since, Some(3), "the closed file's commits");
    engine.handle(20, Event::ImageSent { txid: Txid(6), complete: false });
    assert_eq!(engine.poll(20), None, "nothing of the old queue is put");
    assert!(engine.is_drained());
    assert_eq!(engine.status().unacked_since, None);
}

#[test]
fn the_lag_shows_while_a_comparison_is_due() {
    let mut engine = engine(true, 5);
    engine.handle(100, Event::Committed { at: 100 });
    assert_eq!(engine.poll(100), Some(Action::Close { txid: Txid(6) }));
    engine.handle(900, Event::Diverged);
    engine.handle(900, Event::Closed(None));
    assert_eq!(engine.status().unacked_since, Some(100));
    let scan = Action::Resync { txid: Txid(6), scan: true, claim: false };
    assert_eq!(engine.poll(900), Some(scan));
    assert_eq!(engine.status().unacked_since, Some(100));
    engine.handle(901, Event::Diverged);
    engine.handle(902, Event::Closed(None));
    assert_eq!(engine.poll(902), Some(scan), "what came during the comparison counts");
    engine.handle(903, Event::Closed(None));
    assert_eq!(engine.poll(903), None);
    assert!(engine.is_drained());
}

#[test]
fn the_lag_shows_from_the_start_when_something_is_due() {
    for need in [Need::Resync, Need::Image] {
        let options = Options { sync_interval: 0, jitter_seed: 1 };
        let mut engine = Engine::new(options, WriterId(1));
        let opened = Opened {
            claimed: true,
            acked: Txid(5),
            closed: Vec::new(),
            uncommitted_since_close: false,
            since: 7,
            need,
            sure: true,
        };
        engine.handle(7, Event::Opened(opened));
        assert_eq!(engine.status().unacked_since, Some(7));
    }
}

#[test]
fn a_failed_capture_does_not_end_an_image() {
    let mut engine = imaging(Vec::new());
    engine.handle(12, Event::LocalFailed(Failure::Local { message: "the disk is full".into() }));
    assert_eq!((engine.poll(99_999), engine.wakeup(12)), (None, None), "it is under way");
    engine.handle(13, Event::ImageSent { txid: Txid(6), complete: false });
    assert!(engine.is_drained());
}

#[test]
fn a_replica_that_was_emptied_begins_again_beyond_all_that_was_used() {
    for (found, level, txid) in
        [(None, Level::SNAPSHOT, 6), (Some(3), Level::SNAPSHOT, 6), (Some(5), Level::SNAPSHOT, 6)]
    {
        let mut engine = engine(true, 5);
        engine.handle(10, Event::Committed { at: 10 });
        close(&mut engine, 10, 6);
        engine.handle(20, Event::ReplicaLost);
        assert_eq!(engine.status().unacked_since, Some(10), "what was closed waits for the image");
        assert_eq!(engine.poll(20), Some(Action::FindHead));
        engine.handle(21, found.map_or(Event::HeadFound(None), |txid| head(txid, 1)));
        let image = Action::Image { level, txid: Txid(txid), pre_apply: None };
        assert_eq!(engine.poll(21), Some(image), "{found:?}");
        engine.handle(30, Event::ImageSent { txid: Txid(txid), complete: true });
        assert!(engine.is_drained());
        assert_eq!(engine.status().acked, Txid(txid));
        // From here on the log behaves like any other.
        engine.handle(2000, Event::Committed { at: 2000 });
        close(&mut engine, 2000, txid + 1);
    }
}

#[test]
fn a_replica_that_another_began_anew_is_not_taken_from_it() {
    for txid in [2, 9] {
        let mut engine = engine(true, 5);
        engine.handle(10, Event::Committed { at: 10 });
        close(&mut engine, 10, 6);
        engine.handle(20, Event::ReplicaLost);
        assert_eq!(engine.poll(20), Some(Action::FindHead));
        engine.handle(21, head(txid, 2));
        let fenced = Phase::Fenced { by: WriterId(2), at: Txid(txid) };
        assert_eq!((engine.status().phase, engine.poll(99_999)), (fenced, None));
    }
}

#[test]
fn a_lineage_that_has_claimed_its_place_is_fenced_by_the_next() {
    let mut engine = engine(false, 5);
    assert!(matches!(engine.poll(0), Some(Action::Resync { claim: true, .. })));
    engine.handle(0, Event::Closed(Some(Txid(6))));
    assert_eq!(engine.poll(0), Some(Action::Put { txid: Txid(6) }));
    engine.handle(1, Event::PutRefused { txid: Txid(6) });
    assert_eq!(engine.poll(1), Some(Action::Inspect { txid: Txid(6) }));
    let verdict = Verdict::Foreign { writer: WriterId(9) };
    engine.handle(2, Event::Inspected { txid: Txid(6), verdict });
    assert_eq!(engine.poll(2), Some(Action::FindHead));
    // The shell found file 8 of another writer, and created our claim as file 9.
    engine.claim();
    engine.handle(3, head(9, 1));
    assert!(matches!(engine.poll(3), Some(Action::Image { txid: Txid(10), .. })));
    engine.handle(4, Event::ImageRefused);
    let at = engine.wakeup(4).unwrap();
    assert_eq!(engine.poll(at), Some(Action::FindHead));
    engine.handle(at, head(10, 9));
    assert!(matches!(engine.status().phase, Phase::Fenced { .. }));
}

#[test]
fn a_store_that_asks_to_be_left_alone_is_even_in_a_hurry() {
    let mut engine = engine(true, 5);
    engine.handle(0, Event::Committed { at: 0 });
    close(&mut engine, 0, 6);
    engine.hold_store_until(9000);
    engine.handle(10, Event::RequestFailed(store_failure(ErrorKind::Throttled)));
    engine.handle(20, Event::Hurry);
    assert_eq!((engine.poll(8999), engine.wakeup(20)), (None, Some(9000)));
    assert_eq!(engine.poll(9000), Some(Action::Put { txid: Txid(6) }));
}

#[test]
fn a_hurry_is_for_what_is_committed_and_for_nothing_later() {
    let mut engine = engine(true, 5);
    engine.handle(0, Event::Committed { at: 0 });
    close(&mut engine, 0, 6);
    // The file has this commit already. No caller waits for the next commit.
    engine.handle(1, Event::Hurry);
    engine.handle(2, Event::PutDone { txid: Txid(6) });
    engine.handle(3, Event::Committed { at: 3 });
    assert_eq!((engine.poll(3), engine.wakeup(3)), (None, Some(1000)));
    assert!(engine.waits_for_interval());
    engine.handle(4, Event::Hurry);
    close(&mut engine, 4, 7);
}

#[test]
fn a_hurry_before_an_image_ends_with_it() {
    let mut engine = engine(false, 0);
    engine.handle(0, Event::Committed { at: 0 });
    engine.handle(0, Event::ImageNeeded);
    engine.handle(0, Event::Hurry);
    assert_eq!(engine.poll(0), Some(Action::FindHead));
    engine.handle(1, Event::HeadFound(None));
    assert!(matches!(engine.poll(1), Some(Action::Image { .. })));
    engine.handle(10, Event::ImageSent { txid: Txid(1), complete: true });
    engine.handle(20, Event::Committed { at: 20 });
    assert_eq!((engine.poll(20), engine.wakeup(20)), (None, Some(1010)));
}

#[test]
fn a_hurry_while_a_file_is_closed_is_for_what_came_meanwhile() {
    let mut engine = engine(true, 5);
    engine.handle(0, Event::Committed { at: 0 });
    assert_eq!(engine.poll(0), Some(Action::Close { txid: Txid(6) }));
    engine.handle(1, Event::Committed { at: 1 });
    engine.handle(2, Event::Hurry);
    engine.handle(3, Event::Closed(Some(Txid(6))));
    assert_eq!(engine.poll(3), Some(Action::Put { txid: Txid(6) }));
    engine.handle(4, Event::PutDone { txid: Txid(6) });
    close(&mut engine, 4, 7);
}

#[test]
fn a_hurry_outlives_a_close_that_failed() {
    let mut engine = engine(true, 5);
    engine.handle(0, Event::Committed { at: 0 });
    close(&mut engine, 0, 6);
    engine.handle(1, Event::PutDone { txid: Txid(6) });
    engine.handle(2, Event::Committed { at: 2 });
    engine.handle(2, Event::Hurry);
    assert_eq!(engine.poll(2), Some(Action::Close { txid: Txid(7) }));
    engine.handle(3, Event::LocalFailed(Failure::Local { message: "no".into() }));
    let at = engine.wakeup(3).unwrap();
    assert!(at < 1000);
    close(&mut engine, at, 7);
}

#[test]
fn a_hurry_before_the_disk_was_read_is_for_what_is_found_there() {
    for uncommitted_since_close in [false, true] {
        let options = Options { sync_interval: 1000, jitter_seed: 7 };
        let mut engine = Engine::new(options, WriterId(1));
        engine.handle(0, Event::Hurry);
        let (acked, closed, need) = (Txid(5), Vec::new(), Need::Nothing);
        let opened = Opened {
            claimed: true,
            acked,
            closed,
            uncommitted_since_close,
            since: 0,
            need,
            sure: true,
        };
        engine.handle(0, Event::Opened(opened));
        if uncommitted_since_close {
            close(&mut engine, 0, 6);
        }
        assert_eq!(engine.poll(0), None);
        assert!(!engine.waits_for_interval());
    }
}

#[test]
fn what_an_earlier_process_left_is_as_old_as_it_was() {
    let need = Need::Confirm { level: Level::SNAPSHOT, min: Txid(1), txid: Txid(6) };
    for need in [Need::Nothing, Need::Resync, Need::Image, need] {
        let mut engine = Engine::new(Options { sync_interval: 0, jitter_seed: 7 }, WriterId(1));
        engine.handle(5000, Event::Committed { at: 4000 });
        let opened = Opened {
            claimed: true,
            acked: Txid(5),
            closed: Vec::new(),
            uncommitted_since_close: true,
            since: 300,
            need,
            sure: true,
        };
        engine.handle(5000, Event::Opened(opened));
        assert_eq!(engine.status().unacked_since, Some(300), "{need:?}");
    }
}

#[test]
fn the_oldest_commit_counts_whenever_it_is_told() {
    let mut engine = engine(true, 5);
    engine.handle(200, Event::Committed { at: 200 });
    engine.handle(210, Event::Committed { at: 100 });
    assert_eq!(engine.status().unacked_since, Some(100), "told late, and made before");
}

#[test]
fn commits_that_a_close_was_to_take_in_wait_for_the_image() {
    let mut engine = engine(true, 5);
    engine.handle(100, Event::Diverged);
    assert!(matches!(engine.poll(100), Some(Action::Resync { .. })));
    engine.handle(500, Event::ImageNeeded);
    engine.handle(500, Event::Closed(None));
    assert_eq!(engine.status().unacked_since, Some(100));
}

#[test]
fn a_file_of_our_own_that_was_forgotten_does_not_lift_a_fence() {
    let mut engine = engine(true, 5);
    engine.handle(0, Event::Committed { at: 0 });
    close(&mut engine, 0, 6);
    engine.handle(1, Event::PutRefused { txid: Txid(6) });
    assert_eq!(engine.poll(1), Some(Action::Inspect { txid: Txid(6) }));
    let verdict = Verdict::Foreign { writer: WriterId(1) };
    engine.handle(2, Event::Inspected { txid: Txid(6), verdict });
    assert_eq!(engine.poll(2), Some(Action::FindHead));
    // A power loss made us forget file 6, but another writer has continued the log since.
    let head =
        Head { txid: Txid(9), post_apply: None, timestamp: Timestamp(0), writer: WriterId(2) };
    engine.handle(3, Event::HeadFound(Some(head)));
    assert_eq!(engine.status().phase, Phase::Fenced { by: WriterId(2), at: Txid(9) });
    assert_eq!(engine.poll(60_000), None);
}

#[test]
fn an_image_that_arrived_claims_the_log_even_if_another_is_needed() {
    let options = Options { sync_interval: 0, jitter_seed: 1 };
    let mut engine = Engine::new(options, WriterId(1));
    let (level, txid) = (Level::SNAPSHOT, Txid(1));
    let opened = Opened {
        claimed: false,
        acked: Txid::ZERO,
        closed: Vec::new(),
        uncommitted_since_close: false,
        since: 0,
        need: Need::Confirm { level, min: txid, txid },
        sure: true,
    };
    engine.handle(0, Event::Opened(opened));
    assert_eq!(engine.poll(0), Some(Action::Confirm { level, min: txid, max: txid }));
    // The page table does not match the image.
    engine.handle(1, Event::ImageNeeded);
    engine.handle(1, Event::Confirmed { arrived: true });
    assert!(engine.has_claimed());
    assert_eq!(engine.poll(1), Some(Action::FindHead));
    engine.handle(2, head(5, 2));
    let fenced = Phase::Fenced { by: WriterId(2), at: Txid(5) };
    assert_eq!((engine.status().phase, engine.poll(99_999)), (fenced, None));
}

/// Returns an engine that was opened with nothing to ship, and with a state that may be older than the log.
fn unsure() -> Engine {
    let options = Options { sync_interval: 1000, jitter_seed: 7 };
    let mut engine = Engine::new(options, WriterId(1));
    let opened = Opened {
        claimed: true,
        acked: Txid(4),
        closed: vec![],
        uncommitted_since_close: false,
        since: 0,
        need: Need::Nothing,
        sure: false,
    };
    engine.handle(0, Event::Opened(opened));
    engine
}

#[test]
fn file_is_put_once_somebody_waits_if_local_state_may_be_older_than_the_log() {
    let mut engine = unsure();
    assert_eq!((engine.poll(1), engine.wakeup(1)), (None, None), "nobody waits");
    engine.handle(2, Event::Asked);
    assert_eq!(engine.wakeup(2), Some(2));
    let resync = Action::Resync { txid: Txid(5), scan: false, claim: true };
    assert_eq!(engine.poll(2), Some(resync));
    engine.handle(3, Event::Closed(Some(Txid(5))));
    assert_eq!(engine.poll(3), Some(Action::Put { txid: Txid(5) }));
    assert!(!engine.is_sure());
    engine.handle(4, Event::PutDone { txid: Txid(5) });
    assert!(engine.is_sure() && engine.is_drained());
    assert_eq!((engine.poll(5), engine.wakeup(5)), (None, None));
}

#[test]
fn file_of_ours_that_is_there_already_does_not_show_the_logs_end() {
    let mut engine = unsure();
    engine.handle(2, Event::Hurry);
    assert!(matches!(engine.poll(2), Some(Action::Resync { claim: true, .. })));
    engine.handle(3, Event::Closed(Some(Txid(5))));
    assert_eq!(engine.poll(3), Some(Action::Put { txid: Txid(5) }));
    engine.handle(4, Event::PutRefused { txid: Txid(5) });
    assert_eq!(engine.poll(4), Some(Action::Inspect { txid: Txid(5) }));
    engine.handle(5, Event::Inspected { txid: Txid(5), verdict: Verdict::Ours });
    assert!(!engine.is_sure());
    assert!(matches!(engine.poll(6), Some(Action::Resync { txid: Txid(6), claim: true, .. })));
}

#[test]
fn commit_without_a_difference_shows_as_lag_until_the_logs_end_is_known() {
    let mut engine = unsure();
    engine.handle(10, Event::Committed { at: 9 });
    engine.handle(10, Event::Diverged);
    let compared = engine.poll(10);
    assert_eq!(compared, Some(Action::Resync { txid: Txid(5), scan: true, claim: false }));
    engine.handle(11, Event::Closed(None));
    assert_eq!(engine.status().unacked_since, Some(9));
    assert!(matches!(engine.poll(11), Some(Action::Resync { scan: false, claim: true, .. })));
    engine.handle(12, Event::Closed(Some(Txid(5))));
    assert_eq!(engine.poll(12), Some(Action::Put { txid: Txid(5) }));
    engine.handle(13, Event::PutDone { txid: Txid(5) });
    assert_eq!(engine.status().unacked_since, None);
    assert!(engine.is_drained());
}
