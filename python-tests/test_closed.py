"""A program closes its last connection while the database is read for an image. What it finds is what SQLite leaves
there without walferry: all that was committed in one file, which it may copy, replace or remove."""

import contextlib
import os
import shutil
import sqlite3
import time

import pytest

from harness import S3Replica, assert_restores, full_images, restore, rows
from sidecar import wait_for


@pytest.fixture
def replica(proxy, s3, tmp_path):
    return S3Replica(s3, "closed/%s" % tmp_path.name, proxy.endpoint)


class Slow:
    """A store that takes an image as slowly as a test wants it."""

    def __init__(self, proxy):
        self.proxy, self.images = proxy, 0
        proxy.rule("hold", method="PUT", path="partNumber")

    def reads(self):
        """Waits until one more image has begun: most of the database is still to be read."""
        self.images += 1
        wait_for(self.has_begun, lambda: str([entry["target"] for entry in self.proxy.log()]))

    def has_begun(self):
        asked = [entry["target"] for entry in self.proxy.log()]
        begun = [n for n, target in enumerate(asked) if "?uploads" in target]
        if len(begun) < self.images:
            # The one before sees that its read was ended when a part has gone.
            self.proxy.ask("POST", "/release")
            return False
        return any("partNumber" in target for target in asked[begun[self.images - 1]:])

    def goes_on(self):
        self.proxy.heal()
        self.proxy.ask("POST", "/release")


@pytest.fixture
def slow(proxy):
    return Slow(proxy)


def large(path, megabytes=64, *, mode="WAL"):
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript("PRAGMA journal_mode=%s; CREATE TABLE t (x); CREATE TABLE big (x)" % mode)
        with db:
            db.executemany("INSERT INTO big VALUES (randomblob(1000000))", [()] * megabytes)
    return path


def beside(path):
    """The sizes of -wal and -shm, of those that are there."""
    found = {}
    for name in "-wal", "-shm":
        with contextlib.suppress(FileNotFoundError):
            found[name] = os.stat(str(path) + name).st_size
    return found


def in_the_file(path):
    """The rows that the file alone has."""
    with contextlib.closing(sqlite3.connect("file:%s?immutable=1" % path, uri=True)) as db:
        return db.execute("SELECT x FROM t").fetchall()


def mappings(host, path):
    """How many files of this path the process has mapped."""
    with open("/proc/%d/maps" % host.process.pid) as maps:
        return sum(line.rstrip().endswith(str(path)) for line in maps)


def dump(host):
    return host.sql("SELECT x FROM t"), host.sql("SELECT count(*), sum(length(x)) FROM big"), \
        host.sql("PRAGMA integrity_check")


def open_and_close(host, database, slow):
    """Until a read goes on all the same, which would never come to its end otherwise."""
    for n in range(6):
        if n < 3:
            slow.reads()
        host.sql("INSERT INTO t VALUES (%d)" % n)
        host.close()
        host.open(database)


def test_the_file_is_whole(new_host, replica, slow, tmp_path):
    database = large(tmp_path / "app.db")
    host = new_host("system", replica, env={"WALFERRY_SHUTDOWN_TIMEOUT": "500ms"}).open(database)
    host.sql("SELECT 1 FROM t")
    slow.reads()
    host.sql("INSERT INTO t VALUES ('last')")
    host.close()
    assert beside(database) == {}
    assert in_the_file(database) == [("last",)]
    # Nor does it make any of them for the next one.
    slow.reads()
    assert beside(database) == {}
    host.finish()
    assert beside(database) == {}
    assert in_the_file(database) == [("last",)]
    said = (tmp_path / "walferry.log").read_text()
    assert "the full image begins anew" in said and " ERROR: " not in said, said
    warnings = [line for line in said.splitlines() if " WARN: " in line]
    assert len(warnings) == 1 and "not everything was shipped in 500ms" in warnings[0], warnings


@pytest.mark.parametrize("stays", [False, True], ids=["closed", "open"])
def test_another_program_opens_it_meanwhile(stays, new_host, replica, slow, tmp_path):
    """What was read of a file that nobody had open is not believed any more."""
    database = large(tmp_path / "app.db")
    host = new_host("system", replica).open(database)
    host.sql("INSERT INTO t VALUES ('first')")
    slow.reads()
    host.close()
    slow.reads()
    with contextlib.closing(sqlite3.connect(database)) as other:
        with other:
            other.execute("INSERT INTO t VALUES ('others')")
            other.execute("UPDATE big SET x = randomblob(1000000) WHERE rowid > 60")
        other.execute("PRAGMA wal_checkpoint")
        if not stays:
            other.close()
        slow.goes_on()
        if not stays:
            # The other program's close found it in its way.
            wait_for(lambda: beside(database) == {}, lambda: str(beside(database)))
            assert in_the_file(database) == [("first",), ("others",)]
        host.open(database)
        host.sync()
    host.close()
    host.finish()
    assert_restores(replica, database, tmp_path)
    assert in_the_file(database) == [("first",), ("others",)]


def test_its_content_is_replaced_and_nobody_opens_it(new_host, replica, slow, tmp_path):
    """The file is the same one, and has the same size."""
    database, other = large(tmp_path / "app.db"), large(tmp_path / "new.db")
    host = new_host("system", replica).open(database)
    host.sql("SELECT 1 FROM t")
    slow.reads()
    host.close()
    slow.reads()
    shutil.copyfile(other, database)
    slow.goes_on()
    wait_for(lambda: full_images(replica), lambda: (tmp_path / "walferry.log").read_text())
    assert_restores(replica, other, tmp_path)


def test_content_replaced_during_a_read_that_outlasts_the_close_is_read_again(
        new_host, replica, slow, tmp_path):
    database, other = large(tmp_path / "app.db"), large(tmp_path / "new.db")
    host = new_host("system", replica).open(database)
    open_and_close(host, database, slow)
    host.close()
    assert "-wal" in beside(database)
    # An operator who puts a backup in place: the files beside the database go, and the file is overwritten.
    for name in "-wal", "-shm":
        os.unlink(str(database) + name)
    shutil.copyfile(other, database)
    slow.goes_on()
    wait_for(lambda: full_images(replica), lambda: (tmp_path / "walferry.log").read_text())
    assert_restores(replica, other, tmp_path)


@pytest.mark.parametrize("how, walks", [
    ("mv", "begun-anew"), ("cp", "begun-anew"), ("cp-with-wal", "begun-anew"), ("made-anew", "begun-anew"),
    ("made-anew", "kept")])
def test_another_database_takes_its_place(how, walks, new_host, replica, slow, tmp_path):
    database, other = large(tmp_path / "app.db"), tmp_path / "new.db"
    host = new_host("system", replica).open(database)
    host.sql("INSERT INTO t VALUES ('before')")
    if walks == "kept":
        open_and_close(host, database, slow)
    else:
        slow.reads()
    host.sql("INSERT INTO t VALUES ('last')")
    host.close()
    if walks == "begun-anew":
        slow.reads()
    if how == "cp-with-wal":
        # As they are in the middle of the life of a program.
        with contextlib.closing(sqlite3.connect(large(tmp_path / "open.db", 8))) as db, db:
            db.execute("INSERT INTO t VALUES ('new')")
            db.commit()
            for name in "", "-wal":
                shutil.copyfile(tmp_path / ("open.db" + name), str(other) + name)
    elif how != "made-anew":
        large(other, 8, mode="DELETE")
    if how == "mv":
        other.rename(database)
    elif how == "made-anew":
        database.unlink()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(str(database) + "-wal")
    else:
        for name in ["", "-wal"] if how == "cp-with-wal" else [""]:
            shutil.copyfile(str(other) + name, str(database) + name)
    host.open(database)
    if how == "made-anew":
        host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)", "CREATE TABLE big (x)",
                 "INSERT INTO big VALUES (zeroblob(8000000))")
    # SQLite has truncated it, and extended it, for the one that has it now.
    host.sql("SELECT 1 FROM t")
    assert mappings(host, str(database) + "-shm") == 1
    rows_there = [["new"]] if how == "cp-with-wal" else []
    assert dump(host) == (rows_there, [[8 if how != "made-anew" else 1, 8000000]], [["ok"]])
    host.sql("INSERT INTO t VALUES ('after')")
    assert dump(host)[2] == [["ok"]]
    slow.goes_on()
    host.sync()
    host.close()
    host.finish()
    assert in_the_file(database) == [tuple(row) for row in rows_there] + [("after",)]
    assert_restores(replica, database, tmp_path)


def test_a_program_that_opens_and_closes_all_the_time_gets_its_image(new_host, replica, slow, tmp_path):
    database = large(tmp_path / "app.db")
    host = new_host("system", replica).open(database)
    open_and_close(host, database, slow)
    host.close()
    slow.goes_on()
    # Nobody has it open by then.
    wait_for(lambda: beside(database).get("-wal", 0) == 0, lambda: str(beside(database)))
    assert in_the_file(database) == [(n,) for n in range(6)]
    host.open(database)
    host.sync()
    assert rows(restore(replica, tmp_path / "out.db"), "SELECT x FROM t") == [(n,) for n in range(6)]
