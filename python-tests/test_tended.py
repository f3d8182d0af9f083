"""WALs of programs without walferry beside the sidecar, whatever becomes of the replicas."""

import os
import sqlite3
import time

from harness import S3Replica, assert_restores, full_images
from sidecar import begin, generation, insert, plain, synced


def blocked(folder, name):
    """The URL of a folder replica that cannot be there: a part of its path is a file."""
    (folder / name).write_text("")
    return "file://%s/%s/replica" % (folder, name)


def checkpoint(database):
    """Somebody else's checkpoint: whether he was kept from it, frames of the WAL, frames copied."""
    db = sqlite3.connect(database)
    try:
        return db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    finally:
        db.close()


def write_until(db, what, why, seconds=60, size=100):
    """Commits, one at a time, until something is so; without a pause that would count as one."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, why
        insert(db, 1, size)


def write_anew(db, database):
    """Commits until the WAL has begun anew, again and again: how long it is each time depends on how fast
    the writer is just then."""
    for _ in range(4):
        before = generation(database)
        write_until(db, lambda: generation(database) != before, "the WAL does not begin anew", size=1000)


def test_a_replica_that_cannot_be_begun_holds_no_wal_up(new_sidecar, new_replica, tmp_path):
    database = tmp_path / "app.db"
    db = begin(database)
    broken = new_replica("file")
    broken.url = blocked(tmp_path, "blocked")
    sidecar = new_sidecar(database, broken)
    sidecar.wait_until_said("cannot be used")
    write_anew(db, database)
    assert sidecar.end() == 0


def test_one_replica_that_fails_is_not_felt_at_another(new_sidecar, replica, new_replica, tmp_path):
    database = tmp_path / "app.db"
    db = begin(database)
    config = tmp_path / "walferry.yml"
    config.write_text("dbs:\n  - path: %s\n    replicas:\n      - url: %s\n      - name: dead\n        url: %s\n" % (
        database, replica.url, blocked(tmp_path, "blocked")))
    nothing = new_replica("file")
    nothing.url = None
    sidecar = new_sidecar(None, nothing, "--config", config, env=replica.env)
    sidecar.wait_until_said("%s (replica dead): " % database)  # which of them it is, the log says
    write_anew(db, database)
    sidecar.end()
    assert_restores(replica, database, tmp_path)


def test_a_replica_that_is_taken_over_leaves_the_wal_alone(new_sidecar, replica, tmp_path):
    database, other = tmp_path / "app.db", tmp_path / "other" / "app.db"
    other.parent.mkdir()
    db = begin(database)
    sidecar = new_sidecar(database, replica, "--set", "spool-cap=256KB")
    synced(database, replica)
    insert(begin(other), 1)
    second = new_sidecar(other, replica)
    synced(other, replica)
    write_until(db, lambda: "ships no more" in sidecar.said(), "it does not hear of the other", size=1000)
    write_anew(db, database)
    assert second.end() == 0
    assert_restores(replica, other, tmp_path)


def test_a_wal_that_must_stay_costs_a_writer_no_checkpoints(new_sidecar, proxy, s3, tmp_path):
    replica = S3Replica(s3, "tended/image-%d" % os.getpid(), proxy.endpoint)
    database = tmp_path / "app.db"
    db = begin(database)
    rule = proxy.rule("hold", where="request", method="PUT")
    sidecar = new_sidecar(database, replica)
    proxy.wait(rule)  # the image is on its way, and stays so
    before = generation(database)
    insert(db, 1200)
    write_until(db, lambda: checkpoint(database)[0] == 1, "everybody checkpoints")
    assert generation(database) == before
    # Whoever reads the database meanwhile sees all, and nobody fails.
    assert plain(database).execute("SELECT count(*) FROM t").fetchone()[0] >= 1200
    proxy.heal()
    proxy.ask("POST", "/release")
    write_anew(db, database)
    assert sidecar.end() == 0
    assert len(full_images(replica)) == 1
    assert_restores(replica, database, tmp_path)


def test_a_writer_that_checkpoints_early_is_spared(new_sidecar, replica, tmp_path):
    database = tmp_path / "app.db"
    db = begin(database)
    db.execute("PRAGMA wal_autocheckpoint=20")
    sidecar = new_sidecar(database, replica)
    synced(database, replica)
    insert(db, 100)  # so that it is seen

    frames = [0]  # at the last look, a commit ago

    def spared():
        kept_out, now, _ = checkpoint(database)
        if kept_out:
            return 0 < frames[0] < 700
        frames[0] = now
        return False

    write_until(db, spared, "it checkpoints by itself all the time")
    write_anew(db, database)
    assert sidecar.end() == 0
    assert sidecar.complaints() == []
    assert_restores(replica, database, tmp_path)
