"""The extension keeps the replica's history up by itself: joins, snapshots, retention."""

import json
import re
import subprocess
import time
import urllib.parse

import pytest

from harness import (S3Replica, assert_restores, assert_same_pages, full_images, litestream_restore, restore,
                     txids, walferry)

# Windows so short that a test sees each of them pass.
QUICK = {"WALFERRY_SYNC_INTERVAL": "0", "WALFERRY_LEVELS": "200ms,600ms,1200ms",
         "WALFERRY_SNAPSHOT_INTERVAL": "2s"}


@pytest.fixture(params=["file", "s3"])
def replica(request, new_replica):
    return new_replica(request.param)


class Writer:
    """Commits, and knows what the database was at each TXID."""

    def __init__(self, host, replica, folder):
        self.host, self.replica, self.folder, self.states, self.n = host, replica, folder, {}, 0
        host.open(folder / "app.db")
        host.sql("PRAGMA auto_vacuum=FULL", "PRAGMA journal_mode=WAL",
                 "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, x)")

    def write(self):
        self.n += 1
        self.host.sql("INSERT INTO t (x) VALUES (randomblob(%d))" % (500 + 977 * self.n % 9000))
        if self.n % 7 == 4:
            self.host.sql("DELETE FROM t WHERE id % 3 = 0")  # the database shrinks
        txid = int(self.host.sync(), 16)
        state = restore(self.replica, self.folder / "state.db", txid)
        self.states[txid] = state.read_bytes()
        state.unlink()

    def until(self, what, seconds=120):
        """Writes until the status says so: what is due is done when the next commit comes."""
        end = time.monotonic() + seconds
        while True:
            self.write()
            status = self.host.status(self.folder / "app.db")
            if what(status):
                return status
            assert time.monotonic() < end, (status, self.replica.keys())


def levels(replica):
    return {level for level, _first, _last in replica.keys()}


def compare(writer, folder):
    """What is still there is what it was, to us and to Litestream."""
    # The first files of a writer stay behind, so that none that was away for long takes their place.
    first = min(last for level, _first, last in writer.replica.keys() if level == 9)
    left = [txid for txid in txids(writer.replica) if txid >= first]
    assert max(left) == max(writer.states)
    for txid in left:
        if txid not in writer.states:
            continue  # what was sent before the first look
        for name, take in (("ours", restore(writer.replica, folder / "ours.db", txid)),
                           ("Litestream", litestream_restore(folder, writer.replica,
                                                             folder / "theirs.db", txid))):
            assert_same_pages(writer.states[txid], take.read_bytes(), "%s, TXID %x" % (name, txid))
            take.unlink()
    done = walferry("verify", "--json", writer.replica.url, env=writer.replica.reading)
    assert json.loads(done.stdout)["defects"] == []


def test_the_extension_joins_and_removes(replica, new_host, tmp_path):
    host = new_host("system", replica, env=dict(QUICK, WALFERRY_RETENTION="4s",
                                                WALFERRY_L0_RETENTION="2s"))
    writer = Writer(host, replica, tmp_path)
    status = writer.until(lambda status: status["removed"] > 20)
    assert levels(replica) == {0, 1, 2, 3, 9}
    assert status["history_error"] is None and status["state"] == "streaming"
    # A snapshot is put together from what the store has, and proves it.
    assert 1 < int(status["proven"], 16) < int(status["txid"], 16)
    assert status["images"] == 1
    compare(writer, tmp_path)


def levels_listed(requests):
    """The levels of which listings were asked for, each time."""
    asked = (urllib.parse.unquote(entry["target"]) for entry in requests if "list-type" in entry["target"])
    return sorted(int(found[1]) for found in (re.search(r"/000(\d)/", target) for target in asked) if found)


def test_the_next_process_goes_on_without_a_listing(new_host, s3, proxy, tmp_path):
    env = dict(QUICK, WALFERRY_SNAPSHOT_INTERVAL="off")  # where one cannot be planned, the replica is listed
    replica = S3Replica(s3, "upkeep/%s" % tmp_path.name, proxy.endpoint)
    host = new_host("system", replica, env=env)
    writer = Writer(host, replica, tmp_path)
    writer.until(lambda status: {1, 2} <= levels(replica))
    host.finish()
    host, before = new_host("apsw", replica, env=env), len(proxy.log())
    host.open(tmp_path / "app.db")
    host.sql("INSERT INTO t (x) VALUES (1)")
    host.sync()
    # One look at what is there. What is due meanwhile, as joins, needs no listing.
    assert levels_listed(proxy.log()[before:]) == list(range(10))
    writer.host, joined = host, {key for key in replica.keys() if key[0] == 1}
    writer.until(lambda _status: {key for key in replica.keys() if key[0] == 1} > joined)
    assert levels_listed(proxy.log()[before:]) == list(range(10))
    compare(writer, tmp_path)


def test_a_bucket_that_nothing_is_deleted_from(new_host, replica, tmp_path):
    host = new_host("system", replica, env=dict(QUICK, WALFERRY_DELETES="off",
                                                WALFERRY_RETENTION="1s", WALFERRY_L0_RETENTION="1s"))
    writer = Writer(host, replica, tmp_path)
    writer.until(lambda status: 9 in levels(replica) and int(status["txid"], 16) > 40)
    assert {first for level, first, _last in replica.keys() if level == 0} >= set(range(2, 40))
    assert host.status(tmp_path / "app.db")["removed"] == 0


def test_a_replica_is_proven_while_it_is_written(replica, new_host, tmp_path):
    host = new_host("system", replica, env=dict(QUICK, WALFERRY_SNAPSHOT_INTERVAL="off",
                                                WALFERRY_VALIDATION_INTERVAL="500ms"))
    writer = Writer(host, replica, tmp_path)
    status = writer.until(lambda status: status["proven"] and int(status["proven"], 16) > 5)
    assert status["proven_at"].startswith("20") and 9 in levels(replica)
    # Somebody damages a file that every state needs.
    first = next(key for key in replica.keys() if key[0] == 9)
    damage(replica, first)
    status = damaged(writer)
    assert "9/" in status["history_error"]
    # The application does not notice, and the log goes on.
    assert status["state"] == "streaming" and status["lag_ms"] == 0


def damaged(writer):
    end = time.monotonic() + 60
    while True:
        writer.host.sql("INSERT INTO t (x) VALUES (1)")
        writer.host.sync()
        status = writer.host.status(writer.folder / "app.db")
        if status["history_error"]:
            return status
        assert time.monotonic() < end, status


def damage(replica, key):
    data = bytearray(replica.read(*key))
    data[len(data) // 2] ^= 1
    replica.overwrite(*key, bytes(data))


@pytest.mark.parametrize("setting, value", [("levels", "5m,30s"), ("retention", "soon"),
                                            ("deletes", "maybe"), ("snapshot-interval", "daily")])
def test_settings_that_cannot_be(new_host, new_replica, tmp_path, setting, value):
    replica = new_replica("file")
    name = "WALFERRY_" + setting.upper().replace("-", "_")
    host = new_host("system", replica, env={name: value})
    host.open(tmp_path / "app.db")
    status = host.status(tmp_path / "app.db")
    assert status["state"] == "error" and setting in status["last_error"]


def test_a_smaller_database_can_be_an_image(new_host, replica, tmp_path):
    """Litestream's VFS follows a file with fewer pages only if that holds all of them."""
    host = new_host("system", replica, env={"WALFERRY_SHRINK_IMAGES": "on"})
    host.open(tmp_path / "app.db")
    host.sql("PRAGMA auto_vacuum=FULL", "PRAGMA journal_mode=WAL",
             "CREATE TABLE t (id INTEGER PRIMARY KEY, x)",
             "INSERT INTO t (x) VALUES (randomblob(90000))")
    before = int(host.sync(), 16)
    host.sql("INSERT INTO t (x) VALUES (randomblob(90000))")
    assert int(host.sync(), 16) == before + 1
    images = full_images(replica)
    host.sql("DELETE FROM t WHERE id = 1")
    smaller = int(host.sync(), 16)
    assert full_images(replica) == sorted(images + [(0, smaller, smaller)])
    assert_restores(replica, tmp_path / "app.db", tmp_path)


@pytest.mark.parametrize("writes", [2, 5])
def test_a_machine_that_was_set_back(writes, replica, new_host, tmp_path):
    """A backup of the whole machine is put back: what follows it in the log is joined and removed. The
    first files of a log are not, and look like its end to the beginning of all."""
    quick = dict(QUICK, WALFERRY_RETENTION="3s", WALFERRY_L0_RETENTION="1s")
    host = new_host("system", replica, env=quick)
    writer = Writer(host, replica, tmp_path)
    for _ in range(writes):
        writer.write()
    host.finish()
    taken, backup = max(writer.states), tmp_path / "backup"
    backup.mkdir()
    files = [path for path in tmp_path.iterdir() if path.name.startswith("app.db")]
    for path in files:
        subprocess.run(["cp", "-a", path, backup], check=True)
    writer.host = host = new_host("system", replica, env=quick)
    host.open(tmp_path / "app.db")
    writer.until(lambda _status: (0, taken + 1, taken + 1) not in replica.keys())
    host.finish()
    newest = max(txids(replica))
    for path in [path for path in tmp_path.iterdir() if path.name.startswith("app.db")]:
        subprocess.run(["rm", "-r", path], check=True)
    for path in backup.iterdir():
        subprocess.run(["cp", "-a", path, tmp_path], check=True)
    host = new_host("system", replica, env=quick)
    host.open(tmp_path / "app.db")
    host.sql("INSERT INTO t (x) VALUES ('after the backup was put back')")
    assert int(host.sync(), 16) > newest
    assert (0, taken + 1, taken + 1) not in replica.keys()
    assert_restores(replica, tmp_path / "app.db", tmp_path)


def test_a_machine_that_was_set_back_with_its_memory(replica, new_host, tmp_path):
    """Its process goes on in the log's past, has looked at the replica a moment ago, and finds its next
    file's name free. No clock tells it: what it lists for a join or for retention does."""
    quick = dict(QUICK, WALFERRY_RETENTION="3s", WALFERRY_L0_RETENTION="1s")
    asleep = new_host("system", replica, env=quick)
    writer = Writer(asleep, replica, tmp_path)
    for _ in range(5):
        writer.write()
    taken, later = max(writer.states), tmp_path / "later"
    later.mkdir()
    for path in [path for path in tmp_path.iterdir() if path.name.startswith("app.db")]:
        subprocess.run(["cp", "-a", path, later], check=True)
    # What the machine did until it was put back.
    awake = new_host("system", replica, env=quick)
    awake.open(later / "app.db")
    for _ in range(200):
        awake.sql("INSERT INTO t (x) VALUES (1)")
        awake.sync()
    writer.host, writer.folder = awake, later
    writer.until(lambda _status: (0, taken + 1, taken + 1) not in replica.keys())
    assert awake.finish() == 0
    newest = max(txids(replica))
    written = 0
    while int(asleep.sync(), 16) <= newest:
        written += 1
        assert written <= 150, "it goes on in the past"
        asleep.sql("INSERT INTO t (x) VALUES ('again')")
        time.sleep(0.03)  # the windows' time is the commits'
    assert_restores(replica, tmp_path / "app.db", tmp_path)


def test_joins_go_on_behind_what_a_replica_has_lost(new_host, new_replica, tmp_path):
    """Somebody deletes the newest files: a full image takes their place, and what follows is joined."""
    replica = new_replica("file")
    host = new_host("system", replica, env=QUICK)
    writer = Writer(host, replica, tmp_path)
    writer.until(lambda _status: {1, 2} <= levels(replica))
    for _ in range(3):
        writer.write()
    host.finish()
    joined = max(last for level, _first, last in replica.keys() if level > 0)
    lost = [key for key in replica.keys() if key[2] > joined]
    for key in lost:
        replica.path(*key).unlink()
    writer.host = host = new_host("apsw", replica, env=QUICK)
    host.open(tmp_path / "app.db")
    newest = max(last for _level, _first, last in lost)
    writer.until(lambda _status: any(level == 2 and first > newest for level, first, _last in replica.keys()))
    assert_restores(replica, tmp_path / "app.db", tmp_path)
    # Nothing of ours is across the hole.
    gone = {key[2] for key in lost}
    across = [key for key in replica.keys() if 0 < key[0] < 9 and gone & set(range(key[1], key[2] + 1))]
    assert across == []


def file_of(replica, key):
    level, first, last = key
    return replica.folder / "ltx" / str(level) / ("%016x-%016x.ltx" % (first, last))


def test_a_file_that_is_missing_is_told_until_it_is_there(new_host, new_replica, tmp_path):
    replica = new_replica()
    host = new_host("system", replica, env=dict(QUICK, WALFERRY_VALIDATION_INTERVAL="300ms",
                                                WALFERRY_LEVELS="off", WALFERRY_SNAPSHOT_INTERVAL="off"))
    writer = Writer(host, replica, tmp_path)
    writer.until(lambda status: status["proven"] and int(status["txid"], 16) > 5)
    file = file_of(replica, (0, 4, 4))
    file.rename(tmp_path / "away")

    def write():
        host.sql("INSERT INTO t (x) VALUES (1)")
        host.sync()
        return host.status(tmp_path / "app.db")["history_error"]

    def wait(what):
        end = time.monotonic() + 120
        while not what(write()):
            assert time.monotonic() < end, host.status()
    says = "transactions 0000000000000004 to 0000000000000004 are missing"
    wait(lambda error: error and says in error)
    for _ in range(30):
        time.sleep(0.03)  # windows pass
        assert says in write()
    (tmp_path / "away").rename(file)
    wait(lambda error: error is None)


def test_a_file_that_is_damaged_costs_nothing_that_others_have(new_host, new_replica, tmp_path):
    """Joins, snapshots and proofs do without it, and nothing goes because of what it says it has."""
    replica = new_replica()
    # Of one level: else what is damaged may be joined to the next before anybody reads it.
    host = new_host("system", replica, env=dict(QUICK, WALFERRY_VALIDATION_INTERVAL="300ms",
                                                WALFERRY_LEVELS="200ms", WALFERRY_SNAPSHOT_INTERVAL="off"))
    writer = Writer(host, replica, tmp_path)
    writer.until(lambda _status: 1 in levels(replica))
    key = min(key for key in replica.keys() if key[0] == 1)
    damaged = file_of(replica, key)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    named = "%d/%016x-%016x.ltx of the replica is damaged" % key
    status = writer.until(lambda status: named in (status["history_error"] or ""))
    since = int(status["txid"], 16)
    status = writer.until(lambda status: int(status["proven"] or "0", 16) > since)
    assert named in status["history_error"] and status["images"] == 1
    done = walferry("retain", "--retention", "0s", "--l0-retention", "0s", replica.url)
    assert "is damaged" in done.stderr, done
    assert_restores(replica, tmp_path / "app.db", tmp_path)
