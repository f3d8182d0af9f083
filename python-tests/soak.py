"""A program that writes as fast as it can while the store fails half of the time.

    soak.py MINUTES

Samples the sizes of WAL, spool and memory; fails if one leaves its bounds, if a write is ever held
up, or if the replica is not the database at the end.
"""

import os
import random
import sys
import tempfile
import time
from pathlib import Path

import harness

ROWS = 20_000
SPOOL_CAP = 256 << 20
# SQLite's own checkpoint interval is 4 MB of WAL. While the database is read as a whole, as after
# the spool was dropped, the WAL must stay and grows by what is written meanwhile.
WAL_MAX = 256 << 20
RSS_GROWTH_MAX = 200 << 10
STALL_MAX = 5.0
OUTAGES = [("refuse", {}), ("blackhole", {}), ("blackhole", {"where": "response"}),
           ("status", {"code": 503}), ("lost_response", {}), ("latency", {"ms": 20000})]


def folder_size(path):
    total = 0
    for entry in os.scandir(path):
        try:
            total += entry.stat().st_size
        except FileNotFoundError:
            pass
    return total


def main():
    minutes = float(sys.argv[1])
    rng = random.Random(harness.SEED)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        server = harness.Service("s3.py", folder / "s3")
        proxy = harness.FaultProxy(folder / "proxy", server.env["S3_ENDPOINT"])
        try:
            soak(folder, server.env, proxy, rng, minutes)
        finally:
            proxy.stop()
            server.stop()


def soak(folder, s3, proxy, rng, minutes):
    replica = harness.S3Replica(s3, "soak", proxy.endpoint)
    env = dict(replica.env, WALFERRY_REPLICA=replica.url, WALFERRY_SPOOL_CAP=str(SPOOL_CAP),
               WALFERRY_LOG_FILE=str(folder / "log"))
    host = harness.Host("system", env, folder / "errors").load()
    database = folder / "app.db"
    host.open(database)
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    host.sql("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %d) "
             "INSERT INTO t SELECT i, printf('%%0200d', i) FROM n" % ROWS)
    host.sync()
    start = host.facts()["rss_kib"]
    worst = dict.fromkeys(("wal", "spool", "rss"), 0)
    end, turns, down = time.monotonic() + minutes * 60, time.monotonic(), False
    writing = host.ask("churn", args=[ROWS, harness.SEED, minutes * 60])
    while not writing.done():
        time.sleep(0.5)
        if time.monotonic() >= turns:
            turns = time.monotonic() + rng.uniform(2, 40)
            down = not down
            proxy.heal()
            if down:
                kind, what = rng.choice(OUTAGES)
                proxy.rule(kind, **what)
        status = Path("/proc/%d/status" % host.process.pid).read_text()
        rss = int(status.split("VmRSS:")[1].split()[0])
        for name, value in (("wal", os.path.getsize(str(database) + "-wal")),
                            ("spool", folder_size(str(database) + "-walferry/spool")), ("rss", rss)):
            worst[name] = max(worst[name], value)
        assert time.monotonic() < end + 120, "the writer does not end"
    commits, stall = writing.result()
    proxy.heal()
    host.sync()
    harness.assert_restores(replica, database, folder)
    state = host.status(database)
    print("%d commits in %.0f minutes (%.0f a second), longest %.3f s; WAL up to %.1f MiB, spool up "
          "to %.1f MiB of %d, memory %+d MiB; %s files, %s images, %s comparisons, %d requests" % (
              commits, minutes, commits / minutes / 60, stall, worst["wal"] / 2**20,
              worst["spool"] / 2**20, SPOOL_CAP >> 20, (worst["rss"] - start) >> 10,
              int(state["acked"], 16), state["images"], state["resyncs"], state["requests"]))
    assert worst["wal"] <= WAL_MAX and worst["spool"] <= SPOOL_CAP * 1.5, worst
    assert worst["rss"] - start <= RSS_GROWTH_MAX, worst
    assert stall <= STALL_MAX, stall
    host.close()
    host.finish()


if __name__ == "__main__":
    main()
