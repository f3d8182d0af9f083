#!/usr/bin/env python3
"""How often a database has to be compared as a whole, in work that ought to need no comparison.

    python3 bench/comparisons.py [seconds]

Each program writes for some seconds (5 if none are given) to a database of its own, whose replica is
a folder. A comparison reads the whole database: it is right after the WAL was lost track of, and a
waste where nobody did anything unusual.
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
SCRATCH = ROOT / ".cache" / "bench" / "comparisons"


def connect(path, replicated=True):
    vfs = "walferry" if replicated else "unix"
    db = sqlite3.connect("file:%s?vfs=%s" % (path, vfs), uri=True, isolation_level=None, timeout=10)
    db.execute("PRAGMA synchronous=NORMAL")
    return db


def write(db, until):
    commits = 0
    while time.monotonic() < until:
        db.execute("UPDATE t SET x = randomblob(300) WHERE id = ?", (commits % 1000,))
        commits += 1
    return commits


def own_writer(path, until):
    db = connect(path)
    return write(db, until), db


def pool(path, until):
    """Another thread opens and closes connections beside the writer."""

    def churn():
        while time.monotonic() < until:
            db = connect(path)
            db.execute("SELECT count(*) FROM t").fetchall()
            db.close()
            time.sleep(0.005)

    thread = threading.Thread(target=churn)
    thread.start()
    done = own_writer(path, until)
    thread.join()
    return done


def each_alone(path, until):
    """Each commit has a connection of its own, which is the only one."""
    commits = 0
    while time.monotonic() < until:
        db = connect(path)
        commits += write(db, time.monotonic() + 0.02)
        db.close()
    return commits, connect(path)


def exclusive(path, until):
    """The same with locking_mode=EXCLUSIVE."""
    commits = 0
    while time.monotonic() < until:
        db = connect(path)
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        commits += write(db, time.monotonic() + 0.02)
        db.close()
    return commits, connect(path)


def checkpoints(path, until):
    """All kinds of checkpoints between the commits."""
    db, commits = connect(path), 0
    while time.monotonic() < until:
        for mode in "PASSIVE", "FULL", "RESTART", "TRUNCATE":
            commits += write(db, time.monotonic() + 0.02)
            db.execute("PRAGMA wal_checkpoint(%s)" % mode).fetchall()
    return commits, db


def forks(path, until):
    """A child that does nothing is forked now and then."""
    db, commits = connect(path), 0
    while time.monotonic() < until:
        commits += write(db, time.monotonic() + 0.05)
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
    return commits, db


def outsider(path, until):
    """A program without walferry writes, too, and restarts the WAL when it can."""
    script = ("import sqlite3, sys, time\n"
              "db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)\n"
              "end = time.monotonic() + float(sys.argv[2])\n"
              "while time.monotonic() < end:\n"
              "    db.execute('UPDATE t SET x = randomblob(300) WHERE id = 7')\n")
    seconds = str(max(until - time.monotonic(), 0))
    beside = subprocess.Popen([sys.executable, "-c", script, path, seconds])
    done = own_writer(path, until)
    beside.wait()
    return done


PROGRAMS = [own_writer, pool, each_alone, exclusive, checkpoints, forks, outsider]


def run(program, seconds):
    """In a process of its own, which prints the number of its commits."""
    folder = SCRATCH / program.__name__
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    loader = sqlite3.connect(":memory:")
    loader.enable_load_extension(True)
    loader.load_extension(str(ROOT / "dist" / "walferry"))
    path = str(folder / "app.db")
    db = connect(path)
    db.execute("PRAGMA journal_mode=WAL").fetchall()
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    db.execute("INSERT INTO t WITH n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 999)"
               " SELECT i, randomblob(300) FROM n")
    db.execute("SELECT walferry_sync(30000)").fetchall()
    db.close()
    commits, db = program(path, time.monotonic() + seconds)
    db.execute("SELECT walferry_sync(60000)").fetchall()
    print(commits)


def main():
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    if len(sys.argv) > 2:
        return run(next(p for p in PROGRAMS if p.__name__ == sys.argv[2]), seconds)
    SCRATCH.mkdir(parents=True, exist_ok=True)
    print("%-14s %9s %12s %7s" % ("program", "commits", "comparisons", "images"))
    for program in PROGRAMS:
        log = SCRATCH / (program.__name__ + ".log")
        log.unlink(missing_ok=True)
        env = dict(os.environ, WALFERRY_REPLICA=str(SCRATCH / program.__name__ / "replica"),
                   WALFERRY_SYNC_INTERVAL="50ms", WALFERRY_LOG_FILE=str(log))
        done = subprocess.run([sys.executable, __file__, str(seconds), program.__name__], env=env,
                              stdout=subprocess.PIPE, text=True, check=True)
        told = log.read_text()
        print("%-14s %9d %12d %7d" % (program.__name__, int(done.stdout),
                                      told.count(": compared; "), told.count(": the full image is")))


if __name__ == "__main__":
    main()
