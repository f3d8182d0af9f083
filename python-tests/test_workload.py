"""Random work from one seed: each TXID on the replica is a committed state, in order.

Every transaction raises a counter, so each committed state says which one it is. The digest of the
database is noted after each commit; whatever a restore brings must be one of those states, whole.
"""

import hashlib

import pytest

from harness import (HOSTS, assert_restores, check_integrity, full_images, restore, rows, txids)

STEPS = 70


class Work:
    """Random statements on two connections of one database, and what the database then holds."""

    def __init__(self, host, database, rng):
        self.host, self.database, self.rng = host, database, rng
        self.states, self.tables = {}, 0

    def start(self, page_size):
        self.host.open(self.database).open(self.database, "second")
        vacuum = self.rng.choice(("NONE", "FULL", "INCREMENTAL"))
        self.host.sql("PRAGMA page_size=%d" % page_size, "PRAGMA auto_vacuum=" + vacuum,
                      "PRAGMA journal_mode=WAL", "BEGIN", "CREATE TABLE counter (n)",
                      "INSERT INTO counter VALUES (0)", "CREATE TABLE t0 (id INTEGER PRIMARY KEY, x)",
                      "COMMIT")
        self.note(0)
        for conn in ("main", "second"):
            self.host.sql("PRAGMA wal_autocheckpoint=%d" % self.rng.choice((0, 3, 40, 1000)),
                          "PRAGMA cache_size=%d" % self.rng.choice((5, 2000)),
                          "PRAGMA synchronous=%s" % self.rng.choice(("OFF", "NORMAL", "FULL")),
                          "PRAGMA mmap_size=%d" % self.rng.choice((0, 1 << 26)), conn=conn)

    def note(self, number):
        self.states[number] = self.host.call("dump")

    def step(self, number):
        conn = self.rng.choice(("main", "second"))
        for statement in self.between():
            self.host.sql(statement, conn=conn)
        self.host.sql("BEGIN IMMEDIATE", "UPDATE counter SET n = %d" % number, conn=conn)
        for _ in range(self.rng.choice((1, 1, 2, 5))):
            self.host.sql(*self.change(), conn=conn)
        self.host.sql("COMMIT", conn=conn)
        self.note(number)
        if self.rng.random() < 0.1:
            self.host.sync(conn)

    def change(self):
        table = "t%d" % self.rng.randint(0, self.tables)
        size = self.rng.choice((5, 300, 4000, 70000))
        pick = self.rng.randrange(8)
        if pick < 3:
            return ["INSERT INTO %s (x) VALUES (randomblob(%d))" % (table, size)
                    for _ in range(self.rng.randint(1, 8))]
        if pick == 3:
            return ["UPDATE %s SET x = randomblob(%d) WHERE id %% 4 = 1" % (table, size)]
        if pick == 4:
            return ["DELETE FROM %s WHERE id %% %d = 0" % (table, self.rng.randint(1, 4))]
        if pick == 5:
            return ["SAVEPOINT s", "INSERT INTO %s (x) VALUES (randomblob(90000))" % table,
                    "DELETE FROM %s WHERE id %% 2" % table, "ROLLBACK TO s", "RELEASE s",
                    "INSERT INTO %s (x) VALUES (1)" % table]
        if pick == 6:
            self.tables += 1
            return ["CREATE TABLE t%d (id INTEGER PRIMARY KEY, x)" % self.tables,
                    "CREATE INDEX i%d ON t%d (length(x))" % (self.tables, self.tables)]
        return ["UPDATE %s SET x = 'short'" % table]

    def between(self):
        """What happens outside the numbered transactions, and changes no content."""
        pick = self.rng.randrange(14)
        if pick == 0:
            return ["VACUUM"]
        if pick == 1:
            return ["PRAGMA wal_checkpoint(%s)" % self.rng.choice(
                ("PASSIVE", "FULL", "RESTART", "TRUNCATE"))]
        if pick == 2:
            return ["BEGIN", "UPDATE counter SET n = -1", "INSERT INTO t0 (x) VALUES (randomblob(200000))",
                    "ROLLBACK"]
        if pick == 3:
            return ["PRAGMA incremental_vacuum(5)"]
        if pick == 4:
            return ["PRAGMA journal_size_limit=%d" % self.rng.choice((-1, 0, 20000))]
        return []

    def reopen(self):
        """The application stops and starts again."""
        for conn in ("second", "main"):
            self.host.close(conn)
        self.host.open(self.database).open(self.database, "second")


def digest(path):
    """As driver.dump(), of a restored file."""
    found = hashlib.sha256()
    for name, sql in rows(path, "SELECT name, sql FROM sqlite_master WHERE type IN ('table', 'index')"
                          " AND name NOT LIKE 'sqlite_%' ORDER BY name"):
        found.update(repr((name, sql)).encode())
        if sql.upper().startswith("CREATE TABLE"):
            for row in rows(path, 'SELECT * FROM "%s" ORDER BY rowid' % name):
                found.update(repr(list(row)).encode())
    return found.hexdigest()


@pytest.mark.parametrize("page_size", [512, 1024, 4096, 65536])
@pytest.mark.parametrize("kind", HOSTS)
def test_every_txid_is_a_committed_state(kind, page_size, new_host, new_replica, rng, tmp_path):
    replica = new_replica(rng.choice(("file", "file", "s3", "s3-second")))
    interval = rng.choice(("0", "10ms", "100ms"))
    host = new_host(kind, replica, env={"WALFERRY_SYNC_INTERVAL": interval})
    work = Work(host, tmp_path / "app.db", rng)
    work.start(page_size)
    for number in range(1, STEPS + 1):
        work.step(number)
        if rng.random() < 0.03:
            work.reopen()
    last = int(host.sync(), 16)
    assert_restores(replica, work.database, tmp_path)
    assert txids(replica) == list(range(1, last + 1))
    assert len(full_images(replica)) == 1
    reached = -1
    for txid in txids(replica):
        output = restore(replica, tmp_path / "at.db", txid)
        check_integrity(output)
        if not rows(output, "SELECT 1 FROM sqlite_master WHERE name = 'counter'"):
            assert reached == -1  # the database before its first table
            output.unlink()
            continue
        [(number,)] = rows(output, "SELECT n FROM counter")
        assert number >= reached, "TXID %d goes back to commit %d" % (txid, number)
        assert digest(output) == work.states[number], "TXID %d is not commit %d" % (txid, number)
        reached = number
        output.unlink()
    assert reached == STEPS
