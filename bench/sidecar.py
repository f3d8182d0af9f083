#!/usr/bin/env python3
"""What the sidecar costs a writer that knows nothing of it: commits per second beside it and alone.

One-row transactions by plain SQLite, the default sync interval of a second, the replica in a folder.
Runs with and without take turns, so that what else the machine does meets both; each pair gives one
ratio. WALFERRY_BENCH_ROUNDS (default 7) sets the number of pairs, WALFERRY_BENCH_SHARE
how long a run is. With "pinned" as an argument the
writer has one processor to itself and the sidecar the others.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRATCH = ROOT / ".cache" / "bench-sidecar"
DRIVER = SCRATCH / "commits"
SHARE = float(os.environ.get("WALFERRY_BENCH_SHARE", "1"))
COUNTS = {"NORMAL": int(200_000 * SHARE), "FULL": int(5_000 * SHARE)}
PINNED = "pinned" in sys.argv[1:]


def taskset(*processors):
    return ["taskset", "-c", ",".join(map(str, processors))] if PINNED else []


def one(level, sidecar):
    """A run in a folder of its own."""
    folder = SCRATCH / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    processors = sorted(os.sched_getaffinity(0))
    command = taskset(processors[0]) + [str(DRIVER), str(folder / "app.db"), str(COUNTS[level]), level, "-"]
    os.sync()  # what the last run left to be written is not this one's to pay for
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == "ready\n"
    beside = None
    if sidecar:
        with open(folder / "log", "w") as log:
            beside = subprocess.Popen(
                taskset(*processors[1:]) + [str(ROOT / "dist" / "walferry"), "replicate",
                 str(folder / "app.db"), "file://%s/replica" % folder], stderr=log)
        while not list(folder.glob("replica/ltx/*/*.ltx")):
            assert beside.poll() is None, (folder / "log").read_text()
            time.sleep(0.01)
    said, _ = writer.communicate("\n")
    if beside:
        beside.terminate()
        if beside.wait():
            sys.exit("the sidecar failed\n" + (folder / "log").read_text())
        for line in (folder / "log").read_text().splitlines():
            if " WARN: " in line or " ERROR: " in line:
                print("   ", line)
        output = folder / "restored.db"
        subprocess.run([str(ROOT / "dist" / "walferry"), "restore", "--quiet", "-o", str(output),
                        "file://%s/replica" % folder], check=True)
        for path in (folder / "app.db", output):
            rows = subprocess.run(["sqlite3", "-readonly", str(path), "SELECT count(*), max(id) FROM t"],
                                  capture_output=True, text=True, check=True).stdout.strip()
            assert rows == "%d|%d" % (COUNTS[level], COUNTS[level]), "%s: %s" % (path, rows)
    shutil.rmtree(folder)
    return json.loads(said)


def main():
    SCRATCH.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", str(DRIVER),
                    str(Path(__file__).with_name("commits.c")), "-lsqlite3"], check=True)
    rounds = int(os.environ.get("WALFERRY_BENCH_ROUNDS", "7"))
    print("one-row commits of plain SQLite, %d pairs of runs%s; medians" % (
        rounds, ", pinned" if PINNED else ""))
    print("%-12s %10s %10s %8s %18s %12s %12s %18s" % (
        "synchronous", "alone /s", "beside /s", "ratio", "ratios, all", "WAL alone", "WAL beside",
        "longest, ms"))
    for level in COUNTS:
        alone, beside = [], []
        for round_ in range(rounds):
            for sidecar in ((False, True) if round_ % 2 else (True, False)):
                (beside if sidecar else alone).append(one(level, sidecar))

        def median(runs, field):
            return statistics.median(run[field] for run in runs)

        speed = [b["commits_per_second"] / a["commits_per_second"] for a, b in zip(alone, beside)]
        print("%-12s %10.0f %10.0f %8.3f %18s %8.1f MiB %8.1f MiB %18s" % (
            level, median(alone, "commits_per_second"), median(beside, "commits_per_second"),
            statistics.median(speed), "%.3f to %.3f" % (min(speed), max(speed)),
            max(run["wal_high_water"] for run in alone) / 2**20,
            max(run["wal_high_water"] for run in beside) / 2**20,
            "%.1f and %.1f" % (median(alone, "longest_ms"), median(beside, "longest_ms"))), flush=True)
    DRIVER.unlink()


if __name__ == "__main__":
    main()
