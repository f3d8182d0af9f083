"""The end of a process, in every way that there is, and `walferry sync`, which ships what it left.

All programs here send nothing by themselves for an hour: what is on the replica was sent because the
process ended in order, and what is not is in the WAL and the spool.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from harness import (CACHE, EXTENSION, FAILED, PROGRAM, UNREACHABLE, USAGE, S3Replica, assert_restores,
                     clean_environment, full_images, walferry)

COMMITS = 20

PYTHON = """
import os, signal, sqlite3, sys, time
loader = sqlite3.connect(":memory:")
loader.enable_load_extension(True)
loader.load_extension(os.environ["EXTENSION"])
db = sqlite3.connect(os.environ["DATABASE"], timeout=60, isolation_level=None)
db.execute("PRAGMA journal_mode=WAL")
db.execute("PRAGMA wal_autocheckpoint=5")
db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
db.execute("SELECT walferry_sync(60000)")
for _ in range(COMMITS):
    db.execute("INSERT INTO t (x) VALUES (randomblob(3000))")
print("ready", flush=True)
sys.stdin.readline()
END
"""

# Signals are handled while a program waits for something, as servers do.
WAIT = "while True: time.sleep(60)"
PYTHON_ENDS = {
    # how it ends: (the program's last lines, whether we send SIGTERM, how it ends, all shipped)
    "last close": ("db.close()", False, 0, True),
    "normal exit": ("", False, 0, True),
    "sys.exit in a function": ("def f(): sys.exit(3)\nf()", False, 3, True),
    "os._exit": ("os._exit(4)", False, 4, False),
    "abort": ("os.abort()", False, -signal.SIGABRT, False),
    "SIGTERM": (WAIT, True, -signal.SIGTERM, False),
    "SIGTERM with a handler": (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\nprint('ready', flush=True)\n" + WAIT,
        True, 0, True),
}

NODE = """
const Database = require("better-sqlite3");
const loader = new Database(":memory:");
loader.loadExtension(process.env.EXTENSION + ".so");
const db = new Database(process.env.DATABASE);
db.pragma("journal_mode = WAL");
db.pragma("wal_autocheckpoint = 5");
db.exec("CREATE TABLE t (id INTEGER PRIMARY KEY, x)");
db.prepare("SELECT walferry_sync(60000)").get();
const insert = db.prepare("INSERT INTO t (x) VALUES (randomblob(3000))");
for (let n = 0; n < COMMITS; n++) insert.run();
setInterval(() => {}, 60000);
HANDLER
process.stdout.write("ready\\n", () => { END });
"""

NODE_ENDS = {
    "last close": ("db.close(); process.exit(0)", "", False, 0, True),
    "process.exit": ("process.exit(3)", "", False, 3, True),
    "abort": ("process.abort()", "", False, -signal.SIGABRT, False),
    "SIGTERM": ("", "", True, -signal.SIGTERM, False),
    "SIGTERM with a handler": ("", "process.on('SIGTERM', () => process.exit(0));", True, 0, True),
    "SIGTERM with a handler that closes": (
        "", "process.on('SIGTERM', () => { db.close(); process.exit(0); });", True, 0, True),
}


@pytest.fixture
def left(replica, tmp_path):
    """Runs a program to its end; the seconds that the end took."""

    def run(command, terminate, code, lines=1, replica=replica, env=None, before=lambda: None):
        settings = dict(
            clean_environment(), EXTENSION=str(EXTENSION.with_suffix("")),
            DATABASE=str(tmp_path / "app.db"), WALFERRY_REPLICA=replica.url,
            WALFERRY_SYNC_INTERVAL="1h", WALFERRY_LOG_FILE=str(tmp_path / "walferry.log"),
            NODE_PATH=str(CACHE / "node" / "node_modules"), **dict(replica.env, **(env or {})))
        with open(tmp_path / "program.err", "w") as errors:
            program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                       stderr=errors, env=settings, bufsize=0)
        try:
            for line in range(lines):
                said = program.stdout.readline()
                assert said == b"ready\n", (tmp_path / "program.err").read_text()
                if line == 0:
                    before()
                    began = time.monotonic()
                    try:
                        program.stdin.write(b"go on\n")
                    except BrokenPipeError:  # one that does not wait has ended already
                        pass
            if terminate:
                program.send_signal(signal.SIGTERM)
            assert program.wait(120) == code, (tmp_path / "program.err").read_text()
            return time.monotonic() - began
        finally:
            program.kill()
            program.wait()
            program.stdin.close()
            program.stdout.close()

    return run


def python(end):
    return [sys.executable, "-c", PYTHON.replace("COMMITS", str(COMMITS)).replace("END", end)]


def check_left(shipped, replica, new_host, tmp_path, by):
    database = tmp_path / "app.db"
    if shipped:
        assert_restores(replica, database, tmp_path)
    else:
        with pytest.raises(AssertionError, match="bytes, page size"):
            assert_restores(replica, database, tmp_path, "too-old.db")
        if by == "sync":
            walferry("sync", database, env={"WALFERRY_LOG_FILE": str(tmp_path / "walferry.log")})
        else:
            host = new_host("apsw", replica)
            host.open(database)
            assert host.value("SELECT count(*) FROM t") == COMMITS
            host.sync()
        assert_restores(replica, database, tmp_path)
    assert len(full_images(replica)) == 1
    return database


@pytest.mark.parametrize("by", ["sync", "the next opener"])
@pytest.mark.parametrize("end", PYTHON_ENDS)
def test_python(end, by, left, new_host, replica, tmp_path):
    text, terminate, code, shipped = PYTHON_ENDS[end]
    left(python(text), terminate, code, lines=2 if "handler" in end else 1)
    check_left(shipped, replica, new_host, tmp_path, by)


@pytest.mark.parametrize("end", NODE_ENDS)
def test_node(end, left, new_host, replica, tmp_path):
    text, handler, terminate, code, shipped = NODE_ENDS[end]
    program = tmp_path / "program.js"
    program.write_text(NODE.replace("COMMITS", str(COMMITS)).replace("HANDLER", handler)
                       .replace("END", text))
    left(["node", str(program)], terminate, code)
    check_left(shipped, replica, new_host, tmp_path, "sync")


@pytest.mark.parametrize("end", ["normal exit", "last close", "SIGTERM with a handler"])
def test_a_store_that_hangs_delays_the_exit_no_longer_than_said(end, left, new_host, proxy, s3,
                                                                 tmp_path):
    """The bound is generous; without the limit it would be the store's own time-outs."""
    replica = S3Replica(s3, "hangs-%d-%s" % (os.getpid(), end.replace(" ", "-")), proxy.endpoint)
    text, terminate, code, _ = PYTHON_ENDS[end]
    took = left(python(text), terminate, code, lines=2 if "handler" in end else 1, replica=replica,
                env={"WALFERRY_SHUTDOWN_TIMEOUT": "1s"}, before=lambda: proxy.rule("blackhole"))
    assert took < 15, "the exit took %.1f s" % took
    assert "not everything was shipped in 1s" in (tmp_path / "walferry.log").read_text()
    proxy.heal()
    walferry("sync", tmp_path / "app.db", "--replica", replica.url, env=replica.env)
    assert_restores(replica, tmp_path / "app.db", tmp_path)
    assert len(full_images(replica)) == 1


# ---- walferry sync ---------------------------------------------------------------------------


def test_sync_after_sigkill(new_host, new_replica, rng, tmp_path):
    """Commits in the WAL, in the spool, and in both, at a random moment."""
    replica, database = new_replica(), tmp_path / "app.db"
    for round_ in range(8):
        host = new_host("system", replica, env={"WALFERRY_SYNC_INTERVAL": rng.choice(("0", "1h"))})
        host.open(database)
        host.sql("PRAGMA journal_mode=WAL", "PRAGMA wal_autocheckpoint=%d" % rng.choice((3, 1000)),
                 "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, w, n, x)")
        notes = tmp_path / ("notes%d" % round_)
        notes.touch()
        writing = host.ask("inserter", args=["w%d" % round_, str(notes)])
        while not notes.stat().st_size:
            time.sleep(0.001)
        time.sleep(rng.random() ** 2 * 0.3)  # the random moment
        assert not writing.done(), writing.answers.queue
        host.kill()
        said = json.loads(walferry("sync", "--json", "--replica", replica.url, database).stdout)
        assert said["lag_ms"] == 0 and said["shipper"] is None
        assert said["txid"] == "%016x" % max(last for _, _, last in replica.keys())
        assert_restores(replica, database, tmp_path)
    assert len(full_images(replica)) == 1


def test_sync_of_a_database_that_a_program_has_open(new_host, replica, tmp_path):
    database = tmp_path / "app.db"
    host = new_host("apsw", replica, env={"WALFERRY_SYNC_INTERVAL": "1h"})
    host.open(database)
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
    host.sync()
    for number in range(5):
        host.sql("INSERT INTO t VALUES (randomblob(500))")
        said = json.loads(walferry("sync", "--json", database).stdout)
        assert (said["shipper"], said["lag_ms"]) == (host.process.pid, 0)
        assert_restores(replica, database, tmp_path)
    assert "by process %d: TXID" % host.process.pid in walferry("sync", database).stdout
    other = walferry("sync", database, "--replica", "file://%s" % (tmp_path / "other"), code=FAILED)
    assert "process %d replicates it to" % host.process.pid in other.stderr
    assert not (tmp_path / "other").exists()
    assert len(full_images(replica)) == 1
    host.sql("INSERT INTO t VALUES (1)")
    host.sync()
    assert_restores(replica, database, tmp_path)


def test_sync_begins_a_replica_that_is_named(new_host, replica, tmp_path):
    """A database that no walferry has seen yet, with a name that means something in a URI."""
    database = tmp_path / "a b?c&d=%41#é.db"
    host = new_host(load=False)
    host.open(database)
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)")
    host.close()
    assert "name its replica" in walferry("sync", database, code=USAGE).stderr
    assert not (tmp_path / (database.name + "-walferry")).exists()
    walferry("sync", database, env={"WALFERRY_REPLICA": replica.url})
    assert_restores(replica, database, tmp_path)
    said = walferry("sync", database).stdout  # from now on its state says where to
    assert replica.url in said and "TXID 0000000000000001, lag 0 ms" in said


def test_sync_makes_no_database(replica, tmp_path):
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for name in ("missing.db", "folder", "missing/app.db"):
        walferry("sync", tmp_path / name, "--replica", replica.url, code=USAGE)
    assert sorted(tmp_path.rglob("*")) == before


def test_sync_says_what_it_cannot_do(new_host, replica, tmp_path):
    database = tmp_path / "app.db"
    host = new_host(load=False)
    host.open(database)
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
    host.close()
    silent = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "k",
              "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-1"}
    said = walferry("sync", database, "--replica", "s3://bucket/app", "--timeout", "500ms", env=silent,
                    code=UNREACHABLE)
    assert "not replicated in time" in said.stderr
    for arguments in (["--replica", "gopher://x"], ["--replica", ""], ["--timeout", "soon"],
                      ["--replica", replica.url, "--extension", tmp_path / "none.so"]):
        walferry("sync", database, *arguments, code=USAGE)
    # The wrong file is not loaded; what was named is what counts.
    (tmp_path / "text.so").write_text("text")
    said = walferry("sync", database, "--replica", replica.url, code=FAILED,
                    env={"WALFERRY_EXTENSION": str(tmp_path / "text.so")})
    assert "cannot load the extension" in said.stderr
    assert not list(replica.folder.rglob("*.ltx"))


@pytest.mark.parametrize("place", [".", "../lib/walferry"])
def test_sync_finds_the_extension(place, replica, tmp_path):
    programs = tmp_path / "bin"
    (programs / place).mkdir(parents=True, exist_ok=True)
    shutil.copy(PROGRAM, programs)
    command = [str(programs / "walferry"), "sync", str(tmp_path / "app.db"), "--replica", replica.url]
    subprocess.run(["sqlite3", str(tmp_path / "app.db"), "PRAGMA journal_mode=WAL; CREATE TABLE t (x)"],
                   check=True, capture_output=True)
    done = subprocess.run(command, text=True, capture_output=True, env=clean_environment())
    assert done.returncode == USAGE and "name it with --extension" in done.stderr, done.stderr
    shutil.copy(EXTENSION, programs / place)
    done = subprocess.run(command, text=True, capture_output=True, env=clean_environment())
    assert done.returncode == 0, done.stderr
    assert_restores(replica, tmp_path / "app.db", tmp_path)
