"""Compacted and thinned out: every state that is kept restores, with us and with Litestream."""

import json
from datetime import datetime, timedelta

import pytest

from harness import assert_same_pages, litestream_restore, restore, txids, walferry


def run(replica, *args):
    done = walferry(*args[:1], "--json", *args[1:], replica.url, env=replica.reading)
    return [json.loads(line) for line in done.stdout.splitlines()]


def write(host, replica, database, times, folder):
    """The database as it was at each TXID."""
    states = {}
    for n in range(times):
        host.sql("INSERT INTO t (x) VALUES (randomblob(%d))" % (500 + 977 * n % 9000))
        if n % 5 == 4:
            host.sql("DELETE FROM t WHERE id % 3 = 0")  # the database shrinks
        txid = int(host.sync(), 16)
        states[txid] = restore(replica, folder / "state.db", txid).read_bytes()
        (folder / "state.db").unlink()
    return states


@pytest.fixture(params=["file", "s3"])
def replica(request, new_replica):
    return new_replica(request.param)


def test_compaction_and_retention(replica, new_host, tmp_path):
    host = new_host("system", replica, env={"WALFERRY_SYNC_INTERVAL": "0"})
    host.open(tmp_path / "app.db")
    host.sql("PRAGMA auto_vacuum=FULL", "PRAGMA journal_mode=WAL",
             "CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    states = {}
    for levels in ("1", "1,2", "1,2,9", "1", "1,2,3"):
        # The writer goes on between the steps, and does not notice.
        states.update(write(host, replica, tmp_path / "app.db", 6, tmp_path))
        assert run(replica, "compact", "--level", levels)
    assert {level for level, _first, _last in replica.keys()} == {0, 1, 2, 3, 9}
    report, = run(replica, "verify")
    assert report["defects"] == [] and report["states"] == max(states)
    assert report["proven"]["txid"] == "%016x" % max(states)
    compare(replica, states, tmp_path)

    # All but what the newest snapshot leads to.
    removed, = run(replica, "retain", "--retention", "0s", "--l0-retention", "0s")
    assert removed["removed"]
    # The first file of level 0 stays in its place, and leads nowhere any more.
    first = min(last for level, _first, last in replica.keys() if level == 9)
    left = [txid for txid in txids(replica) if txid >= first]
    report, = run(replica, "verify")
    assert report["defects"] == [] and report["states"] == len(left)
    compare(replica, {txid: states[txid] for txid in left if txid in states}, tmp_path)

    # The writer knows nothing of it, and goes on.
    states = write(host, replica, tmp_path / "app.db", 2, tmp_path)
    compare(replica, states, tmp_path)
    assert host.status(tmp_path / "app.db")["state"] == "streaming"


def compare(replica, states, folder):
    for txid, expected in states.items():
        ours = restore(replica, folder / "ours.db", txid).read_bytes()
        theirs = litestream_restore(folder, replica, folder / "theirs.db", txid).read_bytes()
        assert_same_pages(expected, ours, "TXID %d" % txid)
        assert_same_pages(expected, theirs, "Litestream, TXID %d" % txid)
        for name in ("ours.db", "theirs.db"):
            (folder / name).unlink()
    latest = litestream_restore(folder, replica, folder / "theirs.db").read_bytes()
    assert_same_pages(restore(replica, folder / "ours.db").read_bytes(), latest, "latest")
    for name in ("ours.db", "theirs.db"):
        (folder / name).unlink()


def test_restore_to_a_moment(replica, new_host, tmp_path):
    host = new_host("apsw", replica, env={"WALFERRY_SYNC_INTERVAL": "0"})
    host.open(tmp_path / "app.db")
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    states = write(host, replica, tmp_path / "app.db", 5, tmp_path)
    run(replica, "compact", "--level", "1,9")

    def at(moment, code=0):
        done = walferry("restore", "--json", "-o", tmp_path / "at.db", "--timestamp", moment,
                        replica.url, env=replica.reading, code=code)
        return json.loads(done.stdout) if code == 0 else done.stderr

    for txid, expected in states.items():
        exact = restore_report(replica, tmp_path, txid)["timestamp"]
        report = at(exact)
        assert report["txid"] == "%016x" % txid
        assert_same_pages(expected, (tmp_path / "at.db").read_bytes(), exact)
        (tmp_path / "at.db").unlink()
        if txid == min(states):
            continue
        first = datetime.fromisoformat(exact.replace("Z", "+00:00"))
        before = (first - timedelta(milliseconds=1)).isoformat()
        assert int(at(before)["txid"], 16) < txid
        (tmp_path / "at.db").unlink()
    assert int(at("-0s")["txid"], 16) == max(states)
    (tmp_path / "at.db").unlink()
    assert "it has those from" in at("-1d", code=3)


def restore_report(replica, folder, txid):
    done = walferry("restore", "--json", "-o", folder / "report.db", "--txid", "%016x" % txid,
                    replica.url, env=replica.reading)
    (folder / "report.db").unlink()
    return json.loads(done.stdout)


def test_a_snapshot_that_is_asked_for_has_all(replica, new_host, tmp_path):
    """Whatever was joined before."""
    host = new_host("system", replica, env={"WALFERRY_SYNC_INTERVAL": "0", "WALFERRY_LEVELS": "off"})
    host.open(tmp_path / "app.db").sql("PRAGMA journal_mode=WAL",
                                       "CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    for levels in ("1", "1,2"):
        states = write(host, replica, tmp_path / "app.db", 4, tmp_path)
        run(replica, "compact", "--level", levels)
        write(host, replica, tmp_path / "app.db", 2, tmp_path)
        newest = int(host.sync(), 16)
        run(replica, "snapshot")
        assert (9, 1, newest) in replica.keys() and newest > max(states)
        compare(replica, write(host, replica, tmp_path / "app.db", 1, tmp_path), tmp_path)
    report, = run(replica, "verify")
    assert report["defects"] == []
