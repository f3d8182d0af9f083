#!/usr/bin/env python3
"""What a process pays for many replicated databases open at a time: memory, files, threads, idle work.

    python3 bench/many.py [--s3]

Each database has one table, a connection, and a replica of its own: a folder, or with --s3 a prefix
on the test server. WALFERRY_BENCH_DATABASES (default 1000) sets how many there are.
"""

import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRATCH = ROOT / ".cache" / "bench" / "many"
IDLE_SECONDS = 5


def memory_kib():
    with open("/proc/self/smaps_rollup") as rollup:
        fields = dict(line.split(":") for line in rollup if ":" in line and "-" not in line.split(":")[0])
    # What is this process's own; pages of the page cache that are only mapped do not count.
    return {name: int(fields[name].split()[0]) for name in ("Rss", "Private_Dirty")}


def threads():
    names = []
    for task in os.listdir("/proc/self/task"):
        names.append(Path("/proc/self/task", task, "comm").read_text().strip())
    return sorted(name for name in names if name.startswith("walferry"))


def sockets():
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink("/proc/self/fd/" + name).startswith("socket:")
        except FileNotFoundError:
            pass
    return count


class Peak(threading.Thread):
    """The most sockets that were open at a time."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak, self.done = 0, threading.Event()

    def run(self):
        while not self.done.wait(0.02):
            self.peak = max(self.peak, sockets())

    def end(self):
        self.done.set()
        self.join()
        return self.peak


def one(folder, count, extension):
    """Opens all databases, in this process; figures as JSON."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if extension:
        loader = sqlite3.connect(":memory:")
        loader.enable_load_extension(True)
        loader.load_extension(str(ROOT / "dist" / "walferry"))
    before, files_before = memory_kib(), len(os.listdir("/proc/self/fd"))
    said = {}
    began = time.monotonic()
    databases = []
    for number in range(count):
        db = sqlite3.connect("%s/%04d.db" % (folder, number), isolation_level=None, timeout=60)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
        db.execute("INSERT INTO t (x) VALUES (randomblob(1000))")
        databases.append(db)
    said["open_seconds"] = time.monotonic() - began

    def status():
        return json.loads(databases[0].execute("SELECT walferry_status()").fetchone()[0])

    def sync_all():
        peak = Peak()
        peak.start()
        began = time.monotonic()
        for db in databases:
            db.execute("SELECT walferry_sync(300000)").fetchall()
        return time.monotonic() - began, peak.end()

    if extension:
        said["image_seconds"], said["image_sockets"] = sync_all()
        for db in databases:
            db.execute("INSERT INTO t (x) VALUES (randomblob(1000))")
        said["sync_seconds"], said["sync_sockets"] = sync_all()
        said["threads"] = threads()
        requests = sum(one["requests"] for one in status())
    now = memory_kib()
    said["files"] = (len(os.listdir("/proc/self/fd")) - files_before) / count
    for name in now:
        said[name] = (now[name] - before[name]) / count
    cpu = time.process_time()
    time.sleep(IDLE_SECONDS)
    said["idle_cpu"] = (time.process_time() - cpu) / IDLE_SECONDS
    if extension:
        said["idle_requests"] = sum(one["requests"] for one in status()) - requests
        said["images"] = sum(one["images"] for one in status())
    return said


def measure(count, extension, server):
    shutil.rmtree(SCRATCH, ignore_errors=True)
    SCRATCH.mkdir(parents=True)
    env = {name: value for name, value in os.environ.items() if not name.startswith("WALFERRY_")}
    if extension:
        env["WALFERRY_REPLICA"] = "file://%s/replica/{name}" % SCRATCH
    if extension and server:
        env["WALFERRY_REPLICA"] = "s3://%s/many-%d/{name}" % (server["S3_BUCKET"], os.getpid())
        env.update({name: server[name] for name in server if name.startswith("AWS_")},
                   AWS_ENDPOINT_URL=server["S3_ENDPOINT"])
    done = subprocess.run([sys.executable, __file__, "one", str(count), str(int(extension))],
                          text=True, stdout=subprocess.PIPE, env=env)
    if done.returncode:
        sys.exit("the measured process ended with %d" % done.returncode)
    shutil.rmtree(SCRATCH)
    return json.loads(done.stdout)


def main():
    count = int(os.environ.get("WALFERRY_BENCH_DATABASES", "1000"))
    server = None
    script, folder = ROOT / "tests" / "servers" / "s3.py", SCRATCH.parent / "s3"
    if "--s3" in sys.argv:
        started = subprocess.run([sys.executable, script, "start", "--dir", folder, "--install",
                                  ROOT / ".cache" / "servers"], check=True, text=True,
                                 stdout=subprocess.PIPE).stdout
        server = dict(line.split("=", 1) for line in started.splitlines())
    try:
        plain, with_it = (measure(count, extension, server) for extension in (False, True))
    finally:
        if server:
            subprocess.run([sys.executable, script, "stop", "--dir", folder], check=True)
    print("%d databases open in one process, a connection each; per database:" % count)
    for label, name, unit in (("memory, resident", "Rss", "KiB"),
                              ("memory, private and written", "Private_Dirty", "KiB"),
                              ("open files", "files", "")):
        print("  %-28s %8.1f plain %8.1f with walferry, %.1f more %s" % (
            label, plain[name], with_it[name], with_it[name] - plain[name], unit))
    print("all together:")
    print("  open and first commit        %8.2f s plain %6.2f s with walferry" % (
        plain["open_seconds"], with_it["open_seconds"]))
    print("  threads                      %s" % ", ".join(with_it["threads"]))
    print("  full images                  %8d, in %.1f s, at most %d sockets" % (
        with_it["images"], with_it["image_seconds"], with_it["image_sockets"]))
    print("  a commit in each, shipped in %8.2f s, at most %d sockets" % (
        with_it["sync_seconds"], with_it["sync_sockets"]))
    print("  idle for %d s                 %8d requests, %.1f %% of a core, plain %.1f %%" % (
        IDLE_SECONDS, with_it["idle_requests"], 100 * with_it["idle_cpu"], 100 * plain["idle_cpu"]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        print(json.dumps(one(SCRATCH, int(sys.argv[2]), sys.argv[3] == "1")))
    else:
        main()
