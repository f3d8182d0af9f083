//! The directory backend.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use walferry::store::conformance::{self, Traits, key};
use walferry::store::file::FileStore;
use walferry::store::memory::MemoryStore;
use walferry::store::{Body, ErrorKind, Store, open};
use walferry::units::{Level, Timestamp};

const NOW: Timestamp = Timestamp(1_795_351_714_201);

fn some_bytes() -> Body {
    Body::Bytes(Bytes::from_static(b"some bytes"))
}

/// All files below a folder, with their paths from there.
fn files_below(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type().unwrap().is_dir() {
            found.extend(files_below(&entry.path()).iter().map(|below| format!("{name}/{below}")));
        } else {
            found.push(name);
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn a_directory_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let traits = Traits { modified_is_timestamp: true, many: 1200 };
    conformance::run(traits, |name| {
        open(folder.path().join("not yet there").join(name).to_str().unwrap()).unwrap()
    })
    .await;
    let mut strange = files_below(folder.path());
    strange.retain(|name| Path::new(name).extension() != Some("ltx".as_ref()));
    assert!(strange.is_empty(), "left behind: {strange:?}");
}

#[tokio::test]
async fn memory_keeps_the_contract() {
    let replicas = parking_lot::Mutex::new(std::collections::HashMap::new());
    let traits = Traits { modified_is_timestamp: true, many: 1200 };
    conformance::run(traits, |name| {
        let mut replicas = replicas.lock();
        Arc::new(replicas.entry(name.to_string()).or_insert_with(MemoryStore::new).clone())
    })
    .await;
}

#[tokio::test]
async fn the_layout_is_litestreams() {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::new(folder.path());
    store.put_new(key(0, 31), some_bytes(), NOW).await.unwrap();
    store.put_new(key(9, 31), some_bytes(), Timestamp(-1500)).await.unwrap();
    let names =
        ["0", "9"].map(|level| format!("ltx/{level}/000000000000001f-000000000000001f.ltx"));
    assert_eq!(files_below(folder.path()), names);
    let metadata = fs::metadata(folder.path().join(&names[0])).unwrap();
    assert_eq!(
        metadata.modified().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis(),
        1_795_351_714_201
    );
    assert_eq!(metadata.permissions().mode() & 0o077, 0, "others can read the database");
    assert_eq!(metadata.nlink(), 1, "the temporary name is still there");
    assert_eq!(store.list(Level::SNAPSHOT).await.unwrap()[0].modified, Timestamp(-1500));
}

#[tokio::test]
async fn foreign_names_are_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::new(folder.path());
    store.put_new(key(0, 1), some_bytes(), NOW).await.unwrap();
    let level = folder.path().join("ltx/0");
    for name in [
        "0000000000000002-0000000000000002.ltx.tmp",
        "0000000000000002-0000000000000002.ltx.17-3.walferry.tmp",
        "000000000000000A-000000000000000A.ltx",
        "0000000000000002.ltx",
        "notes.txt",
    ] {
        fs::write(level.join(name), b"x").unwrap();
    }
    let keys: Vec<_> =
        store.list(Level::L0).await.unwrap().into_iter().map(|file| file.key).collect();
    assert_eq!(keys, [key(0, 1)]);
}

#[tokio::test]
async fn what_takes_a_files_name_is_listed_as_empty_and_never_followed() {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::new(folder.path());
    store.put_new(key(0, 1), some_bytes(), NOW).await.unwrap();
    let path = |txid| folder.path().join("ltx/0").join(key(0, txid).name.to_string());
    fs::create_dir(path(2)).unwrap();
    std::os::unix::fs::symlink(path(1), path(3)).unwrap();
    std::os::unix::fs::symlink("nowhere", path(4)).unwrap();
    let listed = store.list(Level::L0).await.unwrap();
    let empty: Vec<_> = listed.iter().map(|file| (file.key, file.len == 0)).collect();
    assert_eq!(empty, [1, 2, 3, 4].map(|txid| (key(0, txid), txid != 1)));
    for txid in 2..=4 {
        let error = store.get(key(0, txid), None).await.unwrap_err();
        assert!(error.message.contains("not a file of a replica"), "{error}");
        // Nobody could tell whose it is: it is in the way until somebody moves it.
        let error = store.put_new(key(0, txid), some_bytes(), NOW).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Other);
        assert!(error.message.contains("move it away"), "{error}");
    }
}

#[tokio::test]
async fn a_file_in_the_place_of_the_directory_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a-file");
    fs::write(&path, b"x").unwrap();
    for path in [path.clone(), path.join("below")] {
        let store = FileStore::new(path);
        let errors = [
            store.list(Level::L0).await.unwrap_err(),
            store.get(key(0, 1), None).await.unwrap_err(),
            store.put_new(key(0, 1), some_bytes(), NOW).await.unwrap_err(),
            store.upload_new(key(0, 1), NOW, 0).await.map(|_| ()).unwrap_err(),
            store.delete(key(0, 1)).await.unwrap_err(),
        ];
        for err in errors {
            assert_eq!(err.kind, ErrorKind::Invalid, "{err}");
            assert!(err.to_string().contains("a-file"), "{err}");
        }
    }
}

#[tokio::test]
async fn a_replica_that_vanishes_is_not_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("mount");
    let store = FileStore::new(&root);
    store.put_new(key(0, 1), some_bytes(), NOW).await.unwrap();
    fs::remove_dir_all(&root).unwrap();
    let errors = [
        store.list(Level::L0).await.unwrap_err(),
        store.get(key(0, 1), None).await.unwrap_err(),
        store.put_new(key(0, 2), some_bytes(), NOW).await.unwrap_err(),
        store.delete(key(0, 1)).await.unwrap_err(),
    ];
    for err in errors {
        assert_eq!(err.kind, ErrorKind::NoReplica, "{err}");
    }
    assert!(!root.exists());
    fs::create_dir(&root).unwrap();
    store.put_new(key(0, 2), some_bytes(), NOW).await.unwrap();
}

#[tokio::test]
async fn folders_that_others_may_read_keep_the_group_that_they_inherit() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o2770)).unwrap();
    let store = FileStore::with_mode(folder.path().join("app"), 0o640);
    store.put_new(key(0, 1), some_bytes(), NOW).await.unwrap();
    for made in ["app", "app/ltx", "app/ltx/0"] {
        let mode = fs::metadata(folder.path().join(made)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o2750, "{made}");
    }
}

#[tokio::test]
async fn a_failed_create_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::new(folder.path());
    let absent = Body::File(folder.path().join("absent"));
    let err = store.put_new(key(0, 1), absent, NOW).await.unwrap_err();
    assert_eq!(err.kind, ErrorKind::Local, "not a missing replica file: {err}");
    let folder_as_body = Body::File(folder.path().to_path_buf());
    store.put_new(key(0, 1), folder_as_body, NOW).await.unwrap_err();
    assert_eq!(files_below(folder.path()), Vec::<String>::new());
}

#[tokio::test]
async fn what_may_not_be_written_is_denied() {
    // The kernel lets nobody create a folder here, whoever runs the tests.
    let store = FileStore::new("/sys/walferry-test");
    let err = store.put_new(key(0, 1), some_bytes(), NOW).await.unwrap_err();
    assert_eq!(err.kind, ErrorKind::Denied, "{err}: {:?}", err.source);
    assert_eq!(store.list(Level::L0).await.unwrap(), []);
}

#[tokio::test]
async fn objects_of_a_folder_are_listed_and_read() {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::new(folder.path());
    assert_eq!(store.objects("some").await.unwrap(), []);
    fs::create_dir_all(folder.path().join("some/folder")).unwrap();
    fs::write(folder.path().join("some/folder/object"), b"some bytes").unwrap();
    std::os::unix::fs::symlink("folder", folder.path().join("some/link")).unwrap();
    let objects = store.objects("some").await.unwrap();
    assert_eq!((objects.len(), objects[0].path.as_str()), (1, "some/folder/object"));
    assert!(objects[0].len == 10 && objects[0].modified > Timestamp(0));
    let path = objects[0].path.as_str();
    assert_eq!(store.object(path, 5..900).await.unwrap(), &b"bytes"[..]);
    store.object(path, 11..12).await.unwrap_err();
    for none in ["some/folder/none", "some/folder", "some/link"] {
        assert_eq!(store.object(none, 0..1).await.unwrap_err().kind, ErrorKind::NotFound, "{none}");
    }
}
