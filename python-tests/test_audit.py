"""The audit: the database against what was captured of it, while all is well. A difference that no
commit tells of is found and shipped, an idle database costs nothing, and beside busy writers nothing is
ever called different that is not, nor does the WAL grow for it."""

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import apsw

from harness import PROGRAM, S3Replica, assert_restores, clean_environment, restore, walferry
from test_evidence import add, filled
from test_processes import until

PAGE = 4096
ALWAYS = {"WALFERRY_AUDIT_INTERVAL": "1ms", "WALFERRY_AUDIT_RATE": "1GB"}


def said(tmp_path, words):
    log = (tmp_path / "walferry.log").read_text()
    return [line for line in log.splitlines() if words in line]


def plant(database, page, at=2000):
    """Changes a byte past SQLite, from this process; what the page is then."""
    file = os.open(database, os.O_RDWR)
    offset = (page - 1) * PAGE + at
    byte = os.pread(file, 1, offset)
    os.pwrite(file, bytes([byte[0] ^ 1]), offset)
    changed = os.pread(file, PAGE, (page - 1) * PAGE)
    os.close(file)
    return changed


def empty_wal(host):
    """A checkpoint is refused while a slice is just read."""
    until(lambda: host.value("PRAGMA wal_checkpoint(TRUNCATE)") == 0, "the WAL is emptied")


def at_rest(new_host, replica, database, **env):
    """A database of about 140 pages, none of them in the WAL."""
    host = filled(new_host, replica, database, count=400, **env)
    empty_wal(host)
    add(host, 1)
    host.sync()
    return host


def audit_of(host, database):
    return host.status(database)["audit"]


def page_of(replica, folder, page):
    output = restore(replica, folder / "looked-at.db")
    data = output.read_bytes()[(page - 1) * PAGE:page * PAGE]
    output.unlink()
    return data


def test_a_difference_that_no_commit_tells_of_is_found_and_shipped(new_host, replica, tmp_path):
    database = tmp_path / "app.db"
    host = at_rest(new_host, replica, database, WALFERRY_AUDIT_INTERVAL="1s")
    planted = plant(database, 50)
    assert page_of(replica, tmp_path, 50) != planted

    def is_found():
        add(host, 1)  # a commit after the interval sets an audit going
        return (audit_of(host, database) or {}).get("differed") == 1
    until(is_found, "the audit finds it")
    found = host.status(database)
    assert (found["found"], found["audit"]["at"][:2]) == ("audit-differs", "20")
    [line] = said(tmp_path, "not as captured")
    assert "page 50 is" in line and "please report it" in line and "rror" in line.lower()
    host.sync()
    assert page_of(replica, tmp_path, 50) == planted
    # It is said until the process ends, and nothing else is different.
    add(host, 1)
    before = audit_of(host, database)
    until(lambda: add(host, 1) or audit_of(host, database)["at"] != before["at"], "one more audit")
    assert audit_of(host, database)["differed"] == 1
    assert host.status(database)["resyncs"] == 1


def state_of(database):
    text = (database.parent / (database.name + "-walferry") / "state").read_text()
    return json.loads(json.loads(text)["body"])


def test_a_difference_outlives_the_process(new_host, proxy, s3, tmp_path):
    """A file is on its way, so that the comparison has to wait, and the process ends before it begins."""
    replica = S3Replica(s3, "audit-%d" % os.getpid(), proxy.endpoint)
    database = tmp_path / "app.db"
    host = at_rest(new_host, replica, database, WALFERRY_AUDIT_INTERVAL="1s", WALFERRY_LEVELS="off")
    planted = plant(database, 50)
    held = proxy.rule("hold", method="PUT", path=proxy.LOG)
    add(host, 1)
    proxy.wait(held)
    until(lambda: add(host, 1) or (audit_of(host, database) or {}).get("differed"), "the audit finds it")
    assert host.status(database)["resyncs"] == 0
    host.kill()
    proxy.heal()
    proxy.ask("POST", "/release")
    for resyncs in (1, 0):
        host = new_host("system", replica, env={"WALFERRY_AUDIT_INTERVAL": "off", "WALFERRY_LEVELS": "off"})
        host.open(database)
        add(host, 1)
        host.sync()
        status = host.status(database)
        assert (status["found"], status["resyncs"]) == ("audit-differs" if resyncs else None, resyncs)
        assert page_of(replica, tmp_path, 50) == planted
        # It is answered, which the state says once the store has confirmed it.
        assert state_of(database)["due"] is None
        host.kill()


def test_without_an_audit_nobody_knows(new_host, replica, tmp_path):
    database = tmp_path / "app.db"
    host = at_rest(new_host, replica, database, WALFERRY_AUDIT_INTERVAL="off")
    planted = plant(database, 50)
    for _ in range(30):
        add(host, 1)
        time.sleep(0.1)
    host.sync()
    assert host.status(database)["audit"] is None
    assert page_of(replica, tmp_path, 50) != planted


def read_so_far(host):
    """Bytes that the process has read, and each of its threads, by what is read in /proc."""
    def rchar(folder):
        return int(re.search(r"rchar: (\d+)", (folder / "io").read_text())[1])

    process, threads = Path("/proc/%d" % host.process.pid), {}
    for task in process.glob("task/*"):
        # A thread may end meanwhile.
        with contextlib.suppress(OSError):
            threads["%s %s" % (task.name, (task / "comm").read_text().strip())] = rchar(task)
    return rchar(process), threads


def test_an_idle_database_is_left_alone(new_host, new_replica, tmp_path):
    replica, database = new_replica(), tmp_path / "app.db"
    host = at_rest(new_host, replica, database, WALFERRY_AUDIT_INTERVAL="500ms",
                   WALFERRY_RETENTION="off", WALFERRY_LEVELS="off", WALFERRY_LOG="debug")
    until(lambda: audit_of(host, database), "an audit while it was just written")
    last, since = audit_of(host, database)["at"], time.monotonic()

    def is_quiet():
        nonlocal last, since
        now = audit_of(host, database)["at"]
        if now != last:
            last, since = now, time.monotonic()
        return time.monotonic() - since > 3
    until(is_quiet, "no audit any more", 40)
    before, read = host.status(database), read_so_far(host)
    time.sleep(5)
    after, read_then = host.status(database), read_so_far(host)
    assert (after["audit"], after["requests"]) == (before["audit"], before["requests"])
    assert read_then[0] - read[0] < os.path.getsize(database) / 4, (read, read_then, after, said(tmp_path, "")[-60:])
    # The next commit sets it going.
    add(host, 1)
    until(lambda: audit_of(host, database)["at"] != last, "an audit after a commit")


def beside_writers(host, database, seconds, enough):
    """This process and the host write."""
    stop = threading.Event()

    def other():
        # One that has never heard of walferry.
        db = apsw.Connection(str(database))
        db.set_busy_timeout(20000)
        n = 0
        while not stop.is_set():
            n += 1
            db.execute("INSERT INTO t (x) VALUES (?)", ("y" * (n % 3000),))
            if n % 50 == 0:
                db.execute("DELETE FROM t WHERE id % 97 = ?", (n // 50 % 97,))
        db.close()
    thread = threading.Thread(target=other)
    thread.start()
    ends = time.monotonic() + seconds
    try:
        while time.monotonic() < ends and not enough():
            update(host)
    finally:
        stop.set()
        thread.join()


def update(host):
    host.sql(*["UPDATE t SET x = x || 'z' WHERE id = abs(random()) % 3000"] * 100)


def slices_of(tmp_path):
    """Slices of 1 MiB in the audits that have ended, by the log."""
    pages = [int(re.search(r"audited, (\d+) pages", line)[1]) for line in said(tmp_path, "audited, ")]
    return sum((number + 255) // 256 for number in pages)


def test_beside_busy_writers_nothing_is_called_different(new_host, new_replica, tmp_path):
    replica, database = new_replica(), tmp_path / "app.db"
    host = filled(new_host, replica, database, count=6000, WALFERRY_LOG_LEVEL="debug", **ALWAYS)
    host.sql("PRAGMA busy_timeout=20000")
    beside_writers(host, database, 150, lambda: slices_of(tmp_path) >= 3000)
    assert slices_of(tmp_path) >= 1000
    status = host.status(database)
    assert (status["audit"]["differed"], said(tmp_path, "not as captured")) == (0, [])
    assert (status["images"], status["resyncs"]) == (1, 0), status
    host.sync()
    assert_restores(replica, database, tmp_path)


def test_the_wal_does_not_grow_for_it(new_host, new_replica, tmp_path):
    replica, database = new_replica(), tmp_path / "app.db"
    host = filled(new_host, replica, database, count=3000, WALFERRY_LOG_LEVEL="debug", **ALWAYS)
    empty_wal(host)
    # SQLite checkpoints after 1000 pages.
    grown, ends = [], time.monotonic() + 10
    while time.monotonic() < ends:
        update(host)
        pages = os.path.getsize(str(database) + "-wal") // (PAGE + 24)
        if pages > max([1500] + [most for _at, most in grown]):
            grown.append((time.strftime("%H:%M:%S"), pages))
    assert slices_of(tmp_path) >= 300
    assert host.status(database)["resyncs"] == 0, said(tmp_path, "WARN")
    assert not grown or grown[-1][1] < 3000, (grown, host.status(database), said(tmp_path, "")[-200:])


def test_an_audit_goes_on_in_the_next_process(new_host, new_replica, tmp_path):
    replica, database = new_replica(), tmp_path / "app.db"
    slow = {"WALFERRY_AUDIT_INTERVAL": "500ms", "WALFERRY_AUDIT_RATE": "1MB"}
    host = filled(new_host, replica, database, count=10000, **slow)
    empty_wal(host)
    total = os.path.getsize(database) // PAGE
    host.sync()
    ends = time.monotonic() + 3
    while time.monotonic() < ends:
        add(host, 1)
        time.sleep(0.1)
    # One may have ended before there was a row.
    assert (audit_of(host, database) or {"pages": 0})["pages"] < total
    host.sync()
    host.close()
    assert host.finish() == 0
    body = state_of(database)
    assert 1 < body["audit_next"] < total and body["audited"] > 0, body
    host = new_host("system", replica, env=dict(slow, WALFERRY_AUDIT_INTERVAL="1h"))
    host.open(database)
    until(lambda: add(host, 1) or audit_of(host, database), "the end of the audit", 60)
    got = audit_of(host, database)
    most = host.value("PRAGMA page_count")
    assert got["differed"] == 0 and total <= got["pages"] <= most


# ---- by the program --------------------------------------------------------------------------


def against(replica, database, code=0, *arguments):
    done = walferry("verify", "--json", "--against", database, *arguments, replica.url,
                    env=replica.reading, code=code)
    got = json.loads(done.stdout)
    assert got["defects"] == []
    return got["against"], done


def test_a_replica_is_compared_with_its_database(new_host, replica, tmp_path):
    database = tmp_path / "app.db"
    host = at_rest(new_host, replica, database)
    pages = host.value("PRAGMA page_count")
    got, _ = against(replica, database)
    assert got == {"database": str(database), "verdict": "equal", "txid": got["txid"],
                   "pages": pages, "differing": 0, "differ": []}
    text = walferry("verify", "--against", database, replica.url, env=replica.reading).stdout
    assert "all of its %d pages are the same" % pages in text.splitlines()[-1]
    text = walferry("verify", replica.url, env=replica.reading).stdout
    assert "sound in itself" in text.splitlines()[-1] and "--against" in text
    walferry("verify", "--against", tmp_path / "no.db", replica.url, env=replica.reading, code=2)
    # Closed, and with nobody there.
    host.close()
    assert host.finish() == 0
    before = sorted(path.name for path in tmp_path.glob("app.db*"))
    assert against(replica, database)[0]["verdict"] == "equal"
    assert sorted(path.name for path in tmp_path.glob("app.db*")) == before


def test_a_database_that_is_ahead_of_its_replica(new_host, replica, tmp_path):
    database = tmp_path / "app.db"
    host = at_rest(new_host, replica, database, WALFERRY_SYNC_INTERVAL="1h")
    for _ in range(3):
        add(host, 1)
    got, done = against(replica, database, 4, "--timeout", "1s")
    assert got["verdict"] == "ahead" and got["differing"] > 0
    assert "is not %s as it is now" % database in done.stderr
    text = walferry("verify", "--against", database, "--timeout", "0", replica.url,
                    env=replica.reading, code=4).stdout
    assert "has commits that the replica has not" in text and "lag" in text
    # It waits for what comes in time.
    timer = threading.Timer(2, host.sync)
    timer.start()
    assert against(replica, database)[0]["verdict"] == "equal"
    timer.join()
    add(host, 1)
    host.process.send_signal(signal.SIGKILL)
    host.process.wait()
    text = walferry("verify", "--against", database, "--timeout", "1s", replica.url,
                    env=replica.reading, code=4).stdout
    assert "has commits that the replica has not" in text and "no process ships it" in text


def test_a_replica_that_is_not_its_database(new_host, replica, tmp_path):
    database = tmp_path / "app.db"
    host = at_rest(new_host, replica, database, WALFERRY_AUDIT_INTERVAL="off")
    plant(database, 50)
    began = time.monotonic()
    got, done = against(replica, database, 4, "--timeout", "100s")
    assert (got["verdict"], got["differ"], got["differing"]) == ("differs", [50], 1)
    assert time.monotonic() - began < 60
    # Also beside somebody who writes all the time.
    stop = threading.Event()

    def write():
        while not stop.is_set():
            add(host, 1)
            time.sleep(0.02)
    thread = threading.Thread(target=write)
    thread.start()
    try:
        got, _ = against(replica, database, 4)
        assert got["verdict"] == "differs" and 50 in got["differ"]
        plant(database, 50)
        for _ in range(3):
            assert against(replica, database)[0]["verdict"] in ("equal", "written")
    finally:
        stop.set()
        thread.join()
    host.sync()
    assert against(replica, database)[0]["verdict"] == "equal"


def test_a_page_in_doubt_at_the_time_out_is_not_called_written(new_host, replica, tmp_path):
    database = tmp_path / "app.db"
    host = at_rest(new_host, replica, database, WALFERRY_AUDIT_INTERVAL="off", WALFERRY_SYNC_INTERVAL="1h")
    plant(database, 50)
    stop = threading.Event()

    # The replica goes on by one TXID while the program looks, and the lag is never 0.
    def write():
        last = time.monotonic()
        while not stop.is_set():
            add(host, 1)
            if time.monotonic() - last > 5:
                host.sync()
                last = time.monotonic()
            time.sleep(0.1)
    thread = threading.Thread(target=write)
    thread.start()
    try:
        verdicts = []
        for _ in range(3):
            done = subprocess.run([str(PROGRAM), "verify", "--json", "--against", str(database), "--timeout", "6s",
                                   replica.url], capture_output=True, text=True,
                                  env=dict(clean_environment(), **replica.reading))
            got = json.loads(done.stdout)["against"]
            verdicts.append((got["verdict"], done.returncode))
            assert 50 in got["differ"], got
    finally:
        stop.set()
        thread.join()
    # Where two TXIDs came in time the page is known to differ; where none came, the lag may be why.
    assert set(verdicts) <= {("unknown", 4), ("differs", 4), ("ahead", 4)}, verdicts


def test_check_looks_deeper_if_it_is_asked_to(new_host, replica, tmp_path):
    database, config = tmp_path / "app.db", tmp_path / "walferry.yml"
    host = at_rest(new_host, replica, database, WALFERRY_AUDIT_INTERVAL="off")
    config.write_text("dbs:\n  - path: %s\n    replica:\n%s" % (database, replica.litestream()))

    def deep(*arguments, code=0):
        done = walferry("check", "--deep", "--json", *arguments, env=replica.reading, code=code)
        return [one for one in json.loads(done.stdout)["checks"] if one["check"] == "deep"]
    # One that no file names, but whose state says where it is replicated to.
    for arguments in [[database], ["--config", config], ["--config", config, database]]:
        [found] = deep(*arguments)
        assert found["ok"] and "are the same" in found["said"], found
    plant(database, 50)
    [found] = deep(database, code=1)
    assert not found["ok"] and "(50)" in found["said"]
    # Whatever is not asked for is not done.
    done = walferry("check", "--json", "--config", config, env=replica.reading)
    assert "deep" not in [one["check"] for one in json.loads(done.stdout)["checks"]]
    assert host.status(database)["audit"] is None


def test_check_deep_of_a_state_that_names_no_replica_fails(new_host, replica, tmp_path):
    database = tmp_path / "app.db"
    host = at_rest(new_host, replica, database)
    host.close()
    assert host.finish() == 0

    def deep(path, code):
        done = walferry("check", "--deep", "--json", path, env=replica.reading, code=code)
        return [(one["ok"], one["said"]) for one in json.loads(done.stdout)["checks"]]
    [(ok, _)] = deep(database, 0)
    assert ok
    state = tmp_path / "app.db-walferry/state"
    sound = state.read_bytes()
    damaged = bytearray(sound)
    damaged[len(damaged) // 2] ^= 1
    state.write_bytes(damaged)
    [(ok, said)] = deep(database, 1)
    assert not ok and str(state) in said, said
    walferry("reset", database)
    [(ok, said)] = deep(database, 1)
    assert not ok and "names no replica" in said, said
    # The folder of one replica may hold those of others alone.
    other = state.parent / "replicas/0123456789abcdef"
    other.mkdir(parents=True)
    (other / "state").write_bytes(sound)
    [(ok, said)] = deep(database, 0)
    assert ok, said
    # A page table without a state is a state that was lost.
    (state.parent / "pages").write_bytes(b"")
    results = deep(database, 1)
    assert sorted(ok for ok, _ in results) == [False, True], results
    # A copy that follows the replica.
    copy = tmp_path / "copy.db"
    follower = subprocess.Popen([str(PROGRAM), "restore", "--follow", "-o", str(copy), replica.url],
                                env=dict(clean_environment(), **replica.reading))
    until((tmp_path / "copy.db-walferry/follow").exists, "the copy is followed")
    follower.terminate()
    assert follower.wait() == 0
    [(ok, said)] = deep(copy, 1)
    assert not ok and "a copy" in said, said
