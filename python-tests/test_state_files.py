"""The files beside a database are cut, replaced, overwritten or deleted while programs run: the
programs go on, and the replica is the database. At the worst it is sent as a whole again."""

import os
import shutil
import time
from pathlib import Path

import pytest

from harness import HostError, assert_restores, full_images, txids
from test_outages import misfortune, misfortune_library  # noqa: F401 (fixtures)
from test_processes import until

# More pages than the page table keeps in memory: 512 entries a chunk, 16 chunks.
ROWS = 20000
MANY = ("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %d) "
        "INSERT INTO t (x) SELECT randomblob(400) FROM n" % ROWS)


def emptied(path):
    os.truncate(path, 0)


def a_few_bytes(path):
    os.truncate(path, 13)


def cut_in_the_middle(path):
    os.truncate(path, path.stat().st_size // 2)


def overwritten(path):
    with open(path, "r+b") as file:
        file.write(os.urandom(path.stat().st_size))


def replaced(path):
    other = path.with_name("other")
    other.write_bytes(os.urandom(3000))
    other.rename(path)


def deleted(path):
    path.unlink()


def a_folder(path):
    path.unlink()
    path.mkdir()


HARMS = [emptied, a_few_bytes, cut_in_the_middle, overwritten, replaced, deleted, a_folder]


@pytest.fixture(params=HARMS, ids=lambda harm: harm.__name__)
def harm(request):
    return request.param


def opened(new_host, replica, database, **env):
    host = new_host("system", replica, env=env)
    host.open(database)
    return host


def begin(new_host, replica, database, many=True, **env):
    host = opened(new_host, replica, database, **env)
    host.sql("PRAGMA page_size=512", "PRAGMA journal_mode=WAL",
             "CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    if many:
        host.sql(MANY)
    host.sync()
    return host


def goes_on(host, replica, database, folder):
    """All over the database, then with other sizes."""
    for change in ["UPDATE t SET x = randomblob(400) WHERE id % 997 = 3",
                   "DELETE FROM t WHERE id > 9000", "VACUUM", MANY,
                   "INSERT INTO t (x) VALUES ('and on')"]:
        host.sql(change)
        host.sync()
    arrived(host, replica, database, folder)


def arrived(host, replica, database, folder):
    host.sync()
    assert_restores(replica, database, folder)
    every = txids(replica)
    assert every == list(range(1, len(every) + 1))


# ---- the page table --------------------------------------------------------------------------


def test_the_page_table_while_it_is_open(harm, new_host, replica, tmp_path):
    database = tmp_path / "app.db"
    host = begin(new_host, replica, database)
    harm(tmp_path / "app.db-walferry" / "pages")
    goes_on(host, replica, database, tmp_path)
    state = host.status(database)
    assert (state["state"], state["last_error"]) == ("streaming", None), state
    if harm not in (replaced, deleted, a_folder):
        # The file that is open was touched. It was sent whole, once.
        assert (state["found"], len(full_images(replica))) == ("table-disproved", 2), state
    host.close()
    host.finish()
    # Whatever the next process finds.
    host = opened(new_host, replica, database)
    goes_on(host, replica, database, tmp_path)


def test_the_page_table_while_it_is_closed(harm, new_host, replica, tmp_path):
    database = tmp_path / "app.db"
    host = begin(new_host, replica, database, many=False)
    host.close()
    host.finish()
    harm(tmp_path / "app.db-walferry" / "pages")
    host = opened(new_host, replica, database)
    host.sync()
    assert host.status(database)["found"] == "table-disproved"
    goes_on(host, replica, database, tmp_path)
    assert len(full_images(replica)) == 2


def test_a_page_table_of_a_comparison(new_host, replica, tmp_path):
    """What has to be compared with it is found when it is of no use any more."""
    database = tmp_path / "app.db"
    host = begin(new_host, replica, database)
    os.truncate(tmp_path / "app.db-walferry" / "pages", 80000)
    host.sql("PRAGMA journal_mode=DELETE", "UPDATE t SET x = randomblob(400) WHERE id % 997 = 3",
             "PRAGMA journal_mode=WAL")
    arrived(host, replica, database, tmp_path)
    goes_on(host, replica, database, tmp_path)
    assert len(full_images(replica)) == 2


# ---- what processes tell each other ----------------------------------------------------------


def test_the_shared_page_of_two_processes(harm, new_host, replica, tmp_path):
    database = tmp_path / "app.db"
    first = begin(new_host, replica, database, many=False, WALFERRY_SYNC_INTERVAL="50ms")
    second = opened(new_host, replica, database, WALFERRY_SYNC_INTERVAL="50ms")
    both = [first, second]
    for host in both:
        host.sql("PRAGMA wal_autocheckpoint=20")
    exchange(both, replica, database, tmp_path)
    shared = tmp_path / "app.db-walferry" / "shm-3"
    for _ in range(3):
        harm(shared)
        for host in both:
            host.call("fill", sql="INSERT INTO t (x) VALUES (?)", size=600, times=100, seed=1)
        if shared.is_dir():
            shared.rmdir()
        # The one that ships looks once a second, the other one when it has not heard of it for 3 s.
        time.sleep(5)
        exchange(both, replica, database, tmp_path)
    assert len(full_images(replica)) == 1
    # The one that ships is killed: the other takes over.
    first.kill()
    exchange([second], replica, database, tmp_path)


def exchange(hosts, replica, database, folder):
    for host in hosts:
        host.sql("INSERT INTO t (x) VALUES ('and on')")
        arrived(host, replica, database, folder)


def test_the_shared_page_of_another_version_is_left_alone(new_host, replica, tmp_path):
    """Its processes do not talk to each other then: nothing is lost by that."""
    database = tmp_path / "app.db"
    folder = tmp_path / "app.db-walferry"
    folder.mkdir()
    other = b"wfshm\0\0\x09" + bytes(range(256)) * 16
    (folder / "shm-3").write_bytes(other)
    (folder / "shm").write_bytes(b"of an older one")
    first = begin(new_host, replica, database, many=False, WALFERRY_SYNC_INTERVAL="50ms")
    second = opened(new_host, replica, database, WALFERRY_SYNC_INTERVAL="50ms")
    for host in (first, second):
        host.call("fill", sql="INSERT INTO t (x) VALUES (?)", size=600, times=200, seed=2)
    arrived(first, replica, database, tmp_path)
    assert (folder / "shm-3").read_bytes() == other
    assert (folder / "shm").read_bytes() == b"of an older one"


# ---- the folder ------------------------------------------------------------------------------


def test_the_folder_is_on_a_disk_that_goes_away(new_host, replica, tmp_path):
    """It is a symbolic link there. When the disk is back, all goes on in the same process."""
    database, disk, away = tmp_path / "app.db", tmp_path / "disk", tmp_path / "away"
    disk.mkdir()
    (tmp_path / "app.db-walferry").symlink_to(disk)
    host = begin(new_host, replica, database, many=False)
    os.rename(disk, away)
    until(lambda: host.status(database)["last_error"], "it is noticed")
    host.sql("INSERT INTO t (x) VALUES ('while it is away')")
    with pytest.raises(HostError, match="app.db-walferry"):
        host.value("SELECT walferry_sync(1000)")
    os.rename(away, disk)
    arrived(host, replica, database, tmp_path)
    host.sql("INSERT INTO t (x) VALUES ('and on')")
    arrived(host, replica, database, tmp_path)


# ---- the others ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["state", "history"])
def test_what_is_read_at_the_start(name, harm, new_host, replica, tmp_path):
    database = tmp_path / "app.db"
    host = begin(new_host, replica, database, many=False)
    host.close()
    host.finish()
    path = tmp_path / "app.db-walferry" / name
    if not path.exists():
        path.write_text("{}")
    harm(path)
    host = opened(new_host, replica, database)
    if path.is_dir() and name == "state":
        # What is in it may be put back.
        until(lambda: str(path) in (host.status(database)["last_error"] or ""), "it is said, and waited for")
        host.sql("INSERT INTO t (x) VALUES ('meanwhile')")
        assert host.status(database)["state"] == "waiting" and path.is_dir()
        path.rmdir()
    goes_on(host, replica, database, tmp_path)


def test_all_of_it_while_it_is_open(new_host, replica, tmp_path):
    database = tmp_path / "app.db"
    host = begin(new_host, replica, database)
    shutil.rmtree(tmp_path / "app.db-walferry")
    goes_on(host, replica, database, tmp_path)


def test_spool_lets_go_of_shipped_files_once_the_state_can_be_saved(new_host, new_replica, tmp_path):
    """A full disk keeps the state from being saved a few times; the spool does not keep the files for good."""
    replica, database = new_replica(), tmp_path / "app.db"
    host = new_host("system", replica)
    host.open(database)
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
    host.sync()
    spool, in_the_way = (Path("%s-walferry" % database) / name for name in ("spool", "state.tmp"))
    in_the_way.mkdir()
    for _ in range(3):
        host.sql("INSERT INTO t VALUES (randomblob(200000))")
        host.sync()
    left = [path.stat().st_size for path in spool.glob("*.ltx")]
    assert len(left) == 3, "the state on the disk has not passed them"
    state = host.status(database)
    assert (state["pending_bytes"], state["spool_files"]) == (sum(left), 3), state
    in_the_way.rmdir()
    host.sql("INSERT INTO t VALUES ('room again')")
    host.sync()
    assert list(spool.glob("*.ltx")) == []
    assert host.status(database)["pending_bytes"] == 0
    assert_restores(replica, database, tmp_path)


# ---- what waits in the spool -----------------------------------------------------------------


def waiting(host, database):
    """A closed file waits for the store, and captured pieces behind it: sorted paths of both kinds."""
    spool = Path("%s-walferry" % database) / "spool"

    def both():
        host.sql("INSERT INTO t (x) VALUES (randomblob(9000))", "PRAGMA wal_checkpoint(RESTART)")
        return list(spool.glob("0*.ltx")) and list(spool.glob("open-*.ltx"))

    until(both, "a closed file and a piece wait")
    return {"closed": sorted(spool.glob("0*.ltx")), "piece": sorted(spool.glob("open-*.ltx"))}


@pytest.fixture
def cut_off(new_host, replica, tmp_path):
    """A host whose store is away; the store, to be brought back."""
    database, away = tmp_path / "app.db", tmp_path / "away"
    host = begin(new_host, replica, database, many=False)

    def back():
        replica.folder.unlink()
        away.rename(replica.folder)

    replica.folder.rename(away)
    replica.folder.write_text("in the way of a folder")
    return host, database, back


def is_sent_whole(host, replica, database, folder):
    host.sync()
    state = host.status(database)
    assert (state["state"], state["last_error"], state["lag_ms"]) == ("streaming", None, 0), state
    assert_restores(replica, database, folder)
    assert len(full_images(replica)) == 2
    goes_on(host, replica, database, folder)
    assert len(full_images(replica)) == 2


@pytest.mark.parametrize("of", ["closed", "piece"])
def test_spool_of_a_running_process(of, harm, cut_off, replica, tmp_path):
    host, database, back = cut_off
    path = waiting(host, database)[of][0]
    harm(path)
    before = host.status(database)["lag_ms"]
    until(lambda: host.status(database)["lag_ms"] > before, "the lag goes on")
    back()
    is_sent_whole(host, replica, database, tmp_path)
    assert host.status(database)["found"] in ("spool-unreadable", "table-disproved")


@pytest.mark.parametrize("of", ["closed", "piece"])
def test_spool_that_the_disk_does_not_give_back(of, misfortune, new_host, replica, tmp_path):  # noqa: F811
    database, away = tmp_path / "app.db", tmp_path / "away"
    host = begin(new_host, replica, database, many=False, **misfortune.env)
    replica.folder.rename(away)
    replica.folder.write_text("in the way of a folder")
    path = waiting(host, database)[of][0]
    misfortune.set("torn", path)
    replica.folder.unlink()
    away.rename(replica.folder)
    is_sent_whole(host, replica, database, tmp_path)
    assert host.status(database)["found"] == "spool-unreadable"
    assert Path("%s.unusable" % path).exists()


def test_lag_goes_on_when_the_folder_is_deleted_while_the_store_is_away(cut_off, replica, tmp_path):
    host, database, back = cut_off
    host.sql("INSERT INTO t (x) VALUES ('waits')")
    until(lambda: host.status(database)["lag_ms"] >= 1000, "the commit waits")
    before = host.status(database)["lag_ms"]
    shutil.rmtree("%s-walferry" % database)
    until(lambda: host.status(database)["found"] == "state-deleted", "the folder is missed")
    assert host.status(database)["lag_ms"] >= before
    back()
    host.sync()
    assert host.status(database)["lag_ms"] == 0
    assert_restores(replica, database, tmp_path)


def test_program_that_only_reads_writes_no_state(new_host, replica, tmp_path):
    """It would wait for the disk when it ends."""
    database = tmp_path / "app.db"
    state = tmp_path / "app.db-walferry" / "state"
    writer = new_host("system", replica).open(database)
    writer.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
    writer.sync()
    writer.close()
    assert writer.finish() == 0
    before = state.stat()
    for _ in range(3):
        reader = new_host("system", replica).open(database)
        reader.value("SELECT count(*) FROM t")
        reader.close()
        assert reader.finish() == 0
    assert (state.stat().st_ino, state.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert_restores(replica, database, tmp_path)
