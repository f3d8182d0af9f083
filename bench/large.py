#!/usr/bin/env python3
"""A database of many gigabytes (10, or the first argument), beside a writer that does not pause.

Once with the extension in the writer's process, once with a plain writer and the sidecar. Each time the
first full image is taken while rows are changed at random; then the database is restored, compared
page for page with the original, and its replica verified. The extension's writer is killed and goes on
in between. Prints the writer's rate before, during and after the image, its longest commit, how large
the WAL grew, the memory of the process that replicates, and how long the restore took beside `cp`.
Needs three times the database's size on the disk.
"""

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRATCH = ROOT / ".cache" / "bench-large"
PROGRAM, EXTENSION = str(ROOT / "dist" / "walferry"), str(ROOT / "dist" / "walferry")
DATABASE, REPLICA = SCRATCH / "app.db", SCRATCH / "replica"
URL = "file://%s" % REPLICA


def fill(gigabytes):
    db = sqlite3.connect(DATABASE, isolation_level=None)
    db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF; PRAGMA cache_size=-200000;"
                     "CREATE TABLE t (id INTEGER PRIMARY KEY, x, y)")
    rng = random.Random(1)
    while DATABASE.stat().st_size < gigabytes << 30:
        db.execute("BEGIN")
        db.executemany("INSERT INTO t (x, y) VALUES (?, ?)", (
            (rng.randbytes(900), "customer %d paid %d for order %d, " % (n, n * 7, n * 13) * 25)
            for n in range(50000)))
        db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    rows = db.execute("SELECT max(id) FROM t").fetchone()[0]
    db.close()
    return rows


def resident(pid):
    with open("/proc/%d/status" % pid) as status:
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024


class Phase:
    """Commits at random rows until it is told to end, and how that went."""

    def __init__(self, db, rows, name):
        self.db, self.rows, self.name, self.rng = db, rows, name, random.Random(name)
        self.wal = DATABASE.with_name("app.db-wal")

    def run(self, until):
        begun, commits, longest, high = time.monotonic(), 0, 0, 0
        while commits % 100 or not until(time.monotonic() - begun):
            before = time.monotonic()
            self.db.execute("UPDATE t SET x = ? WHERE id = ?",
                            (self.rng.randbytes(900), self.rng.randrange(self.rows) + 1))
            longest = max(longest, time.monotonic() - before)
            high = max(high, self.wal.stat().st_size)
            commits += 1
        seconds = time.monotonic() - begun
        print("  %-28s %6.0f s %8.0f commits/s, longest %5.0f ms, WAL up to %4.0f MiB" % (
            self.name, seconds, commits / seconds, longest * 1e3, high / 2**20), flush=True)


def has_image():
    return any((REPLICA / "ltx").glob("9/*.ltx"))


def connect():
    db = sqlite3.connect(DATABASE, isolation_level=None, timeout=20)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=NORMAL")
    return db


def in_the_process(rows):
    """Run in a process of its own, which kills itself."""
    os.environ["WALFERRY_REPLICA"] = URL
    loader = sqlite3.connect(":memory:")
    loader.enable_load_extension(True)
    loader.load_extension(EXTENSION)
    before = time.monotonic()
    db = connect()
    print("  opened in %.2f s" % (time.monotonic() - before))
    if not has_image():
        Phase(db, rows, "while the image is sent").run(lambda _: has_image())
    Phase(db, rows, "and then").run(lambda seconds: seconds > 30)
    db.execute("SELECT walferry_sync(600000)")
    state = json.loads(db.execute("SELECT walferry_status()").fetchone()[0])[0]
    print("  memory of the process up to %.0f MiB; images sent: %d, comparisons: %d" % (
        resident(os.getpid()), state["images"], state["resyncs"]), flush=True)
    os.kill(os.getpid(), 9)


def beside(rows):
    db = connect()
    Phase(db, rows, "without a sidecar").run(lambda seconds: seconds > 15)
    sidecar = subprocess.Popen([PROGRAM, "replicate", str(DATABASE), URL], stderr=subprocess.DEVNULL)
    Phase(db, rows, "while the image is sent").run(lambda _: has_image())
    Phase(db, rows, "and then").run(lambda seconds: seconds > 30)
    subprocess.run([PROGRAM, "sync", "--timeout", "600s", str(DATABASE)], check=True,
                   stdout=subprocess.DEVNULL)
    print("  memory of the sidecar up to %.0f MiB" % resident(sidecar.pid))
    db.close()
    sidecar.terminate()
    assert sidecar.wait() == 0


def restored():
    output = SCRATCH / "restored.db"

    def timed(*command):
        begun = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.monotonic() - begun

    # All of it in the file, to be compared. Closed for certain: its files are removed later.
    db = sqlite3.connect(DATABASE)
    assert db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    db.close()
    took = timed(PROGRAM, "restore", "--quiet", "-o", str(output), URL)
    subprocess.run(["cmp", str(output), str(DATABASE)], check=True)
    output.unlink()
    copied = timed("cp", str(DATABASE), str(output)) + timed("sync", str(output))
    output.unlink()
    verified = timed(PROGRAM, "verify", "--no-progress", URL)
    print("  restored in %.1f s, the same page for page (cp and sync: %.1f s); verified in %.1f s" % (
        took, copied, verified), flush=True)


def clean():
    for path in [REPLICA, *SCRATCH.glob("app.db-*"), *SCRATCH.glob("restored*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def main():
    if sys.argv[1:2] == ["--writer"]:
        return in_the_process(int(sys.argv[2]))
    gigabytes = int(sys.argv[1]) if sys.argv[1:] else 10
    shutil.rmtree(SCRATCH, ignore_errors=True)
    SCRATCH.mkdir(parents=True)
    rows = fill(gigabytes)
    print("%.1f GB, %d rows" % (DATABASE.stat().st_size / 1e9, rows))
    print("the extension in the writer's process, killed twice:")
    for _ in range(2):
        done = subprocess.run(["/usr/bin/python3", __file__, "--writer", str(rows)])
        assert done.returncode == -9, done
    restored()
    clean()
    print("a plain writer, and the sidecar:")
    beside(rows)
    restored()
    shutil.rmtree(SCRATCH)


if __name__ == "__main__":
    main()
