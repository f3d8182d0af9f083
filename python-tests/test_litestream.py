"""Litestream reads what we write, and we read what it wrote. It knows nothing of us."""

import signal
import subprocess
import time

import pytest

from harness import (LITESTREAM, LITESTREAM_FRAMES, assert_same_pages, clean_environment,
                     litestream_config, litestream_restore, live_image, restore, txids)


@pytest.mark.parametrize("scheme", ["file", "s3", "s3-second"])
def test_litestream_restores_our_replica(scheme, new_host, new_replica, tmp_path):
    replica = new_replica(scheme)
    host = new_host("apsw", replica, env={"WALFERRY_SYNC_INTERVAL": "0"})
    host.open(tmp_path / "app.db")
    host.sql("PRAGMA auto_vacuum=FULL", "PRAGMA journal_mode=WAL",
             "CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    for n in range(12):
        host.sql("INSERT INTO t (x) VALUES (randomblob(9000))")
        if n % 4 == 3:
            host.sql("DELETE FROM t WHERE id > %d" % (n - 2))  # the database shrinks
        host.sync()
    latest = restore(replica, tmp_path / "ours.db").read_bytes()
    assert_same_pages(live_image(tmp_path / "app.db"), latest, "ours")
    theirs = litestream_restore(tmp_path, replica, tmp_path / "theirs.db").read_bytes()
    assert_same_pages(latest, theirs, "Litestream, latest")
    # One for each sync; the first may be in the image.
    assert len(txids(replica)) >= 12
    for txid in txids(replica):
        ours = restore(replica, tmp_path / ("ours-%d.db" % txid), txid).read_bytes()
        theirs = litestream_restore(tmp_path, replica, tmp_path / ("theirs-%d.db" % txid), txid)
        assert_same_pages(ours, theirs.read_bytes(), "TXID %d" % txid)


class Litestream:
    """Litestream as a sidecar of a database."""

    def __init__(self, binary, folder, replica):
        self.log = open(folder / "litestream.log", "ab")
        self.process = subprocess.Popen(
            [str(binary), "replicate", "-config", str(litestream_config(folder, replica))],
            stdout=self.log, stderr=self.log, env=dict(clean_environment(), **replica.env))

    def stop(self):
        """It ships what is left when it is told to end."""
        self.process.send_signal(signal.SIGTERM)  # SIGINT may be ignored
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self.log.close()


@pytest.mark.parametrize("scheme", ["file", "s3"])
@pytest.mark.parametrize("binary", [LITESTREAM, LITESTREAM_FRAMES], ids=["0.5.17", "0.5.11"])
def test_we_restore_litestreams_replicas(binary, scheme, new_host, new_replica, tmp_path):
    replica = new_replica(scheme)
    host = new_host(load=False)
    host.open(tmp_path / "app.db")
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    for round_ in range(3):  # each run of it ends with a TXID of its own at least
        host.sql("INSERT INTO t (x) VALUES ('%s')" % ("before run %d " % round_ * 40))
        litestream = Litestream(binary, tmp_path, replica)
        try:
            await_new_txid(replica, litestream, round_)
            host.call("fill", sql="INSERT INTO t (x) VALUES (?)", size=2000, times=20, seed=round_)
        finally:
            litestream.stop()
    assert len(txids(replica)) >= 3
    theirs = litestream_restore(tmp_path, replica, tmp_path / "theirs.db")
    ours = restore(replica, tmp_path / "ours.db")
    assert_same_pages(theirs.read_bytes(), ours.read_bytes(), "latest")
    level0 = sorted(last for level, _first, last in replica.keys() if level == 0)
    assert level0
    for txid in level0:
        theirs = litestream_restore(tmp_path, replica, tmp_path / ("theirs-%d.db" % txid), txid)
        ours = restore(replica, tmp_path / ("ours-%d.db" % txid), txid)
        if not is_ahead_of_its_name(replica, tmp_path, txid, theirs.read_bytes()):
            assert_same_pages(theirs.read_bytes(), ours.read_bytes(), "TXID %d" % txid)


def is_ahead_of_its_name(replica, folder, txid, theirs):
    """Litestream may read the database for a snapshot a little later than it has named it: then it
    restores by the snapshot what its own files have as the next TXID."""
    snapshots = [last for level, _first, last in replica.keys() if level == 9]
    if txid not in snapshots or txid == max(txids(replica)):
        return False
    after = restore(replica, folder / ("after-%d.db" % txid), min(n for n in txids(replica) if n > txid))
    return theirs == after.read_bytes()


def await_new_txid(replica, litestream, above):
    """Its replication is visible only on the replica."""
    deadline = time.monotonic() + 60
    while len(txids(replica)) <= above:
        assert litestream.process.poll() is None, "Litestream ended; see %s" % litestream.log.name
        assert time.monotonic() < deadline, "Litestream replicated nothing"
        time.sleep(0.05)
