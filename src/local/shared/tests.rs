//! Two open pages of one file stand for two processes.

use std::io::Read;

use super::*;

fn view(n: u64) -> View {
    View {
        term: 7,
        pid: n as u32,
        namespace: n,
        gate: 2,
        captured: Some((Salts(n as u32, 2), 0)),
        captured_change: n as u32,
        captured_seq: n,
        acked_seq: n,
        released: None,
        answered: n,
        sealed: n,
        acked: n,
        unacked_since: n,
        state: n,
        pending_bytes: n,
        spool_files: n,
        error: "é".repeat(n as usize % 500),
    }
}

#[test]
fn a_view_is_seen_whole_by_another_mapping() {
    let dir = tempfile::tempdir().unwrap();
    let ours = SharedPage::open(dir.path()).unwrap();
    let theirs = SharedPage::open(dir.path()).unwrap();
    ours.begin_term(1);
    std::thread::scope(|scope| {
        scope.spawn(|| (0..20_000).for_each(|n| ours.publish(&view(n))));
        while theirs.view().is_none_or(|view| view.sealed != 19_999) {
            if let Some(seen) = theirs.view().filter(|seen| seen.state != 0) {
                let n = seen.sealed;
                let glance = glance(dir.path()).unwrap().unwrap().view;
                if let Some(seen) = glance.filter(|seen| seen.state != 0) {
                    let expected = view(seen.sealed);
                    assert!(expected.error.starts_with(&seen.error));
                    assert_eq!((seen.captured, seen.namespace), (expected.captured, seen.sealed));
                }
                let expected = view(n);
                assert_eq!(
                    View { error: String::new(), ..seen.clone() },
                    View { error: String::new(), ..expected.clone() }
                );
                assert!(expected.error.starts_with(&seen.error));
            }
        }
    });
}

#[test]
fn a_shipper_that_died_in_the_middle_is_followed_by_a_new_term() {
    let dir = tempfile::tempdir().unwrap();
    let page = SharedPage::open(dir.path()).unwrap();
    page.begin_term(1);
    let first = page.view().unwrap().term;
    let torn = entry_of(&View { term: first, ..view(3) });
    page.page().words().store_all(AT_ENTRY, &torn[..5]);
    assert_eq!(page.view(), None);
    page.begin_term(2);
    assert!(page.view().unwrap().term > first);
}

fn file(dir: &Path) -> File {
    File::options().read(true).write(true).open(dir.join(NAME)).unwrap()
}

#[test]
fn a_file_that_is_cut_off_is_no_more_than_silent() {
    for len in [0, 5, 20, 130] {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) =
            (SharedPage::open(dir.path()).unwrap(), SharedPage::open(dir.path()).unwrap());
        let term = ours.begin_term(9);
        file(dir.path()).set_len(len).unwrap();
        assert_eq!((theirs.view(), glance(dir.path()).unwrap().is_some()), (None, len >= 8));
        assert!(!theirs.listens());
        theirs.call(Call::CAPTURE);
        theirs.unreported(7);
        let wish = theirs.want((Salts(1, 2), 3));
        // There is no word to wait on, or no process that wakes this one.
        let begun = std::time::Instant::now();
        theirs.wait(theirs.mark(), Duration::from_millis(20));
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert!(ours.take_calls().has(Call::CAPTURE));
        assert_eq!((ours.peek_unreported(), ours.wanted()), (Some(7), ((Salts(1, 2), 3), wish)));
        ours.publish(&View { term, ..view(5) });
        assert_eq!(theirs.view().map(|view| (view.term, view.sealed)), Some((term, 5)));
    }
}

#[test]
fn who_waits_is_woken() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) =
        (SharedPage::open(dir.path()).unwrap(), SharedPage::open(dir.path()).unwrap());
    for n in 1..=50 {
        std::thread::scope(|scope| {
            let mark = theirs.mark();
            let theirs = &theirs;
            let waiting = scope.spawn(move || {
                let begun = std::time::Instant::now();
                theirs.wait(mark, Duration::from_mins(1));
                begun.elapsed()
            });
            ours.publish(&view(n));
            assert!(waiting.join().unwrap() < Duration::from_secs(30));
        });
    }
}

#[test]
fn another_layout_is_left_alone_and_garbage_is_not() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("shm"), b"of an older version").unwrap();
    let page = SharedPage::open(dir.path()).unwrap();
    page.begin_term(1);
    let older = std::fs::read(dir.path().join("shm")).unwrap();
    assert_eq!(older, b"of an older version");
    let other = [b"wfshm\0\0\x04".as_slice(), &[7; 5000]].concat();
    std::fs::write(dir.path().join(NAME), &other).unwrap();
    let error = SharedPage::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("layout of another version"), "{error}");
    assert_eq!(glance(dir.path()).unwrap(), None);
    assert_eq!(std::fs::read(dir.path().join(NAME)).unwrap(), other);
    std::fs::write(dir.path().join(NAME), [7; 5000]).unwrap();
    let page = SharedPage::open(dir.path()).unwrap();
    assert_eq!((page.view(), page.last_standby(), page.take_calls()), (None, 0, Call(0)));
}

#[test]
fn what_was_asked_for_in_a_file_that_is_gone_is_asked_for_again() {
    let dir = tempfile::tempdir().unwrap();
    let page = SharedPage::open(dir.path()).unwrap();
    page.call(Call::HURRY);
    page.unreported(7);
    std::fs::remove_file(dir.path().join(NAME)).unwrap();
    assert!(!page.is_in_place(dir.path()));
    page.renew().unwrap();
    assert!(page.is_in_place(dir.path()));
    let new = SharedPage::open(dir.path()).unwrap();
    assert_eq!((new.take_calls(), new.peek_unreported()), (Call::HURRY, Some(7)));
    std::fs::remove_file(dir.path().join(NAME)).unwrap();
    std::fs::create_dir(dir.path().join(NAME)).unwrap();
    assert!(SharedPage::open(dir.path()).is_err());
}

#[test]
fn a_page_at_rest_is_opened_again_and_no_other_file_in_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let (page, path) = (SharedPage::open(dir.path()).unwrap(), dir.path().join(NAME));
    let open = || {
        let links = std::fs::read_dir("/proc/self/fd").unwrap();
        let links = links.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
        links.filter(|link| link.starts_with(dir.path())).count()
    };
    assert_eq!(open(), 1);
    page.rest();
    assert_eq!(open(), 0);
    page.publish(&view(3));
    assert_eq!((page.view(), open()), (Some(view(3)), 1));
    page.rest();
    std::fs::rename(&path, dir.path().join("away")).unwrap();
    std::fs::write(&path, b"").unwrap();
    assert!(!page.is_in_place(dir.path()));
    page.publish(&view(4));
    assert_eq!((page.view(), std::fs::metadata(&path).unwrap().len()), (None, 0));
    page.renew().unwrap();
    page.publish(&view(5));
    assert_eq!(page.view(), Some(view(5)));
}

#[test]
fn calls_ring_once_until_they_are_seen() {
    let dir = tempfile::tempdir().unwrap();
    let page = SharedPage::open(dir.path()).unwrap();
    page.call(Call::LOOK);
    assert!(page.take_calls().has(Call::LOOK), "without a pipe nothing is lost");
    page.listen();
    assert!(!page.bell_path().exists());
    make_bell(page.bell_path()).unwrap();
    let mut pipe = make_bell(page.bell_path()).unwrap();
    let mut rings = || {
        let mut buffer = [0; 16];
        pipe.read(&mut buffer).unwrap_or(0)
    };
    page.call(Call::LOOK);
    page.call(Call::LOOK);
    assert_eq!(rings(), 1);
    page.call(Call::HURRY);
    assert_eq!(rings(), 1);
    let calls = page.take_calls();
    assert!(calls.has(Call::HURRY) && calls.has(Call::LOOK) && !calls.has(Call::CAPTURE));
    page.call(Call::LOOK);
    assert_eq!(rings(), 0, "it is known that there are commits");
    page.listen();
    page.call(Call::LOOK);
    assert_eq!(rings(), 1);
}

#[test]
fn the_oldest_unreported_commit_counts() {
    let dir = tempfile::tempdir().unwrap();
    let page = SharedPage::open(dir.path()).unwrap();
    page.unreported(5);
    page.unreported(9);
    assert_eq!(page.peek_unreported(), Some(5));
    page.forget_unreported();
    assert_eq!(page.peek_unreported(), None);
}
