#!/usr/bin/env python3
"""How fast a restore is: walferry beside Litestream and beside cp, of one replica in a folder.

The replica is a first image of about WALFERRY_BENCH_GB gigabytes (default 1) and twenty files of
changes on top. All write the output, flush it to disk, and take turns; the output of each is
compared once. WALFERRY_BENCH_ROUNDS (default 3) sets the number of turns.
"""

import os
import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRATCH = ROOT / ".cache" / "bench"
PROGRAM = ROOT / "dist" / "walferry"
LITESTREAM = ROOT / ".cache" / "venv" / "bin" / "litestream"


def make(folder, gigabytes):
    """A database of half random and half plain text rows, replicated while it is written."""
    os.environ["WALFERRY_REPLICA"] = "file://%s/replica" % folder
    loader = sqlite3.connect(":memory:")
    loader.enable_load_extension(True)
    loader.load_extension(str(ROOT / "dist" / "walferry"))
    db = sqlite3.connect(folder / "app.db", isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, noise BLOB, text TEXT)")
    rows = int(gigabytes * 1e9 / 1030)
    for first in range(0, rows, 100_000):
        db.execute("INSERT INTO t (noise, text) WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1"
                   " FROM c WHERE n < ?) SELECT randomblob(500), printf('%0500d', n * 7919) FROM c",
                   (min(100_000, rows - first),))
    db.execute("SELECT walferry_sync(600000)").fetchall()
    for round_ in range(20):
        db.execute("UPDATE t SET noise = randomblob(500) WHERE id % 10000 = ?", (round_ * 17,))
        db.execute("SELECT walferry_sync(600000)").fetchall()
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    loader.close()
    del os.environ["WALFERRY_REPLICA"]


def timed(command):
    """Wall and CPU seconds of a command and all it started."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit("%s\n%s" % (" ".join(command), done.stdout))
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    folder = SCRATCH / "restore"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    make(folder, float(os.environ.get("WALFERRY_BENCH_GB", "1")))
    database, output = folder / "app.db", folder / "out.db"
    config = folder / "litestream.yml"
    config.write_text("dbs:\n  - path: %s\n    replica:\n      type: file\n      path: %s\n" % (
        folder / "other.db", folder / "replica"))
    ways = {
        "walferry": [str(PROGRAM), "restore", "-o", str(output), "file://%s/replica" % folder],
        "litestream": [str(LITESTREAM), "restore", "-config", str(config), "-o", str(output),
                       str(folder / "other.db")],
        "cp and sync": ["sh", "-c", 'cp "$0" "$1" && sync "$1"', str(database), str(output)],
    }
    if not LITESTREAM.exists():
        del ways["litestream"]
    size = sum(p.stat().st_size for p in (folder / "replica").rglob("*.ltx"))
    print("database %.0f MB, replica %.0f MB in %d files" % (
        database.stat().st_size / 1e6, size / 1e6, len(list((folder / "replica").rglob("*.ltx")))))
    taken = {way: [] for way in ways}
    for round_ in range(int(os.environ.get("WALFERRY_BENCH_ROUNDS", "3"))):
        for way, command in ways.items():
            output.unlink(missing_ok=True)
            os.sync()
            taken[way].append(timed(command))
            if round_ == 0:
                subprocess.run(["cmp", str(database), str(output)], check=True)
    print("%-12s %10s %10s %10s" % ("", "wall s", "CPU s", "MB/s"))
    for way, runs in taken.items():
        wall, cpu = (statistics.median(column) for column in zip(*runs))
        print("%-12s %10.2f %10.2f %10.0f" % (way, wall, cpu, database.stat().st_size / 1e6 / wall))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
