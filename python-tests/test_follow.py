"""Copies that follow a replica: the extension writes, the program follows, plain SQLite reads."""

import json
import signal
import sqlite3
import subprocess
import threading

import pytest

from harness import (OK, PROGRAM, REFUSED, assert_same_pages, check_integrity, clean_environment,
                     live_image, walferry)


class Follower:
    """The program with --follow, and what it says."""

    def __init__(self, replica, path, env=None):
        self.program = subprocess.Popen(
            [str(PROGRAM), "restore", "-f", "-follow-interval", "50ms", "-json", "-o", str(path), replica.url],
            env=dict(clean_environment(), **(env or replica.env)), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)

    def until(self, **wanted):
        """The first word of this kind."""
        for line in self.program.stdout:
            said = json.loads(line)
            if all(said.get(name) == value for name, value in wanted.items()):
                return said
        raise AssertionError("it ended: %s" % self.program.stderr.read())

    def reach(self, txid):
        for line in self.program.stdout:
            said = json.loads(line)
            if said.get("txid") == txid:
                return said
        raise AssertionError("it ended: %s" % self.program.stderr.read())

    def end(self, how=signal.SIGTERM):
        self.program.send_signal(how)
        out, _ = self.program.communicate(timeout=60)
        assert self.program.returncode == OK
        return json.loads(out.splitlines()[-1])


@pytest.fixture
def follow():
    running = []

    def start(*args, **kwargs):
        running.append(Follower(*args, **kwargs))
        return running[-1]

    yield start
    for follower in running:
        if follower.program.poll() is None:
            follower.program.kill()
        follower.program.wait()


def look(copy, sql):
    """As any reader, with the copy's WAL."""
    connection = sqlite3.connect("file:%s?mode=ro" % copy, uri=True)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def original(copy, image):
    """The copy's pages with what its own SQLite has written into page 1 taken from the original."""
    found = bytearray(live_image(copy))
    for at, length in ((18, 2), (24, 4), (64, 4), (92, 8)):
        found[at:at + length] = image[at:at + length]
    return bytes(found)


@pytest.mark.parametrize("scheme", ("file", "s3"))
def test_a_copy_beside_its_readers(scheme, new_host, new_replica, tmp_path, follow):
    replica, path = new_replica(scheme), tmp_path / "app.db"
    host = new_host("apsw", replica)
    host.open(path).sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (id INTEGER PRIMARY KEY, x)",
                        "CREATE TABLE total (n)", "INSERT INTO total VALUES (0)")
    host.sync()
    copy = tmp_path / "copy.db"
    follower = follow(replica, copy)
    follower.until(event="restored")

    # The sqlite3 of the system, each time a connection of its own, without a busy timeout.
    stop, broken = threading.Event(), []

    def read():
        last = 0
        while not stop.is_set():
            out = subprocess.run(
                ["sqlite3", "-batch", "-readonly", str(copy),
                 "BEGIN; SELECT n FROM total; SELECT count(*) FROM t; SELECT coalesce(sum(id), 0) FROM t; COMMIT"],
                text=True, capture_output=True)
            try:
                n, count, total = map(int, out.stdout.split())
                assert not out.stderr and count == n and total == n * (n + 1) // 2 and n >= last
                last = n
            except Exception as error:  # noqa: BLE001: it is the test's own thread
                broken.append((out.stdout, out.stderr, error))
                return

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for n in range(1, 121):
        host.sql("BEGIN", "INSERT INTO t VALUES (%d, randomblob(2000))" % n, "UPDATE total SET n = %d" % n, "COMMIT")
    follower.reach(host.sync())
    stop.set()
    for reader in readers:
        reader.join()
    assert not broken, broken
    image = live_image(path)
    assert_same_pages(image, original(copy, image))
    host.sql("DELETE FROM t WHERE id > 10", "UPDATE total SET n = 10", "VACUUM")
    txid = host.sync()
    follower.reach(txid)
    image = live_image(path)
    assert_same_pages(image, original(copy, image))
    assert follower.end(signal.SIGINT)["txid"] == txid
    check_integrity(copy)

    # Nothing is left but the database and what is known of it.
    assert sorted(p.name for p in tmp_path.glob("copy.db*")) == ["copy.db", "copy.db-walferry"]
    said = json.loads(walferry("status", "--json", copy).stdout)[0]
    assert (said["state"], said["txid"]) == ("following", txid)


def test_the_next_file_is_asked_for_by_name(new_host, new_replica, tmp_path, follow, proxy):
    replica, path = new_replica("s3"), tmp_path / "app.db"
    host = new_host("apsw", replica)
    host.open(path).sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
    host.sync()
    copy = tmp_path / "copy.db"
    replica.env = dict(replica.reading, AWS_ENDPOINT_URL=proxy.endpoint)
    follower = follow(replica, copy)
    follower.until(event="restored")
    host.sql("INSERT INTO t VALUES (1)")
    follower.reach(host.sync())
    proxy.ask("DELETE", "/log")
    for n in range(20):
        host.sql("INSERT INTO t VALUES (%d)" % n)
        follower.reach(host.sync())
    asked = proxy.log()
    listings = [entry for entry in asked if "list-type" in entry["target"]]
    # A listing at the start may still have been on its way.
    assert len(asked) >= 20 and len(listings) <= 10, listings

    # The store goes away, and comes back.
    rule = proxy.rule("reset")
    host.sql("INSERT INTO t VALUES (99)")
    txid = host.sync()
    proxy.wait(rule)
    follower.until(event="trouble")
    assert look(copy, "SELECT count(*) FROM t") == [(21,)]
    proxy.heal()
    follower.reach(txid)
    follower.end()


def test_kills(new_host, new_replica, tmp_path, follow, rng):
    replica, path = new_replica(), tmp_path / "app.db"
    host = new_host("apsw", replica)
    host.open(path).sql("PRAGMA journal_mode=WAL", "CREATE TABLE log (n INTEGER PRIMARY KEY, body BLOB)")
    host.sync()
    copy, last = tmp_path / "copy.db", 0
    for n in range(12):
        follower = follow(replica, copy)
        first = follower.program.stdout.readline()
        assert first, follower.program.stderr.read()
        for _ in range(rng.randrange(6)):
            host.sql("INSERT INTO log (body) VALUES (randomblob(300000))")
        follower.program.kill()
        follower.program.wait()
        assert look(copy, "PRAGMA integrity_check") == [("ok",)]
        count = look(copy, "SELECT count(*) FROM log")[0][0]
        assert count >= last
        last = count
    txid = host.sync()
    follower = follow(replica, copy)
    follower.reach(txid)
    follower.end()
    image = live_image(path)
    assert_same_pages(image, original(copy, image))


def test_a_copy_is_only_to_be_read(new_host, replica, tmp_path, follow):
    host = new_host("apsw", replica)
    host.open(tmp_path / "app.db").sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
    host.sync()
    copy = tmp_path / "copy.db"
    follower = follow(replica, copy)
    follower.until(event="restored")
    subprocess.run(["sqlite3", str(copy), "INSERT INTO t VALUES (77)"], check=True)
    host.sql("INSERT INTO t VALUES (1)")
    host.sync()
    _, said = follower.program.communicate(timeout=60)
    assert follower.program.returncode == REFUSED and "somebody else has written" in said
    assert "only to be read" in said
    assert look(copy, "SELECT x FROM t") == [(77,)]
