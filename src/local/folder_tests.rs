//! Modes and owners of a state folder, and entries that are refused.

use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

#[test]
fn modes_are_made_of_that_of_database() {
    for (database, file, folder, lock) in [
        (0o600, 0o600, 0o700, 0o600),
        (0o644, 0o644, 0o755, 0o600),
        (0o640, 0o640, 0o750, 0o600),
        (0o664, 0o664, 0o775, 0o660),
        (0o666, 0o666, 0o777, 0o666),
        (0o4755, 0o644, 0o755, 0o600),
        (0o400, 0o600, 0o700, 0o600),
    ] {
        let like = Like { mode: database, uid: 1, gid: 2 };
        let modes = [like.of_file(), like.of_folder(), like.of_lock()].map(|like| like.mode);
        assert_eq!(modes, [file, folder, lock], "{database:o}");
    }
}

#[test]
fn folder_is_found_from_what_is_in_it() {
    let check = |path: &str, root: &str, below: &[&str]| {
        let below: Vec<&OsStr> = below.iter().map(OsStr::new).collect();
        assert_eq!(root_of(Path::new(path)), (Path::new(root), below), "{path}");
    };
    check("/a/x.db-walferry/replicas/1/spool", "/a/x.db-walferry", &["replicas", "1", "spool"]);
    check("/a-walferry/x.db-walferry", "/a-walferry/x.db-walferry", &[]);
    check("x.db-walferry/new-restoring/state", "x.db-walferry/new-restoring", &["state"]);
    check("/a/b", "/a/b", &[]);
    let database = |root: &str| database_of(Path::new(root));
    assert_eq!(database("/a/x.db-walferry"), Some("/a/x.db".into()));
    assert_eq!((database("/a/x.db-restoring"), database("/-walferry")), (None, None));
}

#[test]
fn what_is_no_file_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("mine"), "mine").unwrap();
    symlink(path("mine"), path("link")).unwrap();
    std::fs::hard_link(path("mine"), path("twin")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, path("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        .unwrap();
    std::fs::create_dir(path("folder")).unwrap();
    let odd = |name: &str, file: io::Result<File>| {
        let error = file.unwrap_err();
        assert!(is_odd(&error), "{name}: {error}");
    };
    for name in ["link", "pipe", "folder"] {
        odd(name, read(&path(name)));
        odd(name, open(&path(name)));
    }
    odd("twin", open(&path("twin")));
    let folder = Folder::open(dir.path()).unwrap();
    odd("mine", folder.make_pipe("mine"));
    folder.make_pipe("pipe").unwrap();
    assert!(is_odd(&folder.sub("link").unwrap_err()));
    // A new file replaces the name, and leaves the file behind a link as it is.
    for name in ["link", "pipe", "twin"] {
        create(&path(name)).unwrap();
        assert_eq!(std::fs::read(path(name)).unwrap(), b"");
    }
    odd("folder", create(&path("folder")));
    assert_eq!(std::fs::read(path("mine")).unwrap(), b"mine");
}

#[test]
fn all_in_folder_follows_mode_of_database() {
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("x.db");
    let mode = |path: &Path| path.symlink_metadata().unwrap().permissions().mode() & 0o7777;
    let set = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    std::fs::write(&database, "").unwrap();
    set(&database, 0o640);
    let state = super::super::state_dir(&database);
    let spool = state.join("spool");
    Folder::make(&spool).unwrap();
    create(&spool.join("rows")).unwrap();
    open(&state.join(LOCK)).unwrap();
    let modes = || [&state, &spool, &spool.join("rows"), &state.join(LOCK)].map(|path| mode(path));
    assert_eq!(modes(), [0o750, 0o750, 0o640, 0o600]);
    // An earlier version leaves such modes.
    for path in [&state, &spool, &spool.join("rows"), &state.join(LOCK)] {
        set(path, 0o777);
    }
    Folder::make(&spool).unwrap();
    assert_eq!(modes(), [0o750, 0o750, 0o640, 0o600]);
    set(&database, 0o600);
    Folder::make(&state).unwrap();
    assert_eq!(modes(), [0o700, 0o700, 0o600, 0o600]);
}

#[test]
fn names_change_in_no_folder_that_is_reached_by_a_link() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("x.db-walferry");
    std::fs::create_dir_all(state.join("own")).unwrap();
    std::fs::create_dir(dir.path().join("others")).unwrap();
    std::fs::write(dir.path().join("others/file"), "theirs").unwrap();
    symlink(dir.path().join("others"), state.join("spool")).unwrap();
    let (theirs, own) = (state.join("spool/file"), state.join("own/file"));
    assert!(is_odd(&remove(&theirs).unwrap_err()));
    assert!(is_odd(&rename(&theirs, &own).unwrap_err()));
    std::fs::write(&own, "ours").unwrap();
    assert!(is_odd(&rename(&own, &theirs).unwrap_err()));
    assert_eq!(std::fs::read_to_string(dir.path().join("others/file")).unwrap(), "theirs");
    rename(&own, &state.join("named")).unwrap();
    remove(&state.join("named")).unwrap();
    let gone = remove(&state.join("named")).unwrap_err();
    assert_eq!(gone.kind(), io::ErrorKind::NotFound);
}
