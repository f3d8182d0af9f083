"""Stores, disks and clocks that misbehave: the application does not notice, the lag is told as it
is, and nothing is lost or sent twice when all is well again."""

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from harness import (CACHE, ROOT, UNREACHABLE, DirectoryReplica, HostError, S3Replica, assert_restores, check_integrity,
                     full_images, restore, rows, txids, walferry)
from sidecar import begin, synced, wait_for

DAY = 86400


@pytest.fixture
def replica(proxy, s3, tmp_path):
    """A replica behind the proxy; read back without it."""
    return S3Replica(s3, "outage/%s" % tmp_path.name, proxy.endpoint)


@pytest.fixture(scope="session")
def misfortune_library(tmp_path_factory):
    library = tmp_path_factory.mktemp("misfortune") / "misfortune.so"
    source = os.path.join(os.path.dirname(__file__), "misfortune.c")
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", str(library), source, "-ldl"], check=True)
    return library


class Misfortune:
    """What befalls a host; see misfortune.c."""

    def __init__(self, folder, library):
        folder.mkdir()
        self.folder = folder
        self.env = {"LD_PRELOAD": str(library), "MISFORTUNE": str(folder)}

    def set(self, name, text=""):
        part = self.folder / (name + ".new")
        part.write_text(str(text))
        part.rename(self.folder / name)

    def over(self, name):
        (self.folder / name).unlink()


@pytest.fixture
def misfortune(tmp_path, misfortune_library):
    return Misfortune(tmp_path / "misfortune", misfortune_library)


def start(new_host, replica, database, **env):
    host = new_host("system", replica, env=env)
    host.open(database)
    # Small checkpoints: the WAL is to be begun anew many times while something is wrong.
    host.sql("PRAGMA journal_mode=WAL", "PRAGMA wal_autocheckpoint=20",
             "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, x)")
    return host


def commits(host, number, size=2000):
    host.call("fill", sql="INSERT INTO t (x) VALUES (?)", size=size, times=number, seed=number)


def unbothered(host, database, number=150):
    """Commits go through, and it is told that the replica does not have them."""
    commits(host, number)
    state = host.status(database)
    assert state["lag_ms"] > 0 and host.value("SELECT walferry_lag()") > 0, state
    return state


def until(host, database, condition, seconds=60):
    """Waits for a state; the state."""
    deadline = time.monotonic() + seconds
    while True:
        state = host.status(database)
        if condition(state):
            return state
        assert time.monotonic() < deadline, json.dumps(state)
        time.sleep(0.02)


def all_well(host, database, replica, folder, images=1):
    """Everything is on the replica, and it took no image that was not needed."""
    host.sync()
    state = host.status(database)
    assert (state["state"], state["lag_ms"], state["pending_bytes"]) == ("streaming", 0, 0), state
    assert state["last_error"] is None, state
    assert_restores(replica, database, folder)
    assert len(full_images(replica)) == images, full_images(replica)
    every = txids(replica)
    assert every == list(range(every[0], every[-1] + 1)), "a hole in the log"
    return every


# ---- the network and the store ---------------------------------------------------------------


def test_a_slow_store_makes_larger_files_not_a_queue(new_host, replica, proxy, tmp_path):
    database = tmp_path / "app.db"
    host = start(new_host, replica, database, WALFERRY_SYNC_INTERVAL="0")
    host.sync()
    before = len(txids(replica))
    rule = proxy.rule("latency", ms=300)
    for _ in range(6):
        commits(host, 60)
        assert host.status(database)["spool_files"] < 50
    proxy.wait(rule)
    host.sync()
    assert len(txids(replica)) - before < 60, "a file for each commit although the store is slow"
    proxy.heal()
    all_well(host, database, replica, tmp_path)


@pytest.mark.parametrize("of", ["files", "the first image"])
def test_a_store_that_asks_to_be_left_alone_is(of, new_host, replica, proxy, tmp_path):
    """For as long as it asks, even when somebody waits with walferry_sync()."""
    database, wish = tmp_path / "app.db", 3
    if of == "files":
        host = start(new_host, replica, database)
        host.sync()
        rule = proxy.rule("status", code=503, retry_after=wish, method="PUT", count=2)
    else:
        rule = proxy.rule("status", code=503, retry_after=wish, method="PUT", count=2)
        host = start(new_host, replica, database)
    unbothered(host, database)
    proxy.wait(rule)
    state = until(host, database, lambda state: state["last_error"])
    assert "slow down" in state["last_error"], state
    all_well(host, database, replica, tmp_path)
    log = proxy.log()
    asked = [n for n, entry in enumerate(log) if entry["faults"] == ["status"]]
    assert len(asked) == 2
    for n in asked:
        # Both times are those of the proxy, which notes a request when it has come in.
        assert log[n + 1]["t"] - log[n]["t"] >= wish - 0.01, log[n:n + 2]


def test_a_restore_waits_when_it_is_asked_to(new_host, replica, proxy, tmp_path):
    database = tmp_path / "app.db"
    host = start(new_host, replica, database)
    host.sync()
    proxy.rule("status", code=503, retry_after=1, method="GET", count=2, skip=1)
    walferry("restore", "-o", tmp_path / "out.db", replica.url, env=replica.env)
    check_integrity(tmp_path / "out.db")


def test_the_answer_is_lost_after_the_write(new_host, replica, proxy, tmp_path):
    database = tmp_path / "app.db"
    host = start(new_host, replica, database)
    host.sync()
    for kind, spec in (("lost_response", {}), ("blackhole", {"where": "response"})):
        rule = proxy.rule(kind, method="PUT", **spec)
        commits(host, 20)
        proxy.wait(rule)
        commits(host, 150)
        proxy.heal()
        host.sync()
    all_well(host, database, replica, tmp_path)


def test_connections_are_cut_in_the_body(new_host, replica, proxy, tmp_path):
    database = tmp_path / "app.db"
    rule = proxy.rule("cut", where="request", bytes=700, method="PUT", count=7)
    host = start(new_host, replica, database)
    # More than one part, for the image and for a file.
    commits(host, 24, size=1_000_000)
    host.sync()
    proxy.wait(rule, hits=7)
    rule = proxy.rule("cut", where="request", bytes=300_000, method="PUT", count=7)
    host.sql("BEGIN IMMEDIATE")
    commits(host, 12, size=1_000_000)
    host.sql("COMMIT")
    proxy.wait(rule)
    all_well(host, database, replica, tmp_path)
    # On the way back it is repeated where it broke off, and given up if that never ends.
    proxy.rule("cut", where="response", bytes=5000, method="GET", path=r"\.ltx", count=2)
    walferry("restore", "-o", tmp_path / "out.db", replica.url, env=replica.env)
    assert rows(tmp_path / "out.db", "SELECT count(*) FROM t") == [(36,)]
    proxy.rule("cut", where="response", bytes=50, method="GET", path=r"\.ltx")
    said = walferry("restore", "-o", tmp_path / "no.db", replica.url, env=replica.env,
                    code=UNREACHABLE).stderr
    assert "broke off" in said and not (tmp_path / "no.db").exists()


def test_names_are_not_resolved(new_host, replica, proxy, misfortune, tmp_path):
    database = tmp_path / "app.db"
    replica.env["AWS_ENDPOINT_URL"] = replica.endpoint.replace("127.0.0.1", "localhost")
    host = start(new_host, replica, database, **misfortune.env)
    host.sync()
    for _ in range(2):
        misfortune.set("dns")
        # The connection that is open needs no name.
        rule = proxy.rule("reset", count=1)
        commits(host, 5)
        proxy.wait(rule)
        state = until(host, database, lambda state: "dns" in (state["last_error"] or ""))
        assert state["state"] == "waiting" and "localhost" in state["last_error"], state
        unbothered(host, database)
        proxy.heal()
        misfortune.over("dns")
        host.sync()
    all_well(host, database, replica, tmp_path)


def test_names_that_hang_hold_up_no_other_replica(new_host, misfortune, tmp_path):
    """Lookups without an answer have threads of their own, one a name, however often a request waits."""
    config, replica, database = tmp_path / "walferry.yml", DirectoryReplica(tmp_path / "replica"), tmp_path / "app.db"
    dead = [tmp_path / ("dead%d.db" % number) for number in range(5)]
    config.write_text(
        "access-key-id: a\nsecret-access-key: s\ndbs:\n"
        + "".join("  - path: %s\n    replica: {type: s3, bucket: b, path: %s, region: r, "
                  "endpoint: 'https://%s.invalid'}\n" % (path, path.stem, path.stem) for path in dead)
        + "  - path: %s\n    replica: {type: file, path: %s}\n" % (database, replica.folder))
    misfortune.set("dns", "hang")
    host = new_host("system", env=dict(misfortune.env, WALFERRY_CONFIG=str(config)))
    for path in dead:
        host.open(path, path.name)
        host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)", conn=path.name)

    def lookups():
        return host.facts()["threads"].count("walferry-names")

    def waiting():
        return [path for path in dead if "timeout" in (host.status(path, path.name)["last_error"] or "")]

    host.open(database)
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    host.sync()
    # Each request that was given up has waited for a lookup, and another one waits by now.
    deadline = time.monotonic() + 60
    while len(waiting()) < len(dead):
        assert lookups() <= len(dead) and time.monotonic() < deadline, (lookups(), host.status())
        commits(host, 2)
        host.sync()
    assert lookups() == len(dead)
    all_well(host, database, replica, tmp_path)
    misfortune.over("dns")
    until(host, dead[0], lambda state: "dns" in (state["last_error"] or ""))


def test_no_thread_is_to_be_had(new_host, misfortune, tmp_path):
    """For the calls that may block: no panic, and all goes on when there is one."""
    replica, database = DirectoryReplica(tmp_path / "replica"), tmp_path / "app.db"
    misfortune.set("threads", "walferry-ship")
    host = start(new_host, replica, database, **misfortune.env)
    state = until(host, database, lambda state: "thread" in (state["last_error"] or ""))
    assert state["state"] == "imaging", state
    unbothered(host, database)
    misfortune.over("threads")
    host.sync()
    all_well(host, database, replica, tmp_path)
    assert "internal error" not in (tmp_path / "walferry.log").read_text()


def test_an_image_that_was_read_holds_back_no_checkpoint(new_host, proxy, replica, tmp_path):
    """Its last parts wait for the store."""
    database = tmp_path / "app.db"
    with contextlib.closing(sqlite3.connect(database)) as plain:
        plain.executescript("PRAGMA journal_mode=WAL; CREATE TABLE big AS SELECT randomblob(20000000)")
        rule = proxy.rule("hold", method="PUT", path="partNumber")
        host = start(new_host, replica, database)
        proxy.wait(rule)
        commits(host, 5)
        deadline = time.monotonic() + 30
        while True:
            busy, frames, copied = plain.execute("PRAGMA wal_checkpoint").fetchone()
            if (busy, copied) == (0, frames):
                break
            assert time.monotonic() < deadline, "%d of %d frames" % (copied, frames)
    assert host.status(database)["state"] == "imaging"
    proxy.heal()
    host.sync()
    all_well(host, database, replica, tmp_path)


def test_no_herd(new_host, s3, proxy, tmp_path):
    """Fifty databases of one process and a dead store: few requests, and not all at once."""
    replica = S3Replica(s3, "herd/%s/{name}" % tmp_path.name, proxy.endpoint)
    host = new_host("system", replica)
    for n in range(50):
        host.open(tmp_path / ("%d.db" % n), conn="c%d" % n)
        host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)", conn="c%d" % n)
    for n in range(50):
        host.sync(conn="c%d" % n)
    proxy.ask("DELETE", "/log")
    rule = proxy.rule("status", code=503)
    for n in range(50):
        host.sql("INSERT INTO t VALUES (1)", conn="c%d" % n)
    # Six failures of each are behind us when the longest wait is reached.
    proxy.wait(rule, hits=50 * 7, seconds=180)
    begun = len(proxy.log())
    proxy.wait(rule, hits=begun + 150, seconds=180)
    times = [entry["t"] for entry in proxy.log()[begun:begun + 150]]
    # Each asks at most three times in 7.5 to 15 s: 10 to 20 a second, all together.
    assert 150 / (times[-1] - times[0]) < 25, times
    crowd = max(sum(1 for other in times if t <= other < t + 1) for t in times)
    assert crowd < 60, "%d requests in one second" % crowd
    assert all(one["lag_ms"] > 0 and one["state"] == "waiting" for one in host.status(conn="c0"))
    proxy.heal()
    for n in range(50):
        host.sync(conn="c%d" % n)
    assert all(one["lag_ms"] == 0 for one in host.status(conn="c0"))


# ---- credentials -----------------------------------------------------------------------------


def profile(folder, replica, way, secret, token):
    """Credentials that a host finds in ~/.aws, in one of two ways."""
    key = "ASIAWALFERRYTESTS001"
    if way == "file":
        lines = ["aws_access_key_id=" + key, "aws_secret_access_key=" + secret,
                 "aws_session_token=" + token]
    else:
        answer = {"Version": 1, "AccessKeyId": key, "SecretAccessKey": secret, "SessionToken": token,
                  "Expiration": "2099-01-01T00:00:00Z"}
        (folder / "answer").write_text(json.dumps(answer))
        lines = ["credential_process=cat %s" % (folder / "answer")]
    (folder / "config.new").write_text("\n".join(["[default]"] + lines) + "\n")
    (folder / "config.new").rename(folder / "config")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        replica.env.pop(name, None)
    replica.env.update(AWS_CONFIG_FILE=str(folder / "config"),
                       AWS_SHARED_CREDENTIALS_FILE=str(folder / "none"))


@pytest.mark.parametrize("way", ["file", "process"])
def test_credentials_expire_and_are_renewed(way, new_host, replica, proxy, s3, tmp_path):
    """The store refuses a token before its time is over; the next one is found without a restart."""
    database = tmp_path / "app.db"
    server = {"key": s3["AWS_ACCESS_KEY_ID"], "secret": s3["AWS_SECRET_ACCESS_KEY"]}
    profile(tmp_path, replica, way, "secret of the first", "first")
    proxy.rule("token", token="first", **server)
    host = start(new_host, replica, database)
    host.sync()
    for old, new in (("first", "second"), ("second", "third")):
        proxy.heal()
        rule = proxy.rule("token", token=new, **server)
        commits(host, 10)
        proxy.wait(rule)
        state = until(host, database, lambda state: "ExpiredToken" in (state["last_error"] or ""))
        assert state["state"] == "waiting" and "secret of" not in json.dumps(state)
        unbothered(host, database)
        profile(tmp_path, replica, way, "secret of the " + new, new)
        host.sync()
    proxy.heal()
    proxy.rule("token", token="third", **server)
    all_well(host, database, replica, tmp_path)


def test_wrong_credentials_and_then_right_ones(new_host, replica, s3, tmp_path):
    database = tmp_path / "app.db"
    config = tmp_path / "config"
    text = "[default]\naws_access_key_id=%s\naws_secret_access_key=%%s\n" % s3["AWS_ACCESS_KEY_ID"]
    config.write_text(text % "wrong")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        replica.env.pop(name)
    replica.env.update(AWS_CONFIG_FILE=str(config), AWS_SHARED_CREDENTIALS_FILE=str(tmp_path / "none"))
    host = start(new_host, replica, database)
    state = until(host, database, lambda state: state["last_error"])
    assert "does not accept the credentials" in state["last_error"], state
    unbothered(host, database)
    config.write_text(text % s3["AWS_SECRET_ACCESS_KEY"])
    all_well(host, database, replica, tmp_path)


# ---- a replica that is gone ------------------------------------------------------------------


def log_text(tmp_path):
    return (tmp_path / "walferry.log").read_text()


@pytest.mark.parametrize("meanwhile", ["commits", "nothing", "a restart"])
def test_the_bucket_is_deleted_and_created_again(meanwhile, new_host, servers, tmp_path):
    """The log must not go on behind files that are no longer there: it begins again, and says so."""
    database = tmp_path / "app.db"
    # The first server makes a bucket that is missing by itself.
    replica = S3Replica(servers("s3_second.py"), "app")
    replica.bucket = "outage-" + meanwhile.replace(" ", "-")
    replica.url = "s3://%s/app" % replica.bucket
    replica.client.create_bucket(Bucket=replica.bucket)
    host = start(new_host, replica, database)
    commits(host, 20)
    before = int(host.sync(), 16)
    replica.remove_all()
    replica.client.delete_bucket(Bucket=replica.bucket)
    if meanwhile == "commits":
        commits(host, 5)
        state = until(host, database, lambda state: "does not exist" in (state["last_error"] or ""))
        assert state["state"] == "waiting", state
        unbothered(host, database)
    elif meanwhile == "a restart":
        host.finish()
    replica.client.create_bucket(Bucket=replica.bucket)
    if meanwhile == "a restart":
        host = start(new_host, replica, database)
    commits(host, 5)
    if meanwhile == "nothing":
        # Nothing told this process: what it ships until its next start has no base.
        host.sync()
        host.finish()
        host = start(new_host, replica, database)
        commits(host, 5)
    every = all_well(host, database, replica, tmp_path, images=1)
    assert every[-1] > before, "TXIDs go on, so that a late file of the old log finds no free place"
    assert "lacks files that it had confirmed" in log_text(tmp_path)


def test_the_folder_is_emptied_between_two_starts(new_host, new_replica, tmp_path):
    replica, database = new_replica(), tmp_path / "app.db"
    host = start(new_host, replica, database)
    before = int(host.sync(), 16)
    host.finish()
    shutil.rmtree(replica.folder)
    replica.folder.mkdir()
    host = start(new_host, replica, database)
    commits(host, 5)
    every = all_well(host, database, replica, tmp_path)
    assert every[0] > before and "is empty and lacks files" in log_text(tmp_path)


def test_the_folder_is_away_for_a_while(new_host, new_replica, tmp_path):
    """As a disk that is unmounted and mounted again: nothing is written to the place below it."""
    replica, database = new_replica(), tmp_path / "app.db"
    host = start(new_host, replica, database)
    host.sync()
    away = tmp_path / "away"
    replica.folder.rename(away)
    commits(host, 5)
    state = until(host, database, lambda state: "is gone" in (state["last_error"] or ""))
    assert state["state"] == "waiting"
    unbothered(host, database)
    assert not replica.folder.exists()
    away.rename(replica.folder)
    all_well(host, database, replica, tmp_path)
    assert "lacks files" not in log_text(tmp_path)


def test_the_replica_is_rolled_back(new_host, new_replica, tmp_path):
    """An older state of the replica was put back: what came after it is sent again, as a whole."""
    replica, database = new_replica(), tmp_path / "app.db"
    host = start(new_host, replica, database)
    host.sync()
    commits(host, 5)
    kept = int(host.sync(), 16)
    for _ in range(3):
        commits(host, 5)
        host.sync()
    last = txids(replica)[-1]
    host.finish()
    for level, first, end in replica.keys():
        if end > kept:
            replica.path(level, first, end).unlink()
    host = start(new_host, replica, database)
    commits(host, 5)
    host.sync()
    assert_restores(replica, database, tmp_path)
    assert txids(replica)[-1] > last and "ends with transaction %016x" % kept in log_text(tmp_path)
    restore(replica, tmp_path / "older.db", kept)
    assert rows(tmp_path / "older.db", "SELECT count(*) FROM t") == [(5,)]


def test_an_image_keeps_the_wal_that_was_captured(new_host, replica, proxy, tmp_path):
    """All of the WAL is captured and in the database file when the image begins: a writer would begin it
    anew, and the image would be thrown away at its end."""
    database = tmp_path / "app.db"
    host = start(new_host, replica, database)
    host.sql("WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 90)"
             " INSERT INTO t (x) SELECT randomblob(1000000) FROM n")
    host.sync()
    host.finish()
    replica.remove_all()
    host = start(new_host, replica, database)
    held = proxy.rule("hold")
    host.sql("PRAGMA wal_autocheckpoint=0", "INSERT INTO t (x) VALUES (1)")
    # The look before the first file, which finds that the replica was emptied.
    proxy.wait(held)
    [[busy, frames, copied]] = host.sql("PRAGMA wal_checkpoint(PASSIVE)")
    assert (busy, copied) == (0, frames) and frames > 0
    proxy.heal()
    held = proxy.rule("hold", method="PUT", path="/0009/")
    proxy.ask("POST", "/release")
    proxy.wait(held)

    def salts():
        with open(str(database) + "-wal", "rb") as wal:
            return wal.read(24)[16:]
    state = host.status(database)
    before = salts()
    assert 0 < state["image_bytes"] < state["image_total"], state
    host.sql("INSERT INTO t (x) VALUES (2)")
    assert salts() == before
    proxy.heal()
    proxy.ask("POST", "/release")
    host.sync()
    assert "was not sent" not in log_text(tmp_path)
    assert host.status(database)["images"] == 1
    assert_restores(replica, database, tmp_path)


# ---- the age of what waits -------------------------------------------------------------------


class Age:
    """How long something is ago, in milliseconds, by the clock that shows the least."""

    CLOCKS = time.CLOCK_BOOTTIME, time.CLOCK_REALTIME

    def __init__(self):
        self.began = [time.clock_gettime(clock) for clock in self.CLOCKS]

    def least(self):
        return min(int((time.clock_gettime(clock) - began) * 1000)
                   for clock, began in zip(self.CLOCKS, self.began))


def lag_of(host, committed):
    """The lag in milliseconds, if it is told: never less than the age of a commit that waits."""
    least = committed.least()
    told = host.value("SELECT walferry_lag()"), host.status()[0]["lag_ms"]
    assert all(lag is None or lag >= least for lag in told), (told, least)
    return told[1]


@pytest.mark.parametrize("what", ["is in the spool", "is in the WAL", "needs an image", "has to be compared"])
def test_the_lag_goes_on_in_the_next_process(what, new_host, new_replica, tmp_path):
    """However often an application is begun anew while the store is away, the lag grows."""
    replica, database = new_replica(), tmp_path / "app.db"
    begun = Age()
    interval = "1h" if what == "is in the WAL" else "20ms"
    host = start(new_host, replica, database, WALFERRY_SYNC_INTERVAL=interval)
    host.sync()
    away = tmp_path / "away"
    replica.folder.rename(away)
    replica.folder.write_text("")
    commits(host, 1)
    committed = Age()
    for _ in range(3):
        until(host, database, lambda state: committed.least() > 2000 and (lag_of(host, committed) or 0) > 2000)
        host.kill()
        if what == "needs an image":
            os.truncate(tmp_path / "app.db-walferry/pages", 0)
        if what == "has to be compared":
            with contextlib.closing(sqlite3.connect(database)) as plain, plain:
                plain.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                plain.execute("INSERT INTO t (x) VALUES (1)")
        host = new_host("system", replica)
        host.open(database)
        host.sql("SELECT count(*) FROM t")
        until(host, database, lambda state: lag_of(host, committed) and state["last_error"])
        assert lag_of(host, committed) <= begun.least() + 60_000
    host.kill()
    replica.folder.unlink()
    away.rename(replica.folder)
    host = new_host("system", replica)
    host.open(database)
    host.sync()
    assert host.value("SELECT walferry_lag()") == 0


def test_the_lag_goes_on_in_the_process_that_takes_over(new_host, new_replica, tmp_path):
    replica, database = new_replica(), tmp_path / "app.db"
    begun = Age()
    host = start(new_host, replica, database)
    host.sync()
    replica.folder.rename(tmp_path / "away")
    replica.folder.write_text("")
    commits(host, 1)
    committed = Age()
    until(host, database, lambda state: state["spool_files"] and state["last_error"])
    other = new_host("apsw", replica)
    other.open(database)
    other.sql("SELECT count(*) FROM t")
    until(other, database, lambda state: state["state"] == "standby" and (lag_of(other, committed) or 0) > 2000)
    host.kill()
    until(other, database, lambda state: lag_of(other, committed) and state["state"] == "waiting")
    assert lag_of(other, committed) <= begun.least() + 60_000


# ---- the clock -------------------------------------------------------------------------------


def times(replica):
    """Timestamps of the states that files lead to, in the order of their TXIDs. A jump of the clock by a day
    makes a snapshot due: it has the TXID and the timestamp of the file that it ends with."""
    stamps = {}
    for key in sorted(replica.keys(), key=lambda key: key[2]):
        if key[0] in (0, 9):
            stamp = int.from_bytes(replica.read(*key)[32:40], "big", signed=True)
            assert stamps.setdefault(key[2], stamp) == stamp, key
    return list(stamps.values())


def test_the_clock_jumps(new_host, new_replica, misfortune, tmp_path):
    replica, database = new_replica(), tmp_path / "app.db"
    misfortune.set("clock", 0)
    host = start(new_host, replica, database, **misfortune.env)
    host.sync()
    for wrong in (DAY, -DAY, 400 * DAY, 0, -20000 * DAY, 1):
        misfortune.set("clock", wrong)
        commits(host, 10)
        state = host.status(database)
        assert 0 <= state["lag_ms"] < 3_600_000, state
        host.sync()
    all_well(host, database, replica, tmp_path)
    stamps = times(replica)
    assert stamps == sorted(set(stamps)), "timestamps go back"


def test_an_image_after_the_clock_went_back(new_host, new_replica, misfortune, tmp_path):
    """What is known of the time then is the log's last file alone."""
    replica, database = new_replica(), tmp_path / "app.db"
    misfortune.set("clock", DAY)
    host = start(new_host, replica, database, **misfortune.env)
    commits(host, 10)
    host.sync()
    host.close()
    assert host.finish() == 0
    walferry("reset", database)
    misfortune.set("clock", -DAY)
    host = start(new_host, replica, database, **misfortune.env)
    commits(host, 10)
    host.sync()
    assert len(full_images(replica)) == 2
    stamps = times(replica)
    assert stamps == sorted(set(stamps)), "timestamps go back"


def test_the_store_does_not_believe_the_clock(new_host, replica, proxy, misfortune, tmp_path):
    """Nor does it say what the time is."""
    database = tmp_path / "app.db"
    proxy.rule("skew", seconds=900, dateless=True)
    misfortune.set("clock", 0)
    host = start(new_host, replica, database, **misfortune.env)
    host.sync()
    for wrong in (2 * DAY, -2 * DAY):
        misfortune.set("clock", wrong)
        commits(host, 10)
        state = until(host, database, lambda state: state["last_error"])
        assert state["state"] == "waiting" and "clock" in state["last_error"], state
        unbothered(host, database)
        misfortune.set("clock", 0)
        host.sync()
    all_well(host, database, replica, tmp_path)


def test_the_stores_time_is_taken(new_host, replica, proxy, misfortune, tmp_path):
    """Where the store says it: a clock that is wrong does not keep anything from the replica."""
    database = tmp_path / "app.db"
    proxy.rule("skew", seconds=900)
    misfortune.set("clock", 0)
    host = start(new_host, replica, database, **misfortune.env)
    host.sync()
    for wrong in (2 * DAY, -2 * DAY, 0):
        misfortune.set("clock", wrong)
        commits(host, 10)
        all_well(host, database, replica, tmp_path)
    assert [entry for entry in proxy.log() if tmp_path.name in entry["target"]
            and entry["status"] == 403], "no request was too far off"


# ---- the disk --------------------------------------------------------------------------------


def can_mount(folder):
    return os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], capture_output=True,
    ).returncode == 0 and subprocess.run(["umount", str(folder)]).returncode == 0


# The copies of what was joined go, which makes room.
NOTHING_JOINED = {"WALFERRY_LEVELS": "off", "WALFERRY_SNAPSHOT_INTERVAL": "off"}


class PretendedDisk:
    """Calls that need room fail, by the preloaded library."""

    def __init__(self, misfortune, place):
        self.misfortune, self.place = misfortune, place
        self.env = dict(misfortune.env, **NOTHING_JOINED)

    def fill(self):
        self.misfortune.set("full", self.place)

    def make_room(self):
        self.misfortune.over("full")

    def remove(self):
        pass


class SmallDisk:
    """A disk of its own, filled for real."""

    env = NOTHING_JOINED

    def __init__(self, place, megabytes=24):
        self.place = place
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=%dm" % megabytes, "none", str(place)],
                       check=True)

    def fill(self):
        with open(self.place / "ballast", "ab", buffering=0) as ballast:
            for size in (1 << 20, 4096, 1):
                try:
                    while ballast.write(bytes(size)) == size:
                        pass
                except OSError:
                    pass

    def make_room(self):
        (self.place / "ballast").unlink()

    def remove(self):
        subprocess.run(["umount", "-l", str(self.place)], check=True)


@pytest.fixture(params=["pretended", "real"])
def new_disk(request, misfortune, tmp_path):
    """Makes a disk that can be full. A real one needs to be root; else it is pretended twice."""
    disks = []

    def make(place):
        (tmp_path / "probe").mkdir(exist_ok=True)
        if request.param == "real" and can_mount(tmp_path / "probe"):
            disks.append(SmallDisk(place))
        else:
            disks.append(PretendedDisk(misfortune, place))
        return disks[-1]

    yield make
    for disk in disks:
        disk.remove()


@pytest.mark.parametrize("then", ["goes on", "is killed"])
def test_no_room_for_spool_and_state(then, new_host, replica, new_disk, tmp_path):
    database = tmp_path / "app.db"
    disk = new_disk(tmp_path / "app.db-walferry")
    host = start(new_host, replica, database, **disk.env)
    commits(host, 20)
    host.sync()
    disk.fill()
    state = unbothered(host, database)
    state = until(host, database, lambda state: state["last_error"])
    assert "No space left" in state["last_error"] and "app.db-walferry" in state["last_error"], state
    assert state["state"] == "waiting"
    with pytest.raises(HostError, match="No space left"):
        host.value("SELECT walferry_wait(300)")
    unbothered(host, database)
    if then == "is killed":
        host.kill()
        host = start(new_host, replica, database, **disk.env)
        state = until(host, database, lambda state: state["last_error"] and state["lag_ms"])
        assert "No space left" in state["last_error"], state
        commits(host, 50)
    disk.make_room()
    all_well(host, database, replica, tmp_path)


def test_no_room_when_the_store_confirms(new_host, replica, proxy, new_disk, tmp_path):
    """A file is on its way when the disk fills up: it is confirmed, and nothing is sent twice."""
    database = tmp_path / "app.db"
    disk = new_disk(tmp_path / "app.db-walferry")
    host = start(new_host, replica, database, **disk.env)
    host.sync()
    for _ in range(2):
        rule = proxy.rule("hold", method="PUT", path=proxy.LOG, count=1)
        commits(host, 5)
        proxy.wait(rule)
        commits(host, 5)
        disk.fill()
        proxy.heal()
        until(host, database, lambda state: state["last_error"])
        commits(host, 50)
        host.kill()
        disk.make_room()
        host = start(new_host, replica, database, **disk.env)
        commits(host, 5)
        host.sync()
    all_well(host, database, replica, tmp_path)


def test_no_room_for_the_database(new_host, replica, new_disk, tmp_path):
    """SQLite's own error, and only that; database, WAL and our state share the disk."""
    disk = new_disk(tmp_path / "disk")
    (tmp_path / "disk").mkdir(exist_ok=True)
    database = tmp_path / "disk" / "app.db"
    host = start(new_host, replica, database, **disk.env)
    commits(host, 20)
    host.sync()
    for _ in range(2):
        disk.fill()
        with pytest.raises(HostError, match="disk is full|disk I/O"):
            commits(host, 300)
        known = host.value("SELECT count(*) FROM t")
        disk.make_room()
        commits(host, 5)
        assert host.value("SELECT count(*) FROM t") == known + 5
        host.sync()
    all_well(host, database, replica, tmp_path)


def test_no_room_for_local_state(new_host, replica, misfortune, tmp_path):
    """Not even for its folder."""
    database = tmp_path / "app.db"
    misfortune.set("full", tmp_path / "app.db-walferry")
    host = start(new_host, replica, database, **misfortune.env)
    state = until(host, database, lambda state: state["last_error"])
    assert "app.db-walferry" in state["last_error"] and "No space left" in state["last_error"], state
    assert not (tmp_path / "app.db-walferry").exists() and not replica.keys()
    unbothered(host, database)
    misfortune.over("full")
    all_well(host, database, replica, tmp_path)


def test_no_room_on_the_replica(new_host, new_replica, new_disk, tmp_path):
    replica, database = new_replica(), tmp_path / "app.db"
    disk = new_disk(replica.folder)
    host = start(new_host, replica, database, **disk.env)
    host.sync()
    disk.fill()
    commits(host, 5)
    state = until(host, database, lambda state: state["last_error"])
    assert "the disk is full" in state["last_error"], state
    unbothered(host, database)
    disk.make_room()
    all_well(host, database, replica, tmp_path)


def test_pieces_that_cannot_be_removed(new_host, new_replica, misfortune, tmp_path):
    """What was captured is in the file that is shipped, whatever becomes of its pieces."""
    replica, database = new_replica("file"), tmp_path / "app.db"
    host = start(new_host, replica, database, WALFERRY_SYNC_INTERVAL="1h", **misfortune.env)
    host.sync()
    spool = tmp_path / "app.db-walferry" / "spool"
    misfortune.set("kept", spool)
    for _ in range(2):
        # Enough new beginnings of the WAL that pieces are joined, too.
        commits(host, 2500)
        host.sync()
    assert len(list(spool.glob("open-*.ltx"))) > 64
    assert_restores(replica, database, tmp_path)
    host.kill()
    # The next process knows them for what they are, whether it can remove them or not.
    host = start(new_host, replica, database, WALFERRY_SYNC_INTERVAL="1h", **misfortune.env)
    commits(host, 300)
    host.sync()
    assert_restores(replica, database, tmp_path)
    host.kill()
    misfortune.over("kept")
    host = start(new_host, replica, database)
    all_well(host, database, replica, tmp_path)
    assert not list(spool.glob("open-*.ltx"))


def test_page_table_that_was_written_in_part(new_host, new_replica, misfortune, tmp_path):
    """A comparison that failed so has changed the table, and no file was shipped: the next one must not take
    those pages for shipped."""
    replica, database = new_replica("file"), tmp_path / "app.db"
    host = start(new_host, replica, database)
    host.sql(*["INSERT INTO t VALUES (%d, randomblob(30000))" % n for n in range(150)])
    host.sync()
    host.close()
    host.finish()
    with sqlite3.connect(database) as plain:
        plain.execute("UPDATE t SET x = randomblob(30000)")
    plain.close()
    misfortune.set("behind", tmp_path / "app.db-walferry" / "pages")
    host = new_host("system", replica, env=misfortune.env)
    host.open(database)
    until(host, database, lambda state: "pages" in (state["last_error"] or "") or state["found"] == "table-disproved")
    misfortune.over("behind")
    host.sync()
    assert_restores(replica, database, tmp_path)
    host.close()


def test_late_answer_of_the_store_is_for_what_was_asked(new_host, replica, proxy, tmp_path):
    """The state folder is deleted while a file is on its way: its arrival says nothing of a later file."""
    database = tmp_path / "app.db"
    host = start(new_host, replica, database, WALFERRY_SYNC_INTERVAL="10ms")
    host.sync()
    late = proxy.rule("hold", method="PUT", path=proxy.LOG, where="response", count=1)
    host.sql("INSERT INTO t VALUES (1, 'there')")
    proxy.wait(late)
    shutil.rmtree(tmp_path / "app.db-walferry")
    until(host, database, lambda state: state["found"] == "state-deleted" and state["lag_ms"] == 0)
    lost = proxy.rule("blackhole", method="PUT", path=proxy.LOG, count=1)
    host.sql("INSERT INTO t VALUES (2, 'on its way')")
    proxy.wait(lost)
    proxy.ask("POST", "/release")
    with pytest.raises(HostError, match="not replicated in time"):
        host.value("SELECT walferry_sync(3000)")
    proxy.heal()
    host.sync()
    assert_restores(replica, database, tmp_path)


def test_sync_after_the_audit_found_a_difference_waits(new_host, replica, proxy, tmp_path):
    database = tmp_path / "app.db"
    host = start(new_host, replica, database, WALFERRY_AUDIT_INTERVAL="300ms", WALFERRY_AUDIT_RATE="1GB")
    host.sql("INSERT INTO t VALUES (1, randomblob(9000))", "PRAGMA wal_checkpoint(TRUNCATE)",
             "INSERT INTO t VALUES (2, 'so that there is a WAL')")
    host.sync()
    held = proxy.rule("blackhole", method="PUT")
    with open(database, "r+b") as file:  # past SQLite: the end of an overflow page
        file.seek(-8, os.SEEK_END)
        file.write(b"8 bytes!")
    until(host, database, lambda state: state["found"] == "audit-differs")
    proxy.wait(held)
    with pytest.raises(HostError, match="not replicated in time"):
        host.value("SELECT walferry_sync(1000)")
    proxy.heal()
    host.sync()
    assert_restores(replica, database, tmp_path)


# ---- room for the database ---------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A folder with few megabytes, for a database and all that is beside it."""
    folder = tmp_path / "small"
    disks = []

    def make(megabytes):
        disks.append(SmallDisk(folder, megabytes))
        return folder

    (tmp_path / "probe").mkdir()
    if not can_mount(tmp_path / "probe"):
        pytest.skip("a small disk needs the right to mount one")
    yield make
    for disk in disks:
        disk.remove()


def test_s3_server_says_that_its_disk_is_full(small_disk):
    """At once: it would wait for room, and whoever writes to it would wait for it."""
    folder = small_disk(40)
    begun = subprocess.run([sys.executable, str(ROOT / "tests" / "servers" / "s3.py"), "start", "--dir",
                            str(folder / "s"), "--install", str(CACHE / "servers")], capture_output=True, text=True)
    assert begun.returncode == 1 and "free" in begun.stderr and str(folder) in begun.stderr, begun
    assert not (folder / "s" / "pid").exists()


def overwrite(host, times):
    """As many transactions that write again what is there: the database does not grow."""
    host.sql(*["INSERT OR REPLACE INTO t VALUES (%d, randomblob(50000))" % (n % 15) for n in range(times)])


@pytest.mark.parametrize("store", ["there", "away"])
def test_spool_on_a_small_disk_leaves_room_for_the_database(store, new_host, new_replica, small_disk, tmp_path):
    """Without walferry 5 MB of the disk are in use. No write fails, and nothing stays in the way."""
    replica, away = new_replica(), tmp_path / "away"
    database = small_disk(8) / "app.db"
    host = new_host("system", replica).open(database)
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    overwrite(host, 15)
    host.sync()
    if store == "away":
        os.rename(replica.folder, away)
    overwrite(host, 1000)
    if store == "away":
        assert host.status(database)["lag_ms"] > 0
        os.rename(away, replica.folder)
    all_well(host, database, replica, tmp_path)


def starve(host):
    """What our threads do takes long: they get what the host leaves them of one processor."""
    one = {min(os.sched_getaffinity(0))}
    for task in os.listdir("/proc/%d/task" % host.process.pid):
        os.sched_setaffinity(int(task), one)
        if Path("/proc/%d/task/%s/comm" % (host.process.pid, task)).read_text().startswith("walferry"):
            os.sched_setscheduler(int(task), os.SCHED_IDLE, os.sched_param(0))


def test_comparison_on_a_small_disk_leaves_room_for_the_wal(new_host, new_replica, small_disk, tmp_path):
    """While the database is read its WAL must stay, and grows."""
    replica = new_replica()
    database = small_disk(8) / "app.db"
    host = new_host("system", replica, env={
        "WALFERRY_SYNC_INTERVAL": "20ms", "WALFERRY_SPOOL_CAP": "200KB"}).open(database)
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    overwrite(host, 15)
    host.sync()
    starve(host)
    for _ in range(80):
        overwrite(host, 500)
    assert host.status(database)["resyncs"] > 0
    all_well(host, database, replica, tmp_path)


def until_full(host):
    """Inserts rows until there is no room; how many."""
    for count in range(1000):
        try:
            host.sql("INSERT INTO t (x) VALUES (randomblob(100000))")
        except HostError as error:
            assert "disk is full" in str(error) or "disk I/O" in str(error), error
            return count
    raise AssertionError("the disk is not full")


def test_spool_gives_its_room_to_a_growing_database(new_host, new_replica, small_disk, tmp_path):
    """While the store is away, as many rows fit as without walferry, but for the file that is on its way."""
    replica, fit = new_replica(), {}
    folder = small_disk(16)
    for load in (False, True):
        database = folder / ("%s.db" % load)
        host = new_host("system", replica, load=load, env={"WALFERRY_SHUTDOWN_TIMEOUT": "0s"}).open(database)
        host.sql("PRAGMA journal_mode=WAL", "PRAGMA wal_autocheckpoint=20",
                 "CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
        if load:
            host.sync()
            os.rename(replica.folder, tmp_path / "away")
        fit[load] = until_full(host)
        if load:
            assert host.status(database)["lag_ms"] > 0
            os.rename(tmp_path / "away", replica.folder)
            subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
            host.sync()
            assert_restores(replica, database, tmp_path)
        host.close()
        database.unlink()
    assert fit[True] >= 0.75 * fit[False], fit


def open_files(host, path):
    """How often the process has a file open."""
    links = [os.path.join("/proc/%d/fd" % host.process.pid, name) for name in os.listdir("/proc/%d/fd" % host.process.pid)]
    return sum(os.path.exists(link) and os.readlink(link) == str(path) for link in links)


def test_spool_that_was_dropped_and_a_crash_before_the_comparison(new_host, replica, proxy, small_disk, tmp_path):
    """What was read of the WAL before the drop is no sequel to what is left."""
    database = small_disk(16) / "app.db"
    wal = database.parent / "app.db-wal"
    host = new_host("system", replica, env={"WALFERRY_SYNC_INTERVAL": "1h"}).open(database)
    host.sql("PRAGMA journal_mode=WAL", "PRAGMA wal_autocheckpoint=0", "CREATE TABLE t (id INTEGER PRIMARY KEY, x)",
             *["INSERT INTO t VALUES (%d, randomblob(20000))" % n for n in range(60)])
    host.sync()
    # A file is on its way, and a comparison waits for its end.
    rule = proxy.rule("hold", method="PUT", where="request")
    host.sql("INSERT INTO t VALUES (60, 'on its way')")
    with pytest.raises(HostError):
        host.value("SELECT walferry_sync(1)")
    proxy.wait(rule)
    # One piece in the spool, and more of the same WAL that was read and is in no piece yet.
    reader = sqlite3.connect(database, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM t").fetchone()
    host.sql("UPDATE t SET x = randomblob(20000) WHERE id < 20", "PRAGMA wal_checkpoint(PASSIVE)")
    spool = database.parent / "app.db-walferry" / "spool"
    until(host, database, lambda _: list(spool.glob("open-*")))
    host.sql("UPDATE t SET x = randomblob(20000) WHERE id BETWEEN 20 AND 59")
    until(host, database, lambda _: open_files(host, wal) > 1)
    reader.close()
    # The database needs the room.
    filler = database.parent / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    with contextlib.suppress(HostError):
        host.sql("UPDATE t SET x = randomblob(20000) WHERE id BETWEEN 20 AND 59")
    filler.unlink()
    assert not list(spool.glob("open-*"))
    host.sql("ATTACH '%s' AS again" % database)
    host.value("SELECT walferry_ping(60000)")
    host.kill()
    proxy.heal()
    host = new_host("system", replica).open(database)
    host.sync()
    assert_restores(replica, database, tmp_path)


# ---- a state folder that cannot be written -----------------------------------------------------


USER = 23456
MEGABYTE = 1 << 20


def give(path, user):
    """Makes another user the owner of all that is there."""
    for place in [path, *path.rglob("*")]:
        os.chown(place, user, user)


class Unwritable:
    """A database of 1 MB on a disk of its own, and a state folder that can be made useless."""

    def __init__(self, folder, way, megabytes):
        self.folder, self.way = folder, way
        self.disks = [SmallDisk(folder / "small", megabytes), SmallDisk(folder / "other", 2)]
        self.database = folder / "small" / "app.db"
        self.state = folder / "small" / "app.db-walferry"
        self.replica = DirectoryReplica(folder / "replica")
        if way == "full disk":
            (folder / "other" / "state").mkdir()
            self.state.symlink_to(folder / "other" / "state")

    def begin(self, host):
        host.open(self.database)
        host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (id INTEGER PRIMARY KEY, x)",
                 "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200)"
                 " INSERT INTO t SELECT i, zeroblob(3000) FROM n")
        host.sync()
        return host

    def spoil(self, *hosts):
        if self.way == "full disk":
            self.disks[1].fill()
        elif self.way == "other user":
            for path in self.database.parent.glob("app.db*"):
                if path != self.state:
                    os.chown(path, USER, USER)
            for host in hosts:
                host.call("become", user=USER)
        else:
            self.state.rename(self.state.parent / "away")
            self.state.touch()

    def mend(self):
        if self.way == "full disk":
            self.disks[1].make_room()
        elif self.way == "other user":
            give(self.state, USER)
            give(self.replica.folder, USER)
        else:
            self.state.unlink()

    def wal(self):
        return os.path.getsize(str(self.database) + "-wal")

    def remove(self):
        for disk in self.disks:
            disk.remove()


@pytest.fixture
def unwritable(tmp_path):
    """Makes such a place, where other users can reach it, unlike the folders of pytest."""
    (tmp_path / "probe").mkdir()
    if not can_mount(tmp_path / "probe"):
        pytest.skip("a small disk needs the right to mount one")
    folder, made = Path(tempfile.mkdtemp(prefix="walferry-outages-")), []
    folder.chmod(0o755)

    def make(way, megabytes=12):
        made.append(Unwritable(folder, way, megabytes))
        return made[-1]

    yield make
    for place in made:
        place.remove()
    shutil.rmtree(folder)


def attempts(host, times=300, seed=1):
    """As many transactions of 400 KB that change what is there; how many of them failed."""
    return host.call("attempts", sql="UPDATE t SET x = ? WHERE id % 2 = 1", size=3000, times=times, seed=seed)


def is_told(host, database):
    """It is told that nothing is captured."""
    state = until(host, database, lambda state: state["last_error"] and state["lag_ms"])
    with pytest.raises(HostError):
        host.value("SELECT walferry_sync(300)")
    assert host.status(database)["lag_ms"] > state["lag_ms"], state
    return state


@pytest.mark.parametrize("way", ["full disk", "other user", "file"])
def test_state_folder_that_cannot_be_written_does_not_fill_the_disk(way, new_host, unwritable, tmp_path):
    """Without walferry the WAL takes 4 MB, and no transaction fails."""
    place = unwritable(way)
    host = place.begin(new_host("system", place.replica))
    before = host.status(place.database)
    place.spoil(host)
    failed = attempts(host)
    assert failed <= 3, (failed, place.wal(), host.status(place.database))
    state = is_told(host, place.database)
    # Nothing is compared in vain.
    assert (state["resyncs"], state["images"]) == (before["resyncs"], before["images"]), state
    assert attempts(host, seed=2) == 0
    place.mend()
    host.sync()
    after = host.status(place.database)
    assert (after["last_error"], after["lag_ms"]) == (None, 0), after
    costs = (after["resyncs"] - before["resyncs"], after["images"] - before["images"])
    assert costs == ((0, 1) if way == "file" else (1, 0)), after
    assert after["found"] in (("state-deleted", "no-state") if way == "file" else ("capture-fails",)), after
    assert_restores(place.replica, place.database, tmp_path)


def test_wal_that_cannot_be_captured_is_bounded(new_host, unwritable, tmp_path):
    """Where there is room for more: by the size of the database, or 16 MiB, and what is written meanwhile."""
    place = unwritable("full disk", 400)
    host = place.begin(new_host("system", place.replica))
    place.spoil()
    assert attempts(host, times=600) == 0
    assert place.wal() < 120 * MEGABYTE, "all of it would be 240"
    assert is_told(host, place.database)["found"] == "capture-fails"
    place.mend()
    host.sync()
    assert host.status(place.database)["resyncs"] == 1
    assert_restores(place.replica, place.database, tmp_path)


def test_shipper_that_cannot_write_does_not_fill_the_disk_of_another_process(new_host, unwritable, tmp_path):
    place = unwritable("full disk")
    ships = place.begin(new_host("system", place.replica))
    writes = new_host("system", place.replica).open(place.database)
    assert writes.value("SELECT count(*) FROM t") == 200
    until(writes, place.database, lambda state: state["state"] == "standby")
    # The shipper listens to it from now on.
    writes.sql("UPDATE t SET x = 'of the other process' WHERE id = 1")
    writes.sync()
    place.spoil()
    failed = attempts(writes)
    assert failed <= 3, (failed, place.wal(), ships.status(place.database))
    is_told(writes, place.database)
    assert ships.status(place.database)["found"] == "capture-fails"
    place.mend()
    writes.sync()
    assert ships.status(place.database)["resyncs"] == 1
    assert_restores(place.replica, place.database, tmp_path)


def test_sidecar_that_cannot_write_does_not_fill_the_disk_of_a_program(new_sidecar, unwritable, tmp_path):
    """The program's transactions fail until the sidecar has let its WAL go, of which they do not tell it."""
    place = unwritable("full disk")
    db = begin(place.database)
    db.executemany("INSERT INTO t VALUES (?, zeroblob(3000))", [(number,) for number in range(200)])
    new_sidecar(place.database, place.replica)
    synced(place.database, place.replica)
    place.spoil()

    def changes(times):
        for _ in range(times):
            db.execute("UPDATE t SET x = randomblob(3000) WHERE id % 2 = 1")
        return True

    with contextlib.suppress(sqlite3.OperationalError):
        changes(300)

    def heals():
        with contextlib.suppress(sqlite3.OperationalError):
            return changes(100)

    wait_for(heals, lambda: "it does not heal")
    place.mend()
    synced(place.database, place.replica)
    assert_restores(place.replica, place.database, tmp_path)
