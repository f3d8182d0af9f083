"""The sidecar: `walferry replicate` beside programs that have never heard of walferry."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from harness import (LOG_TABLE, NO_REPLICA, OK, PROGRAM, SEED, UNREACHABLE, USAGE, DirectoryReplica, HostError,
                     assert_log_state, assert_restores, check_integrity, clean_environment, full_images,
                     journal, restore, rows, txids, walferry, stop)
from sidecar import Sidecar, begin, generation, insert, plain, quoted, synced, wait_for


def assert_every_txid(replica, tmp_path, rng):
    """Every published TXID restores to a state that was committed, none before the one before it."""
    every = txids(replica)
    assert every == list(range(1, len(every) + 1)), every
    chosen = every if len(every) <= 60 else sorted({*every[:10], *every[-10:], *rng.sample(every, 40)})
    reached = 0
    for txid in chosen:
        got = assert_log_state(restore(replica, tmp_path / "at.db", txid), str(SEED))
        assert got >= reached, "TXID %d goes back to commit %d" % (txid, got)
        reached = got
        (tmp_path / "at.db").unlink()
    return reached


# ---- writers that know nothing ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["system", "apsw", "pysqlite3"])
def test_every_commit_of_a_plain_program_arrives(kind, new_host, new_sidecar, new_replica, rng, tmp_path):
    replica, database = new_replica("s3" if kind == "apsw" else "file"), tmp_path / "app.db"
    host = new_host(kind, load=False)
    host.open(database)
    host.sql("PRAGMA journal_mode=WAL", LOG_TABLE)
    sidecar = new_sidecar(database, replica)
    host.call("writer", args=[str(SEED), str(tmp_path / "journal"), 0, 1, 3000])
    synced(database, replica)
    assert_restores(replica, database, tmp_path)
    assert assert_every_txid(replica, tmp_path, rng) == 3000
    assert sidecar.end() == 0
    assert len(full_images(replica)) == 1
    assert sidecar.complaints() == []


def test_the_wal_begins_anew_beside_the_sidecar(new_sidecar, replica, tmp_path):
    """Also for a writer that pauses: without it each commit would checkpoint for ever."""
    database = tmp_path / "app.db"
    db = begin(database)
    sidecar = new_sidecar(database, replica)
    begun, high_water = set(), 0
    deadline = time.monotonic() + 120
    while len(begun) < 5:
        assert time.monotonic() < deadline, "%s, %d bytes: %s" % (begun, high_water, sidecar.said())
        insert(db, 20)
        begun.add(generation(database))
        high_water = max(high_water, os.path.getsize(str(database) + "-wal"))
        time.sleep(0.001)  # the pause
    assert high_water < 100 << 20
    assert sidecar.end() == 0
    assert_restores(replica, database, tmp_path)
    assert sidecar.complaints() == []


def test_the_narrow_way_leads_to_one_new_beginning(new_sidecar, replica, tmp_path):
    """A writer that would checkpoint and begin anew every few commits, had it the lock for that."""
    database = tmp_path / "app.db"
    db = begin(database, "PRAGMA wal_autocheckpoint=5")
    sidecar = new_sidecar(database, replica)
    for round_ in range(1, 4):
        db.execute("BEGIN")
        insert(db, 900, 3900)
        db.execute("COMMIT")
        wait_for(lambda: sidecar.said().count("Narrow way") >= round_, sidecar.said)
        before = generation(database)
        stop(sidecar.process)  # it may be late as it likes
        insert(db, 1)
        assert generation(database) == before + 1, "the WAL did not begin anew where it could"
        insert(db, 40)
        assert generation(database) == before + 1, "it began anew more than once"
        os.kill(sidecar.process.pid, signal.SIGCONT)
    synced(database, replica)
    assert_restores(replica, database, tmp_path)
    assert sidecar.end() == 0
    assert sidecar.complaints() == []


def test_a_writer_without_a_busy_timeout_never_fails(new_sidecar, replica, tmp_path):
    """The sidecar takes no lock that a writer needs. A reader of its own now and then is in the way of
    the WAL's new beginning."""
    database = tmp_path / "app.db"
    begin(database).close()
    db, reader = plain(database, timeout=0), plain(database, timeout=0)
    sidecar = new_sidecar(database, replica)
    before = generation(database)
    for round_ in range(30):
        if round_ % 6 == 0:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM t").fetchall()
        insert(db, 250)
        if round_ % 6 == 1:
            reader.execute("COMMIT")
    assert generation(database) != before
    assert sidecar.end() == 0
    assert_restores(replica, database, tmp_path)
    assert len(full_images(replica)) == 1


def test_two_writers_at_full_speed(new_host, new_sidecar, replica, tmp_path):
    database = tmp_path / "app.db"
    begin(database, "CREATE TABLE u (w, n, x)").close()
    with plain(database) as db:
        db.execute("DROP TABLE t")
        db.execute("CREATE TABLE t (w, n, x)")
    sidecar = new_sidecar(database, replica)
    hosts = [new_host(kind, load=False).open(database) for kind in ("system", "apsw", "system")]
    writing = [host.ask("inserter", args=["w%d" % n, str(tmp_path / ("notes%d" % n)), 2500])
               for n, host in enumerate(hosts)]
    for one in writing:
        one.result()
    assert sidecar.end() == 0
    assert_restores(replica, database, tmp_path)
    got = rows(restore(replica, tmp_path / "got.db"), "SELECT w, count(*), max(n) FROM t GROUP BY w ORDER BY w")
    assert got == [("w%d" % n, 2500, 2500) for n in range(3)]
    assert len(full_images(replica)) == 1


WORST = {
    "passive": ["PRAGMA wal_checkpoint(PASSIVE)"], "full": ["PRAGMA wal_checkpoint(FULL)"],
    "restart": ["PRAGMA wal_checkpoint(RESTART)"], "truncate": ["PRAGMA wal_checkpoint(TRUNCATE)"],
    "vacuum": ["VACUUM"], "delete mode": ["PRAGMA journal_mode=DELETE"],
    "size limit": ["PRAGMA journal_size_limit=0"], "exclusive": ["PRAGMA locking_mode=EXCLUSIVE"],
    "small": ["PRAGMA wal_autocheckpoint=1"],
}


def shell(database, *statements):
    done = subprocess.run(["sqlite3", "-cmd", ".timeout 500", str(database)], text=True,
                          input=";\n".join(statements) + ";\n", capture_output=True, timeout=60)
    return done.returncode


@pytest.mark.parametrize("what", WORST)
def test_a_program_does_its_worst_beside_the_sidecar(what, new_sidecar, replica, tmp_path):
    """What it may not do it is told; what it may do is replicated, without a comparison."""
    database = tmp_path / "app.db"
    db = begin(database)
    sidecar = new_sidecar(database, replica)
    for round_ in range(4):
        insert(db, 300, 2000)
        shell(database, *WORST[what], "UPDATE t SET x = 'outside %d' WHERE id %% 7 = 0" % round_,
              *WORST[what])
        synced(database, replica)
        assert_restores(replica, database, tmp_path)
    db.close()
    shell(database, *WORST[what])
    assert sidecar.end() == 0
    assert_restores(replica, database, tmp_path)
    assert len(full_images(replica)) == 1
    # Beside a busy machine the sidecar may be late: a program that begins the WAL anew twice while the
    # way is open costs one comparison then, not one each time.
    unseen = [line for line in sidecar.complaints() if "begun anew past the gate" in line]
    assert sidecar.complaints() == unseen and len(unseen) <= 1


def test_the_wal_restarts_while_the_sidecar_is_away(new_sidecar, replica, tmp_path):
    database = tmp_path / "app.db"
    db = begin(database)
    db.execute("PRAGMA wal_autocheckpoint=10")
    for how in ("kill", "end", "kill"):
        sidecar = new_sidecar(database, replica)
        insert(db, 50)
        synced(database, replica)
        insert(db, 5)
        getattr(sidecar, how)()
        before = generation(database)
        insert(db, 100, 2000)
        assert generation(database) != before
    sidecar = new_sidecar(database, replica)
    assert int(synced(database, replica), 16) == txids(replica)[-1]
    assert_restores(replica, database, tmp_path)
    assert len(full_images(replica)) == 1
    sidecar.end()


def test_last_close_and_page_size_beside_the_sidecar(new_sidecar, replica, tmp_path):
    """The last close of the programs is not the last one; away from the sidecar all is possible."""
    database = tmp_path / "app.db"
    begin(database).close()
    sidecar = new_sidecar(database, replica)
    for _ in range(3):
        db = plain(database)
        insert(db, 10)
        db.close()
        assert os.path.exists(str(database) + "-wal")
    synced(database, replica)
    assert_restores(replica, database, tmp_path)
    sidecar.end()
    assert shell(database, "PRAGMA journal_mode=DELETE", "PRAGMA page_size=8192", "VACUUM",
                 "PRAGMA journal_mode=WAL") == 0
    sidecar = new_sidecar(database, replica)
    synced(database, replica)
    assert_restores(replica, database, tmp_path)
    assert len(full_images(replica)) == 2
    sidecar.end()


def test_sigkill_of_anybody_at_random_moments(request, new_host, new_sidecar, new_replica, rng, tmp_path):
    """The sidecar, the writer, both; the programs between them do what they like."""
    rounds = request.config.getoption("--crash-rounds")
    replica, database = new_replica(rng.choice(("file", "s3"))), tmp_path / "app.db"
    notes, seed, writer, sidecar, writing, committed = tmp_path / "journal", str(SEED), None, None, None, 0
    notes.touch()
    for _ in range(rounds):
        if writer is None:
            writer = new_host(rng.choice(("system", "apsw", "pysqlite3")), load=False)
            writer.open(database)
            writer.sql("PRAGMA journal_mode=WAL", LOG_TABLE.replace("TABLE", "TABLE IF NOT EXISTS"),
                       "PRAGMA wal_autocheckpoint=%d" % rng.choice((5, 100, 1000)),
                       "PRAGMA synchronous=%s" % rng.choice(("OFF", "NORMAL", "FULL")))
            start = (writer.value("SELECT max(n) FROM log") or 0) + 1
            assert committed <= start - 1 <= committed + 1, "SQLite itself lost a commit"
            writing = writer.ask("writer", args=[seed, str(notes), 0, start])
        if sidecar is None:
            sidecar = new_sidecar(database, replica, sync=rng.choice(("0", "5ms", "50ms")),
                                  wait=rng.random() < 0.7)
        size = notes.stat().st_size
        while notes.stat().st_size == size and not writing.done():
            time.sleep(0.001)
        time.sleep(rng.random() ** 3 * 1.5)  # the random moment
        assert not writing.done(), "the writer ended: %s" % writing.answers.queue
        assert sidecar.process.poll() is None, sidecar.said()
        what = rng.choice(("sidecar", "writer", "both", "sidecar ends"))
        if what in ("writer", "both"):
            writer.kill()
            writer = None
            committed = journal(notes)[0]
        if what in ("sidecar", "both"):
            sidecar.kill()
            sidecar = None
        if what == "sidecar ends":
            # Before it has begun, a signal is the end of it.
            sidecar.wait_until_ready()
            assert sidecar.end() == 0
            sidecar = None
        if writer is None and sidecar is None and rng.random() < 0.5:
            shell(database, rng.choice(("VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)", "SELECT 1")))
        if replica.keys():
            got = assert_log_state(restore(replica, tmp_path / "now.db"), seed)
            assert got <= journal(notes)[0] + 1
            (tmp_path / "now.db").unlink()
    if writer:
        writer.kill()
    if sidecar:
        sidecar.kill()
    done = journal(notes)[0]
    sidecar = new_sidecar(database, replica)
    assert sidecar.end() == 0
    assert_restores(replica, database, tmp_path)
    assert done <= assert_every_txid(replica, tmp_path, rng) <= done + 1
    assert len(full_images(replica)) == 1


def test_what_is_left_at_the_end_is_told(new_sidecar, replica, tmp_path):
    """A store that does not answer keeps nobody up, and is not passed over in silence either."""
    database = tmp_path / "app.db"
    db = begin(database)
    sidecar = new_sidecar(database, replica)
    wait_for(replica.keys, sidecar.said)
    os.rename(replica.folder, tmp_path / "away")
    replica.folder.write_text("no folder")
    insert(db, 1)
    sidecar.wait_until_said("cannot be used")
    sidecar.end()
    assert "the process ends, and what is left is shipped by the next one" in sidecar.said(), sidecar.said()
    os.unlink(replica.folder)
    os.rename(tmp_path / "away", replica.folder)
    sidecar = new_sidecar(database, replica)
    assert sidecar.end() == 0
    assert "the process ends" not in sidecar.said(), sidecar.said()
    assert_restores(replica, database, tmp_path)


# ---- databases that come and go --------------------------------------------------------------


def test_a_database_is_waited_for_not_created(new_sidecar, replica, tmp_path):
    database = tmp_path / "later" / "app.db"
    sidecar = new_sidecar(database, replica)
    assert not database.parent.exists()
    database.parent.mkdir()
    db = begin(database)
    insert(db, 3)
    wait_for(replica.keys, sidecar.said)
    sidecar.wait_until_said("opened")
    # Deleted and made anew: the new one is opened.
    db.close()
    for end in ("", "-wal", "-shm"):
        if os.path.exists(str(database) + end):
            os.unlink(str(database) + end)
    sidecar.wait_until_said("is gone")
    db = begin(database, "CREATE TABLE other (y)")
    wait_for(lambda: sidecar.said().count(": opened") == 2, sidecar.said)
    insert(db, 3)
    assert sidecar.end() == 0
    assert_restores(replica, database, tmp_path)


def test_a_replaced_database_is_opened_again(new_sidecar, replica, tmp_path):
    database = tmp_path / "app.db"
    db = begin(database)
    sidecar = new_sidecar(database, replica)
    insert(db, 5)
    db.close()
    other = begin(tmp_path / "new.db", "CREATE TABLE other AS SELECT 1 AS y")
    insert(other, 50)
    other.close()
    for end in ("-wal", "-shm"):
        if os.path.exists(str(database) + end):
            os.unlink(str(database) + end)
    os.rename(tmp_path / "new.db", database)
    sidecar.wait_until_said("was replaced")
    wait_for(lambda: sidecar.said().count(": opened") == 2, sidecar.said)
    db = plain(database)
    insert(db, 5)
    assert sidecar.end() == 0
    assert_restores(replica, database, tmp_path)


@pytest.mark.parametrize("rows", [90, 900], ids=["smaller", "larger"])
@pytest.mark.parametrize("how", ["mv", "cp"])
def test_another_database_takes_the_place_of_one_whose_program_is_stopped(how, rows, new_sidecar, replica, tmp_path):
    """Without the sidecar there would be no WAL by then: neither pages nor the size of the old one must be
    laid over the new one."""
    database = tmp_path / "app.db"
    db = begin(database, "CREATE TABLE u (x)")
    sidecar = new_sidecar(database, replica)
    insert(db, 60, 3000)
    db.close()
    sidecar.wait_until_said("its WAL is emptied")
    assert os.path.getsize(str(database) + "-wal") == 0
    other = begin(tmp_path / "new.db", "CREATE TABLE u (x)")
    insert(other, rows, 2000)
    before, pages = dump(other), other.execute("PRAGMA page_count").fetchone()
    other.close()
    subprocess.run([how, tmp_path / "new.db", database], check=True)
    if how == "cp":
        # The file is the same one, so that nothing else tells of it than its times.
        sidecar.wait_until_said("while no program had it open")
    db = plain(database)
    assert dump(db) == before
    assert db.execute("PRAGMA page_count").fetchone() == pages
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    if how == "mv":
        sidecar.wait_until_said("was replaced")
        wait_for(lambda: sidecar.said().count(": opened") == 2, sidecar.said)
    insert(db, 5)
    before = dump(db)
    db.close()
    assert sidecar.end() == 0
    assert_restores(replica, database, tmp_path)
    db = plain(database)
    assert dump(db) == before
    db.close()


def test_what_a_program_does_in_short_runs_is_never_compared(new_sidecar, replica, tmp_path):
    """The WAL is emptied after each of them, and the log goes on from there."""
    database = tmp_path / "app.db"
    db = begin(database)
    sidecar = new_sidecar(database, replica)
    for run in range(5):
        insert(db, 3 + 400 * (run % 2))
        db.close()
        wait_for(lambda: os.path.getsize(str(database) + "-wal") == 0, sidecar.said)
        db = plain(database)
    insert(db, 1)
    db.close()
    assert sidecar.end() == 0
    assert not sidecar.complaints() and ": compared" not in sidecar.said(), sidecar.said()
    assert_restores(replica, database, tmp_path)
    assert len(full_images(replica)) == 1


@pytest.mark.parametrize("restarts", [False, True], ids=["goes-on", "restarts"])
@pytest.mark.parametrize("removed", [["-shm"], ["-wal", "-shm"]], ids=["shm", "both"])
def test_files_of_the_wal_are_removed_while_its_program_is_stopped(removed, restarts, new_sidecar, replica, tmp_path):
    """Without the sidecar there would be none: the program was the last to close the database."""
    database = tmp_path / "app.db"
    db = begin(database, "CREATE TABLE u (x)")
    insert(db, 1)
    db.close()
    sidecar = new_sidecar(database, replica)
    db = plain(database)
    db.executemany("INSERT INTO u VALUES (hex(zeroblob(400)))", [()] * 100)
    db.execute("PRAGMA wal_checkpoint(PASSIVE)")
    db.close()
    for end in removed:
        os.unlink(str(database) + end)
    db = plain(database)
    for n in range(1500 if restarts else 60):
        insert(db, 1)
    before = dump(db)
    db.close()
    sidecar.wait_until_said("was removed or replaced")
    wait_for(lambda: sidecar.said().count(": opened") == 2, sidecar.said)
    assert sidecar.end() == 0
    db = plain(database)
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert dump(db) == before
    db.close()
    assert_restores(replica, database, tmp_path)


def dump(db):
    return [row for table in "tu" for row in db.execute("SELECT * FROM %s ORDER BY rowid" % table)]


def test_a_link_that_leads_elsewhere_is_told(new_sidecar, replica, tmp_path):
    for name in ("v1", "v2"):
        (tmp_path / name).mkdir()
        db = begin(tmp_path / name / "app.db")
        insert(db, 5)
        db.close()
    link = tmp_path / "current"
    link.symlink_to("v1")
    sidecar = new_sidecar(link / "app.db", replica)
    (tmp_path / "next").symlink_to("v2")
    os.rename(tmp_path / "next", link)
    sidecar.wait_until_said("v2/app.db now, which is not replicated")
    assert sidecar.end() == 0
    assert_restores(replica, tmp_path / "v1" / "app.db", tmp_path)


def test_one_that_came_and_went_unheard_leaves_no_lag(new_host, new_sidecar, replica, tmp_path):
    """The sidecar still has the file that was there before when another process commits to the new one."""
    database = tmp_path / "app.db"
    begin(database).close()
    sidecar = new_sidecar(database, replica)
    new = begin(tmp_path / "new.db")
    insert(new, 50)
    new.close()
    for end in ("-wal", "-shm"):
        if os.path.exists(str(database) + end):
            os.unlink(str(database) + end)
    os.rename(tmp_path / "new.db", database)
    host = new_host("system", replica)
    host.open(database)
    host.sql("INSERT INTO t (x) VALUES (1)")
    host.close()
    host.finish()
    wait_for(lambda: sidecar.said().count(": opened") == 2, sidecar.said)

    def status():
        return json.loads(walferry("status", "--json", database).stdout)[0]
    wait_for(lambda: (status()["state"], status()["lag_ms"]) == ("streaming", 0), status)
    assert sidecar.end() == 0
    assert_restores(replica, database, tmp_path)


def test_another_journal_mode_is_reported_and_not_changed(new_sidecar, new_replica, tmp_path):
    database, replica = tmp_path / "app.db", new_replica()
    db = plain(database)
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    sidecar = new_sidecar(database, replica)
    sidecar.wait_until_said("not in WAL mode")
    assert db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    db.execute("PRAGMA journal_mode=WAL")  # looked at again
    insert(db, 5)
    sidecar.wait_until_said(": opened")
    assert sidecar.end() == 0
    assert_restores(replica, database, tmp_path)
    # And where it is asked for, it is changed.
    other = tmp_path / "other.db"
    with plain(other) as db:
        db.execute("CREATE TABLE t (x)")
    replica = new_replica()
    sidecar = new_sidecar(other, replica, "--journal-mode", "wal")
    sidecar.wait_until_said(": opened")
    assert sidecar.end() == 0
    assert_restores(replica, other, tmp_path)


def test_a_database_that_is_locked_is_put_into_wal_mode_later(new_sidecar, replica, tmp_path):
    database = tmp_path / "app.db"
    db = plain(database)
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    insert(db, 1)
    db.execute("BEGIN")
    db.execute("SELECT * FROM t").fetchall()
    sidecar = new_sidecar(database, replica, "--journal-mode", "wal", wait=False)
    sidecar.wait_until_said("could not be put into it")
    db.execute("COMMIT")
    sidecar.wait_until_said(": opened")
    insert(db, 5)
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    wait_for(replica.keys, sidecar.said)
    assert sidecar.end() == 0
    assert_restores(replica, database, tmp_path)


def test_a_database_that_comes_back_in_another_mode(new_sidecar, replica, tmp_path):
    database, away = tmp_path / "app.db", tmp_path / "away.db"
    begin(database, "INSERT INTO t (x) VALUES (1)").close()
    sidecar = new_sidecar(database, replica)
    wait_for(replica.keys, sidecar.said)
    database.rename(away)
    for end in ("-wal", "-shm"):
        os.unlink(str(database) + end)
    sidecar.wait_until_said("is gone")
    assert shell(away, "PRAGMA journal_mode=DELETE", "VACUUM") == 0
    away.rename(database)
    sidecar.wait_until_said("not in WAL mode")
    db = plain(database)
    db.execute("PRAGMA journal_mode=WAL")
    insert(db, 50)
    wait_for(lambda: sidecar.said().count(": opened") == 2, sidecar.said)
    insert(db, 1)
    assert sidecar.end() == 0
    assert_restores(replica, database, tmp_path)


def test_many_databases_that_others_have_to_themselves(new_sidecar, replica, tmp_path):
    """They keep it from nothing, and are replicated once they are free."""
    folder = tmp_path / "data"
    folder.mkdir()
    held = {}
    for number in range(40):
        begin(folder / ("%02d.db" % number)).close()
        db = held[number] = plain(folder / ("%02d.db" % number))
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        insert(db, 1)
    free = begin(folder / "free.db")
    sidecar = new_sidecar(folder, replica, "--pattern", "*.db", wait=False, env={"WATCHDOG_USEC": "2000000"})
    sidecar.wait_until_said("free.db: opened")
    insert(free, 5)
    synced(folder / "free.db", DirectoryReplica(replica.folder / "free.db"))
    sidecar.wait_for("WATCHDOG=1")
    for db in held.values():
        db.close()
    wait_for(lambda: sidecar.said().count(": opened") == 41, sidecar.said)
    assert sidecar.end() == 0
    for name in ("free.db", "00.db", "39.db"):
        assert_restores(DirectoryReplica(replica.folder / name), folder / name, tmp_path)


def test_what_is_no_database_is_reported(new_sidecar, replica, tmp_path):
    (tmp_path / "app.db").write_bytes(b"no database " * 100)
    sidecar = new_sidecar(tmp_path / "app.db", replica)
    sidecar.wait_until_said("no SQLite database")
    assert sidecar.end() == 0
    assert (tmp_path / "app.db").read_bytes() == b"no database " * 100
    assert sorted(p.name for p in tmp_path.glob("app.db*")) == ["app.db"]


def test_a_folder_is_watched(new_sidecar, replica, tmp_path):
    folder = tmp_path / "data"
    (folder / "deep").mkdir(parents=True)
    (folder / "no.db").write_bytes(b"nothing of the sort" * 20)
    open_ones = {"a.db": begin(folder / "a.db"), "deep/b.db": begin(folder / "deep" / "b.db"),
                 "c.txt": begin(folder / "c.txt")}
    sidecar = new_sidecar(folder, replica, "--pattern", "*.db", "--recursive")
    sidecar.wait_until_said("no.db: it is no SQLite database")
    open_ones["deep/new.db"] = begin(folder / "deep" / "new.db")
    sidecar.wait_until_said("new.db: opened")
    for db in open_ones.values():
        insert(db, 5)
    open_ones["a.db"].close()
    synced(folder / "a.db", DirectoryReplica(replica.folder / "a.db"))
    for end in ("", "-wal", "-shm"):
        if os.path.exists(str(folder / "a.db") + end):
            os.unlink(str(folder / "a.db") + end)
    sidecar.wait_until_said("a.db: the file is gone")
    assert sidecar.end() == 0
    for name in ("deep/b.db", "deep/new.db"):
        assert_restores(DirectoryReplica(replica.folder / name), folder / name, tmp_path)
    assert not (replica.folder / "c.txt").exists()
    assert [p.name for p in folder.glob("no.db*")] == ["no.db"]


# ---- who ships -------------------------------------------------------------------------------


def test_it_stands_by_for_an_application_and_takes_over(new_host, new_sidecar, replica, tmp_path):
    database = tmp_path / "app.db"
    host = new_host("system", replica)
    host.open(database)
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    host.sync()
    sidecar = new_sidecar(database, replica)
    sidecar.wait_until_said("stands by")
    for n in range(30):
        host.sql("INSERT INTO t (x) VALUES (%d)" % n)
    host.kill()
    db = plain(database)
    insert(db, 10)
    last = db.execute("SELECT max(id) FROM t").fetchone()[0]

    def arrived():
        restore(replica, tmp_path / "got.db")
        got = rows(tmp_path / "got.db", "SELECT max(id) FROM t")[0][0]
        (tmp_path / "got.db").unlink()
        return got == last

    wait_for(arrived, sidecar.said)
    # The other way round: now the application stands by, and takes over.
    host = new_host("apsw", replica)
    host.open(database)
    wait_for(lambda: host.status(database)["state"] == "standby", lambda: host.status())
    assert host.status(database)["shipper"] == sidecar.process.pid
    sidecar.kill()
    host.sql("INSERT INTO t (x) VALUES ('after the sidecar')")
    host.sync()
    assert_restores(replica, database, tmp_path)
    assert len(full_images(replica)) == 1


# ---- a program beside ------------------------------------------------------------------------

WRITES = """
import os, signal, sqlite3, sys
db = sqlite3.connect(os.environ["DATABASE"], isolation_level=None)
db.execute("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, x)")
for n in range(50):
    db.execute("INSERT INTO t (x) VALUES ('a ''quoted'' word')")
print("%s", flush=True)
"""


@pytest.mark.parametrize("end, code", [
    ("sys.exit(0)", 0), ("sys.exit(7)", 7), ("os.kill(os.getpid(), signal.SIGTERM)", 128 + 15),
    ("os._exit(200)", 200),
])
def test_it_ends_as_its_program_does(end, code, new_sidecar, replica, tmp_path):
    database = tmp_path / "app.db"
    begin(database).close()
    sidecar = new_sidecar(database, replica, "--exec", quoted(WRITES % "done" + end), sync="1h",
                          env={"DATABASE": str(database)})
    assert sidecar.process.wait(60) == code, sidecar.said()
    assert sidecar.process.stdout.read() == "done\n"
    assert rows(restore(replica, tmp_path / "got.db"), "SELECT count(*) FROM t") == [(50,)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_are_passed_on(number, new_sidecar, replica, tmp_path):
    database = tmp_path / "app.db"
    begin(database).close()
    script = "import signal\nsignal.signal(%d, lambda *_: (print('got it', flush=True), sys.exit(9)))\n" % number
    sidecar = new_sidecar(database, replica, "--exec", quoted(
        "import sys, time\n" + script + WRITES % "ready" + "while True: time.sleep(60)"), sync="1h",
        env={"DATABASE": str(database)})
    assert sidecar.process.stdout.readline() == "ready\n"
    sidecar.process.send_signal(number)
    assert sidecar.process.stdout.readline() == "got it\n"
    assert sidecar.process.wait(60) == 9
    assert rows(restore(replica, tmp_path / "got.db"), "SELECT count(*) FROM t") == [(50,)]


def test_the_program_starts_only_when_its_databases_are_replicated(new_sidecar, replica, tmp_path):
    database = tmp_path / "app.db"
    begin(database).close()
    # The WAL stays although the only connection is closed: the pin is there before the first line.
    sidecar = new_sidecar(database, replica, "--exec", quoted(
        "import os, sqlite3\ndb = sqlite3.connect(os.environ['DATABASE'], isolation_level=None)\n"
        "db.execute('INSERT INTO t (x) VALUES (1)')\ndb.close()\n"
        "print(os.path.exists(os.environ['DATABASE'] + '-wal'))"), env={"DATABASE": str(database)})
    assert sidecar.process.wait(60) == 0
    assert sidecar.process.stdout.read() == "True\n"


def test_the_program_waits_for_a_database_that_is_locked(new_sidecar, replica, tmp_path):
    database = tmp_path / "app.db"
    begin(database).close()
    db = plain(database)
    db.execute("PRAGMA locking_mode=EXCLUSIVE")
    insert(db, 1)
    sidecar = new_sidecar(database, replica, "--exec", "true", wait=False)
    sidecar.wait_until_said("locked")
    db.close()
    assert sidecar.process.wait(60) == 0
    said = sidecar.said()
    assert said.index(": opened") < said.index("started true"), said


@pytest.mark.parametrize("command, code", [
    ("no-such-program-at-all", 127), ("'unbalanced", USAGE), ("   ", USAGE)])
def test_a_program_that_cannot_be_started(command, code, new_sidecar, replica, tmp_path):
    database = tmp_path / "app.db"
    begin(database).close()
    sidecar = new_sidecar(database, replica, "--exec", command, wait=False)
    assert sidecar.process.wait(60) == code, sidecar.said()


def test_a_second_signal_ends_it_at_once(new_sidecar, new_replica, proxy, s3, tmp_path):
    from harness import S3Replica
    replica = S3Replica(s3, "sidecar/second-signal-%d" % os.getpid(), proxy.endpoint)
    database = tmp_path / "app.db"
    db = begin(database)
    sidecar = new_sidecar(database, replica, "--set", "shutdown-timeout=1h")
    rule = proxy.rule("blackhole", where="request", count=1000)
    insert(db, 5)
    proxy.wait(rule)
    sidecar.process.send_signal(signal.SIGTERM)
    sidecar.wait_for("STOPPING=1")
    sidecar.process.send_signal(signal.SIGTERM)
    assert sidecar.process.wait(60) == -signal.SIGTERM
    proxy.heal()
    sidecar = new_sidecar(database, replica)  # what was left is shipped
    assert sidecar.end() == 0
    assert_restores(replica, database, tmp_path)


# ---- once, restore, the service manager ------------------------------------------------------


def test_once(new_sidecar, new_replica, tmp_path):
    database, replica = tmp_path / "app.db", new_replica()
    db = begin(database)
    insert(db, 20)
    for _ in range(2):
        sidecar = new_sidecar(database, replica, "--once", wait=False)
        assert sidecar.process.wait(60) == OK, sidecar.said()
        assert_restores(replica, database, tmp_path)
        insert(db, 5)
    for arguments, path, url, code in [
        (["--once"], tmp_path / "missing.db", replica.url, USAGE),
        (["--once", "--exec", "true"], database, replica.url, USAGE),
        (["--once", "--timeout", "500ms"], database, "s3://bucket/x?endpoint=http://127.0.0.1:9", UNREACHABLE),
    ]:
        walferry("replicate", *arguments, path, url, code=code,
                 env={"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "c"})
    assert not (tmp_path / "missing.db").exists()


def test_a_missing_database_is_restored_first(new_sidecar, new_replica, tmp_path):
    database, replica = tmp_path / "app.db", new_replica()
    sidecar = new_sidecar(database, replica, "--restore-if-db-not-exists")  # no replica yet: no error
    db = begin(database)
    insert(db, 20)
    sidecar.wait_until_said(": opened")
    assert sidecar.end() == 0
    db.close()
    expected = restore(replica, tmp_path / "expected.db").read_bytes()
    for path in tmp_path.glob("app.db*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    sidecar = new_sidecar(database, replica, "--restore-if-db-not-exists", wait=False)
    sidecar.wait_for("EXTEND_TIMEOUT_USEC=60000000")  # a long one is let go on
    sidecar.wait_for("READY=1")
    assert database.read_bytes()[100:] == expected[100:]
    db = plain(database)
    insert(db, 5)
    assert sidecar.end() == 0
    assert_restores(replica, database, tmp_path)
    assert len(full_images(replica)) == 1


def test_the_service_manager_is_told(new_sidecar, replica, tmp_path):
    database = tmp_path / "app.db"
    begin(database).close()
    sidecar = new_sidecar(database, replica, env={"WATCHDOG_USEC": "200000"})
    for _ in range(3):
        sidecar.wait_for("WATCHDOG=1")
    assert sidecar.end(signal.SIGINT) == 0
    sidecar.wait_for_last = [sidecar.told.get(timeout=10)]
    while sidecar.wait_for_last[-1] != "STOPPING=1":
        sidecar.wait_for_last.append(sidecar.told.get(timeout=10))


def test_log_formats_and_levels(new_sidecar, replica, tmp_path):
    database, secret = tmp_path / "app.db", "s3cr3t-in-the-environment"
    begin(database).close()
    sidecar = new_sidecar(database, replica, "--log-format", "json", "--log-level", "debug",
                          "--log-file", tmp_path / "own.log", env={"AWS_SECRET_ACCESS_KEY": secret})
    assert sidecar.end() == 0
    lines = [json.loads(line) for line in (tmp_path / "own.log").read_text().splitlines()]
    assert {line["level"] for line in lines} >= {"INFO"} and {"time", "pid", "msg"} <= lines[0].keys()
    assert any("full image" in line["msg"] for line in lines), "the extension logs there too"
    assert sidecar.said() == "" and secret not in (tmp_path / "own.log").read_text()
    sidecar = new_sidecar(database, replica, "--log-level", "error")
    assert sidecar.end() == 0 and sidecar.said() == ""
    walferry("replicate", "--log-level", "loud", database, replica.url, code=USAGE)


# ---- the configuration file ------------------------------------------------------------------


@pytest.fixture
def configured(new_replica, tmp_path):
    """Litestream's file, as it is, with the server's endpoint: S3, and a folder of databases."""
    cloud, disk = new_replica("s3"), DirectoryReplica(tmp_path / "disk")
    (tmp_path / "tenants" / "eu").mkdir(parents=True)
    path = tmp_path / "litestream.yml"
    path.write_text("""
dbs:
  - path: %s
    restore-if-db-not-exists: true
    replicas:
      - type: s3
        bucket: %s
        path: %s
        region: %s
        endpoint: %s
        force-path-style: true
        access-key-id: ${AWS_ACCESS_KEY_ID}
        secret-access-key: ${AWS_SECRET_ACCESS_KEY}
        retention: 720h
      - path: %s
  - dir: %s
    pattern: "*.db"
    recursive: true
    watch: true
    replica:
      path: %s
""" % (tmp_path / "app.db", cloud.bucket, cloud.prefix, cloud.env["AWS_REGION"],
       cloud.env["AWS_ENDPOINT_URL"], disk.folder, tmp_path / "tenants", tmp_path / "all"))
    env = {name: value for name, value in cloud.env.items() if name != "AWS_ENDPOINT_URL"}
    return path, cloud, disk, env


@pytest.fixture
def from_file(tmp_path):
    running = []

    def make(path, env, *arguments):
        running.append(Sidecar(tmp_path, None, None, "-config", path, *arguments, env=env))
        return running[-1]

    yield make
    for sidecar in running:
        if sidecar.process.poll() is None:
            sidecar.kill()


def test_the_file_says_what_is_replicated(configured, from_file, tmp_path):
    path, cloud, disk, env = configured
    database, tenant = tmp_path / "app.db", tmp_path / "tenants" / "eu" / "one.db"
    db, other = begin(database), begin(tenant)
    sidecar = from_file(path, env)
    for _ in range(40):  # the WAL begins anew meanwhile, for both replicas
        insert(db, 50, 500)
        insert(other, 5)
    late = begin(tmp_path / "tenants" / "late.db")
    insert(late, 5)
    # An end before that has nothing to capture to, and says so.
    sidecar.wait_until_said("late.db: the full image is at the store")
    before, deadline = generation(database), time.monotonic() + 60
    while generation(database) == before:  # how long it is by then depends on the writer's pace
        assert time.monotonic() < deadline, "the WAL does not begin anew"
        insert(db, 10, 500)
    assert sidecar.end() == 0
    for replica in (cloud, disk):
        assert_restores(replica, database, tmp_path)
        assert len(full_images(replica)) == 1
    assert_restores(DirectoryReplica(tmp_path / "all" / "eu" / "one.db"), tenant, tmp_path)
    assert_restores(DirectoryReplica(tmp_path / "all" / "late.db"), tmp_path / "tenants" / "late.db", tmp_path)
    complaints = [line for line in sidecar.complaints() if "cannot be read" not in line]
    assert not complaints, complaints
    # The same file is enough to restore by, now and as it was.
    count = db.execute("SELECT count(*) FROM t").fetchone()
    for more in ([], ["-timestamp", "-0s"]):
        output = tmp_path / "out.db"
        walferry("restore", "-o", output, "-config", path, *more, database, env=env)
        assert rows(output, "SELECT count(*) FROM t") == [count]
        output.unlink()
    # And a database that is missing is put back before anything else.
    db.close()
    for file in tmp_path.glob("app.db*"):
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    sidecar = from_file(path, env)
    assert plain(database).execute("SELECT count(*) FROM t").fetchone() == count
    assert sidecar.end() == 0


def test_once_and_exec_by_the_file(configured, from_file, tmp_path):
    path, cloud, disk, env = configured
    database = tmp_path / "app.db"
    db = begin(database)
    insert(db, 10)
    walferry("replicate", "-once", "-config", path, env=env)
    for replica in (cloud, disk):
        assert_restores(replica, database, tmp_path)
    path.write_text("exec: sh -c 'exit 7'\n" + path.read_text())
    walferry("replicate", "-config", path, env=env, code=7)
    walferry("replicate", "-exec", "sh -c 'exit 8'", "-config", path, env=env, code=8)
    path.write_text("dbs: []\n")
    assert "lists no database" in walferry("replicate", "-config", path, env=env, code=USAGE).stderr
    walferry("replicate", database, env=env, code=USAGE)
