#!/usr/bin/env python3
"""What replication costs a writer: commits per second with the extension and without.

One-row transactions, the default sync interval of a second, the replica in a folder. Runs with and
without take turns, so that what else the machine does meets both; each pair gives one ratio.
WALFERRY_BENCH_ROUNDS (default 7) sets the number of pairs.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRATCH = ROOT / ".cache" / "bench"
DRIVER = SCRATCH / "commits"
COUNTS = {"NORMAL": 400_000, "FULL": 20_000}


def one(level, extension):
    """A run in a folder of its own."""
    folder = SCRATCH / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    command = [str(DRIVER), str(folder / "app.db"), str(COUNTS[level]), level]
    env = dict(os.environ)
    if extension:
        command.append(str(ROOT / "dist" / "walferry"))
        env["WALFERRY_REPLICA"] = "file://%s/replica" % folder
    os.sync()  # what the last run left to be written is not this one's to pay for
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        sys.exit("%s\n%s" % (" ".join(command), done.stderr))
    shutil.rmtree(folder)
    return json.loads(done.stdout)


def main():
    SCRATCH.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", str(DRIVER),
                    str(Path(__file__).with_name("commits.c")), "-lsqlite3"], check=True)
    rounds = int(os.environ.get("WALFERRY_BENCH_ROUNDS", "7"))
    print("one-row commits, %d pairs of runs; medians" % rounds)
    print("%-12s %10s %10s %8s %18s %10s %10s %12s %12s" % (
        "synchronous", "plain /s", "with /s", "ratio", "ratios, all",
        "thread CPU", "all CPU", "WAL plain", "WAL with"))
    for level in COUNTS:
        plain, with_it = [], []
        for round_ in range(rounds):
            for extension in ((False, True) if round_ % 2 else (True, False)):
                (with_it if extension else plain).append(one(level, extension))

        def ratio(field):
            return [b[field] / a[field] for a, b in zip(plain, with_it)]

        def median(runs, field):
            return statistics.median(run[field] for run in runs)

        speed = ratio("commits_per_second")
        print("%-12s %10.0f %10.0f %8.3f %18s %9.2fx %9.2fx %8.1f MiB %8.1f MiB" % (
            level, median(plain, "commits_per_second"), median(with_it, "commits_per_second"),
            statistics.median(speed), "%.3f to %.3f" % (min(speed), max(speed)),
            statistics.median(ratio("thread_cpu")), statistics.median(ratio("process_cpu")),
            max(run["wal_high_water"] for run in plain) / 2**20,
            max(run["wal_high_water"] for run in with_it) / 2**20), flush=True)
    DRIVER.unlink()


if __name__ == "__main__":
    main()
