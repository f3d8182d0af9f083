#!/usr/bin/env python3
"""What replication costs a process in memory: its anonymous memory above that of SQLite alone, in MiB.

A database of 400 MiB (first argument), of pages of 4096 bytes (second argument), that was not replicated
before: at the end of its image, the most while that was made, three seconds later; then the same for a
transaction that writes half of that again, and for a VACUUM. The replica is a folder;
WALFERRY_BENCH_REPLICA gives another, which must be empty, and WALFERRY_BENCH_EXTENSION another build.
Nothing is joined meanwhile, which has a bound of its own, unless WALFERRY_LEVELS says so.

Small pages show what a large database costs: 2 GiB of pages of 512 bytes are as many as 16 GiB of common
ones. Fails when more is held than is promised.
"""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTENSION = os.environ.get("WALFERRY_BENCH_EXTENSION", str(ROOT / "dist" / "walferry"))
REST = 3
MOST, MOST_AT_REST = 64, 16  # in MiB, whatever the size of the database and of the transaction


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


def rows_of(size, page_size):
    """As many rows as there are pages: each has one to itself."""
    return size * 2**20 // page_size


def row_len(page_size):
    return page_size * 6 // 7


def make(database, size, page_size):
    db = sqlite3.connect(database)
    for pragma in ("page_size=%d" % page_size, "journal_mode=OFF", "synchronous=OFF"):
        db.execute("PRAGMA " + pragma)
    db.execute("CREATE TABLE t (x)")
    db.execute("WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
               " INSERT INTO t SELECT randomblob(?) FROM n", (rows_of(size, page_size), row_len(page_size)))
    db.commit()
    db.execute("PRAGMA journal_mode=WAL")
    db.close()


def one(extension, database, size, page_size):
    """Prints a line for each step, in a process that has loaded the extension or has not."""
    if extension:
        loads = sqlite3.connect(":memory:")
        loads.enable_load_extension(True)
        loads.load_extension(EXTENSION)
    base, watch = anonymous(), Watch()
    db = sqlite3.connect(database, isolation_level=None)

    def step(name, sql):
        watch.take()
        db.execute(sql)
        if extension:
            done = db.execute("SELECT walferry_sync(3600000)").fetchall()
            assert done, "it was not shipped"
        end = anonymous()
        most = max(watch.take(), end)  # a short step may end before the first look
        time.sleep(REST)
        print(name, *[(bytes_ - base) / 2**20 for bytes_ in (most, end, anonymous())], flush=True)

    step("image", "INSERT INTO t VALUES (1)")
    half = rows_of(size, page_size) // 2
    step("transaction", "INSERT INTO t SELECT randomblob(%d) FROM t LIMIT %d" % (row_len(page_size), half))
    step("vacuum", "VACUUM")


def measured(extension, scratch, size, page_size):
    folder = scratch / ("with" if extension else "plain")
    folder.mkdir()
    shutil.copy(scratch / "made.db", folder / "app.db")
    replica = os.environ.get("WALFERRY_BENCH_REPLICA", "file://%s/replica" % folder)
    words = [sys.executable, __file__, str(size), str(page_size), folder.name, str(folder / "app.db")]
    environment = {"WALFERRY_LEVELS": "off", **os.environ, "WALFERRY_REPLICA": replica}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    shutil.rmtree(folder)
    return [line.split() for line in done.stdout.splitlines()]


def main():
    size, page_size = [int(word) for word in sys.argv[1:3] + ["400", "4096"][len(sys.argv[1:3]):]]
    if len(sys.argv) > 3:
        return one(sys.argv[3] == "with", sys.argv[4], size, page_size)
    place = ROOT / ".cache" / "bench"
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="memory-", dir=place) as scratch:
        make(Path(scratch) / "made.db", size, page_size)
        plain, with_it = [measured(it, Path(scratch), size, page_size) for it in (False, True)]
    print("anonymous memory above plain SQLite's, MiB; a database of %d MiB, %d pages"
          % (size, rows_of(size, page_size)))
    print("%-12s %10s %10s %10s" % ("", "most", "at the end", "at rest"))
    broken = []
    for (name, *alone), (_, *beside) in zip(plain, with_it, strict=True):
        most, end, rest = [float(b) - float(a) for a, b in zip(alone, beside)]
        print("%-12s %10.1f %10.1f %10.1f" % (name, most, end, rest))
        broken += ["%s: %.1f MiB at the most" % (name, most)] if most > MOST else []
        broken += ["%s: %.1f MiB at rest" % (name, rest)] if rest > MOST_AT_REST else []
    if broken:
        sys.exit("more than the %d MiB, or the %d at rest, that are promised: %s"
                 % (MOST, MOST_AT_REST, "; ".join(broken)))


if __name__ == "__main__":
    main()
