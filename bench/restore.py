#!/usr/bin/env python3
"""How fast a restore is, and what it takes: walferry beside Litestream and beside cp.

    .cache/venv/bin/python bench/restore.py [tail] [many]

`tail`: an image of about WALFERRY_BENCH_GB gigabytes (default 1) and 2,000 files of changes, of which
all but the last 200 are joined as well; from a folder and from the S3 server of the tests.
`many`: 100 MB and 10,000 files of changes, before and after `walferry compact`; from a folder.

All write the output and flush it to disk; they take turns, WALFERRY_BENCH_ROUNDS (default 3) of them,
and the output of each is compared once. The table has medians: wall clock and CPU seconds, the most
memory that was resident, what was read of the replica.
"""

import json
import os
import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "python-tests"))

from harness import (EXTENSION, LITESTREAM, PROGRAM, DirectoryReplica, S3Replica, Service,  # noqa: E402
                     clean_environment, litestream_config, parse_key, walferry)

SCRATCH = ROOT / ".cache" / "bench"
ROUNDS = int(os.environ.get("WALFERRY_BENCH_ROUNDS", "3"))
LEAVE_AS_IT_IS = {"WALFERRY_SYNC_INTERVAL": "0", "WALFERRY_LEVELS": "off",
                  "WALFERRY_SNAPSHOT_INTERVAL": "off", "WALFERRY_RETENTION": "off"}


class Database:
    """Half random, half plain text, and each commit a file of the replica."""

    def __init__(self, folder, megabytes):
        self.path, self.replica = folder / "app.db", DirectoryReplica(folder / "replica")
        os.environ.update(LEAVE_AS_IT_IS, WALFERRY_REPLICA=self.replica.url)
        self.loader = sqlite3.connect(":memory:")
        self.loader.enable_load_extension(True)
        self.loader.load_extension(str(EXTENSION.with_suffix("")))
        self.db = sqlite3.connect(self.path, isolation_level=None)
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, noise BLOB, text TEXT)")
        self.rows, self.changed = int(megabytes * 1e6 / 1030), 0
        for first in range(0, self.rows, 100_000):
            self.db.execute(
                "INSERT INTO t (noise, text) WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1"
                " FROM c WHERE n < ?) SELECT randomblob(500), printf('%0500d', n * 7919) FROM c",
                (min(100_000, self.rows - first),))
        self.sync(600_000)

    def sync(self, milliseconds=60_000):
        self.db.execute("SELECT walferry_sync(%d)" % milliseconds).fetchall()

    def change(self, times):
        """Each time ten rows here and there."""
        for _ in range(times):
            self.changed += 1
            ids = [(self.changed * 7919 + n * 104_729) % self.rows + 1 for n in range(10)]
            self.db.execute("UPDATE t SET noise = randomblob(500) WHERE id IN (%s)" %
                            ",".join(map(str, ids)))
            self.sync()

    def close(self):
        self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.db.close()
        self.loader.close()
        for name in (*LEAVE_AS_IT_IS, "WALFERRY_REPLICA"):
            del os.environ[name]


def compact(replica):
    """Until there is nothing to join: one file is made of 256 at the most."""
    made = True
    while made:
        told = walferry("compact", "--json", replica.url).stdout.splitlines()
        made = [json.loads(line)["file"] for line in told if json.loads(line)["file"]]


def upload(folder, target):
    for path in folder.folder.rglob("*.ltx"):
        level, first, last = parse_key(str(path.relative_to(folder.folder)))
        target.client.upload_file(str(path), target.bucket, target.key(level, first, last))


def run(command, environment):
    """Wall clock, CPU seconds, most bytes resident, bytes read by its calls; and what it printed."""
    with tempfile.TemporaryFile("w+") as out:
        begun = time.monotonic()
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        peak = read = 0
        while True:
            pid, status, used = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            try:
                text = Path("/proc/%d/status" % process.pid).read_text()
                peak = max([peak, *(int(line.split()[1]) * 1024 for line in text.splitlines()
                                    if line.startswith("VmHWM"))])
                text = Path("/proc/%d/io" % process.pid).read_text()
                read = int(text.split()[1])
            except (OSError, IndexError):
                pass  # it has just ended
            time.sleep(0.01)
        wall = time.monotonic() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        text = out.read()
    if process.returncode:
        raise RuntimeError("%s\n%s" % (" ".join(command), text))
    return wall, used.ru_utime + used.ru_stime, peak, read, text


def measure(title, folder, database, replica, rounds=ROUNDS):
    output = folder / "out.db"
    config = litestream_config(folder, replica, "other.db")
    environment = dict(clean_environment(), **replica.reading)
    ways = {
        "walferry": [str(PROGRAM), "restore", "--json", "--no-progress", "-o", str(output), replica.url],
        "litestream": [str(LITESTREAM), "restore", "-config", str(config), "-o", str(output),
                       str(folder / "other.db")],
        "cp and sync": ["sh", "-c", 'cp "$0" "$1" && sync "$1"', str(database), str(output)],
    }
    keys = replica.keys()
    print("\n%s: database %.0f MB, files %s" % (title, database.stat().st_size / 1e6, ", ".join(
        "%d of level %d" % (sum(key[0] == level for key in keys), level)
        for level in sorted({key[0] for key in keys}))))
    taken = {way: [] for way in ways}
    for round_ in range(rounds):
        for way, command in list(ways.items()):
            output.unlink(missing_ok=True)
            os.sync()
            try:
                wall, cpu, peak, read, text = run(command, environment)
            except RuntimeError as error:
                print("%s failed: %s" % (way, str(error)[-300:]))
                del ways[way], taken[way]
                continue
            if way == "walferry":
                read = json.loads(text)["bytes_fetched"]
            taken[way].append((wall, cpu, peak / 2**20, read / 1e6))
            if round_ == 0:
                subprocess.run(["cmp", str(database), str(output)], check=True)
    output.unlink(missing_ok=True)
    print("%-12s %8s %8s %10s %10s" % ("", "wall s", "CPU s", "peak MiB", "read MB"))
    for way, runs in taken.items():
        middle = tuple(statistics.median(column) for column in zip(*runs))
        print("%-12s %8.2f %8.2f %10.0f %10.0f" % (way, *middle), flush=True)


def tail(folder):
    database = Database(folder, 1000 * float(os.environ.get("WALFERRY_BENCH_GB", "1")))
    database.change(1800)
    compact(database.replica)
    database.change(200)
    database.close()
    measure("folder", folder, database.path, database.replica)
    server = Service("s3.py", folder / "server")
    try:
        replica = S3Replica(server.env, "bench")
        upload(database.replica, replica)
        measure("S3", folder, database.path, replica)
    finally:
        server.stop()


def many(folder):
    database = Database(folder, 100)
    database.change(10_000)
    database.close()
    measure("before it is compacted", folder, database.path, database.replica)
    begun = time.monotonic()
    compact(database.replica)
    print("compacted in %.1f s" % (time.monotonic() - begun))
    measure("compacted", folder, database.path, database.replica)


def main():
    # Litestream opens every file of its plan at once.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for what in sys.argv[1:] or ["tail", "many"]:
        folder = SCRATCH / what
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        {"tail": tail, "many": many}[what](folder)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
