"""Restores that are killed and go on, copies that are brought forward, and what there is to restore."""

import json
import os
import re
import subprocess

import apsw
import pytest

from harness import (OK, PROGRAM, REFUSED, S3Replica, UNREACHABLE, assert_same_pages, check_integrity,
                     clean_environment, full_images, live_image, rows, s3_environment, txids, walferry)


def restored(replica, output, *args, code=OK):
    """Restores and gives the report; the replica may be one behind a proxy."""
    done = walferry("restore", "--json", "-o", output, *args, replica.url, env=replica.env, code=code)
    return json.loads(done.stdout) if code == OK else done.stderr


def fill(host, megabytes):
    host.sql("INSERT INTO t (x) SELECT randomblob(1 << 20) FROM json_each('[%s]')"
             % ",".join("0" * megabytes))


@pytest.fixture
def large(new_host, s3, tmp_path):
    """A database of some 50 MB that nobody has open any more, its image, and its replica on S3."""
    replica = S3Replica(s3, "restore/%s" % tmp_path.name)
    host = new_host("apsw", replica, env={"WALFERRY_SYNC_INTERVAL": "0"})
    host.open(tmp_path / "app.db").sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    fill(host, 48)
    host.sync()
    host.sql("UPDATE t SET x = randomblob(900) WHERE id = 5")
    host.sync()
    image = live_image(tmp_path / "app.db")
    assert host.finish() == 0
    return image, replica


def reads(proxy):
    return [entry for entry in proxy.log() if entry["method"] == "GET" and ".ltx" in entry["target"]]


def test_a_killed_restore_goes_on(large, s3, proxy, tmp_path):
    image, replica = large
    replica.env = s3_environment(s3, proxy.endpoint)
    whole = restored(replica, tmp_path / "whole.db")
    all_reads = len(reads(proxy))
    assert (whole["requests"], whole["bytes_reused"]) == (all_reads, 0)

    output, work = tmp_path / "out.db", tmp_path / "out.db-restoring"
    proxy.ask("DELETE", "/log")
    rule = proxy.rule("hold", method="GET", path=r"\.ltx", skip=all_reads - 4)
    arguments = [str(PROGRAM), "restore", "--parallelism", "1", "-o", str(output), replica.url]
    program = subprocess.Popen(arguments, env=dict(clean_environment(), **replica.env),
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    proxy.wait(rule)
    # Another one to the same place is refused while it is at work, and disturbs nothing.
    said = restored(replica, output, code=REFUSED)
    assert "another restore" in said and str(program.pid) in said
    program.kill()
    program.wait()
    assert not output.exists() and {p.name for p in work.iterdir()} >= {"database", "record", "lock"}
    proxy.heal()
    proxy.ask("POST", "/release")
    proxy.ask("DELETE", "/log")

    report = restored(replica, output)
    assert report["bytes_reused"] > 16 << 20
    # Nothing is read twice but what frames the files: one file has one request more in the end.
    assert report["bytes_reused"] + report["bytes_fetched"] == whole["bytes_fetched"]
    assert len(reads(proxy)) == report["requests"] < all_reads - 3
    assert_same_pages(image, output.read_bytes())
    assert not work.exists() and (tmp_path / "out.db-walferry" / "state").exists()


def test_a_store_that_goes_away_is_no_reason_to_begin_anew(large, s3, proxy, tmp_path):
    image, replica = large
    replica.env = s3_environment(s3, proxy.endpoint)
    output = tmp_path / "out.db"
    rule = proxy.rule("status", code=403, s3_code="AccessDenied", method="GET", path=r"\.ltx", skip=10)
    said = restored(replica, output, "--parallelism", "1", code=UNREACHABLE)
    assert "goes on from there" in said, said
    assert proxy.ask("GET", "/rules/%d" % rule)["hits"]
    # Nor is a second time, on which nothing is reached at all.
    proxy.heal()
    proxy.rule("status", code=403, s3_code="AccessDenied", method="GET")
    restored(replica, output, code=UNREACHABLE)
    proxy.heal()
    report = restored(replica, output)
    assert report["bytes_reused"] > 8 << 20
    assert_same_pages(image, output.read_bytes())
    # Unless it is told to.
    assert restored(replica, tmp_path / "again.db", "--no-resume")["bytes_reused"] == 0


@pytest.fixture(params=["file", "s3"])
def replica(request, new_replica):
    return new_replica(request.param)


def test_a_copy_is_brought_forward(replica, new_host, tmp_path):
    host = new_host("apsw", replica, env={"WALFERRY_SYNC_INTERVAL": "0"})
    host.open(tmp_path / "app.db").sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    fill(host, 8)
    host.sync()
    copy = tmp_path / "copy.db"
    report = restored(replica, copy, "--delta")
    assert report["from"] is None and report["bytes_fetched"] > 8 << 20
    for n in range(5):
        before = report["txid"]
        host.sql("UPDATE t SET x = randomblob(700) WHERE id = %d" % (n + 1))
        host.sync()
        report = restored(replica, copy, "--delta")
        assert report["from"] == before and report["instead"] is None
        assert report["bytes_fetched"] < 1 << 20 and report["proven"]
        assert_same_pages(live_image(tmp_path / "app.db"), copy.read_bytes())

    # Whoever only reads it, leaves it as it is.
    reader = apsw.Connection(str(copy))
    assert list(reader.execute("SELECT count(*) FROM t")) == [(8,)]
    host.sql("INSERT INTO t (x) VALUES (1)")
    host.sync()
    said = restored(replica, copy, "--delta", code=REFUSED)
    assert "has it open" in said or "-wal exists" in said, said
    reader.close()
    report = restored(replica, copy, "--delta")
    assert report["from"] and rows(copy, "SELECT count(*) FROM t") == [(9,)]

    # Whoever writes to it, makes it another database.
    writer = apsw.Connection(str(copy))
    writer.execute("DELETE FROM t WHERE id = 3")
    writer.close()
    report = restored(replica, copy, "--delta")
    assert report["from"] is None and "was written to" in report["instead"]
    assert_same_pages(live_image(tmp_path / "app.db"), copy.read_bytes())
    assert host.finish() == 0

    # What is beside it fits: replication goes on from it without another image.
    before = full_images(replica)
    host = new_host("system", replica, env={"WALFERRY_SYNC_INTERVAL": "0"})
    host.open(copy).sql("INSERT INTO t (x) VALUES ('on')")
    txid = int(host.sync(), 16)
    assert host.status(copy)["state"] == "streaming"
    sizes = [len(replica.read(*key)) for key in replica.keys() if key[2] > int(report["txid"], 16)]
    assert sizes and max(sizes) < 1 << 20 and full_images(replica) == before
    # And it is a source now: nothing replaces it while it is shipped.
    said = restored(replica, copy, "--delta", code=REFUSED)
    assert "replicates it" in said or "has it open" in said or "exists" in said, said
    host.close()
    assert host.finish() == 0
    report = restored(replica, copy, "--delta")
    assert int(report["txid"], 16) == txid
    check_integrity(copy)


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_delta_is_refused_while_an_idle_connection_has_the_copy_open(mode, new_replica, new_host, tmp_path):
    """The connection has no lock: it has read nothing, or is between its transactions in rollback mode."""
    replica, copy = new_replica(), tmp_path / "copy.db"
    host = new_host("apsw", replica, env={"WALFERRY_SYNC_INTERVAL": "0"})
    host.open(tmp_path / "app.db").sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    host.sync()
    restored(replica, copy)
    idle = apsw.Connection(str(copy))
    if mode == "delete":
        assert list(idle.execute("PRAGMA journal_mode=delete")) == [("delete",)]
    before = copy.stat().st_ino
    host.sql("INSERT INTO t (x) VALUES (1)")
    host.sync()
    said = restored(replica, copy, "--delta", code=REFUSED)
    assert "process %d has it open" % os.getpid() in said, said
    assert copy.stat().st_ino == before
    idle.close()
    restored(replica, copy, "--delta")
    assert rows(copy, "SELECT count(*) FROM t") == [(1,)]


def test_what_there_is_to_restore(replica, new_host, tmp_path):
    host = new_host("apsw", replica, env={"WALFERRY_SYNC_INTERVAL": "0"})
    host.open(tmp_path / "app.db").sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    for n in range(30):
        host.sql("INSERT INTO t (x) VALUES (randomblob(3000))")
        host.sync()
        if n == 9 or n == 19:
            walferry("compact", "--level", "1", replica.url, env=replica.env)
    walferry("compact", "--level", "9", replica.url, env=replica.env)
    # Level 0 goes where joined files have it: then history is coarser.
    walferry("retain", "--retention", "10000h", "--l0-retention", "0s", replica.url, env=replica.env)
    said = walferry("restore", "--list", "--json", replica.url, env=replica.env).stdout
    listed = json.loads(said)
    assert [int(state["txid"], 16) for state in listed["states"]] == txids(replica)
    assert listed["gaps"] == [] and listed["problem"] is None and listed["unreadable"] == []
    assert any(not one["every_txid"] for one in listed["ranges"])
    assert sum(one["states"] for one in listed["ranges"]) == len(listed["states"])
    for state in listed["states"]:
        report = restored(replica, tmp_path / "out.db", "--txid", state["txid"])
        assert report["bytes_fetched"] == state["bytes_to_read"]
        assert (report["requests"], report["files"]) == (state["requests"], state["files"])
        for one in listed["ranges"]:
            for end in (one["first"], one["last"]):
                if end["txid"] == state["txid"]:
                    assert (end["time"], end["database_bytes"]) == (report["timestamp"], report["bytes"])
        for left in ("out.db", "out.db-walferry"):
            subprocess.run(["rm", "-r", str(tmp_path / left)], check=True)
    assert host.finish() == 0


def test_progress_goes_to_a_terminal_as_bars(large, s3, proxy, tmp_path):
    """A pseudo-terminal as standard error, and a store that takes its time."""
    image, replica = large
    replica.env = s3_environment(s3, proxy.endpoint)
    rule = proxy.rule("hold", method="GET", path=r"\.ltx", skip=6)
    main, side = os.openpty()
    arguments = [str(PROGRAM), "restore", "--parallelism", "1", "-o", str(tmp_path / "out.db"), replica.url]
    program = subprocess.Popen(arguments, env=dict(clean_environment(), TERM="xterm", **replica.env),
                               stdout=subprocess.PIPE, stderr=side, text=True)
    os.close(side)
    proxy.wait(rule)
    shown = b""
    while b"left" not in shown:  # the bar is drawn while the store is silent
        shown += os.read(main, 4096)
    assert re.search(rb"reading \[.*B/[0-9.]+ MiB .*/s .* left", shown), shown
    proxy.heal()
    proxy.ask("POST", "/release")
    said, _ = program.communicate(timeout=120)
    assert program.returncode == 0 and "restored" in said
    os.close(main)
    assert_same_pages(image, (tmp_path / "out.db").read_bytes())
