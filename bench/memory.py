#!/usr/bin/env python3
"""What replication costs a process in memory: its anonymous memory above that of SQLite alone, in MiB.

A database of 400 MiB (first argument) that was not replicated before: at the end of its image, the most
while that was made, three seconds later; then the same for a transaction that writes half of that again.
The replica is a folder; WALFERRY_BENCH_REPLICA gives another, which must be empty.
"""

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRATCH = ROOT / ".cache" / "bench" / "memory"
ROWS_OF_A_MIB = 256  # a row of 3500 bytes has a page to itself
REST = 3


def anonymous():
    """Of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    sys.exit("this system does not tell RssAnon")


class Watch(threading.Thread):
    """The most anonymous memory since it was asked last."""

    def __init__(self):
        super().__init__(daemon=True)
        self.most = 0
        self.start()

    def run(self):
        while True:
            self.most = max(self.most, anonymous())
            time.sleep(0.01)

    def take(self):
        most, self.most = self.most, 0
        return most


def make(database, size):
    db = sqlite3.connect(database)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE t (x)")
    db.execute("WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
               " INSERT INTO t SELECT randomblob(3500) FROM n", (size * ROWS_OF_A_MIB,))
    db.commit()
    db.close()


def one(extension, size):
    """Prints a line for each step, in a process that has loaded the extension or has not."""
    database = SCRATCH / "app.db"
    if extension:
        loads = sqlite3.connect(":memory:")
        loads.enable_load_extension(True)
        loads.load_extension(str(ROOT / "dist" / "walferry"))
    base, watch = anonymous(), Watch()
    db = sqlite3.connect(database, isolation_level=None)

    def step(name, sql):
        watch.take()
        db.execute(sql)
        if extension:
            db.execute("SELECT walferry_sync(600000)").fetchall()
        end = anonymous()
        most = watch.take()
        time.sleep(REST)
        print(name, *[(bytes_ - base) / 2**20 for bytes_ in (most, end, anonymous())])

    step("image", "INSERT INTO t VALUES (1)")
    step("transaction", "INSERT INTO t SELECT randomblob(3500) FROM t LIMIT %d" % (size * ROWS_OF_A_MIB // 2))


def measured(extension, size):
    shutil.rmtree(SCRATCH, ignore_errors=True)
    SCRATCH.mkdir(parents=True)
    make(SCRATCH / "app.db", size)
    replica = os.environ.get("WALFERRY_BENCH_REPLICA", "file://%s/replica" % SCRATCH)
    done = subprocess.run([sys.executable, __file__, str(size), "with" if extension else "plain"],
                          env=dict(os.environ, WALFERRY_REPLICA=replica), capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    shutil.rmtree(SCRATCH)
    return [line.split() for line in done.stdout.splitlines()]


def main():
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    if len(sys.argv) > 2:
        return one(sys.argv[2] == "with", size)
    plain, with_it = measured(False, size), measured(True, size)
    print("anonymous memory above plain SQLite's, MiB; a database of %d MiB" % size)
    print("%-12s %10s %10s %10s" % ("", "most", "at the end", "at rest"))
    for (name, *alone), (_, *beside) in zip(plain, with_it):
        print("%-12s %10.1f %10.1f %10.1f" % (name, *[float(b) - float(a) for a, b in zip(alone, beside)]))


if __name__ == "__main__":
    main()
