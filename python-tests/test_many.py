"""Many replicated databases in one process: two threads for all, and nothing while nobody writes.

bench/many.py measures what a thousand cost.
"""

import contextlib
import json
import os
import resource
import time

from harness import DirectoryReplica, S3Replica, assert_restores, full_images
from test_processes import until

DATABASES = 200


def test_two_hundred_databases(new_host, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20000), hard))  # a child inherits it
    try:
        host = new_host("pysqlite3", env={
            "WALFERRY_REPLICA": "file://%s/replicas/{name}" % tmp_path, "WALFERRY_LEVELS": "off",
            "WALFERRY_SNAPSHOT_INTERVAL": "off", "WALFERRY_DELETES": "off"})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    names = ["%03d.db" % number for number in range(DATABASES)]
    for name in names:
        host.open(tmp_path / name, name)
        host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)", conn=name)
    for round_ in range(2):
        for name in names:
            host.sql("INSERT INTO t VALUES (randomblob(2000))", conn=name)
        for name in names:
            host.sync(name)

    def threads():
        return [name for name in host.facts()["threads"] if name.startswith("walferry")]

    # Files are written by a few threads more, whatever the number of databases, which go by themselves.
    assert threads().count("walferry-io") <= 4 and len(threads()) <= 6, threads()
    until(lambda: threads() == ["walferry-seal", "walferry-ship"], "two threads are left")

    def requests():
        every = json.loads(host.value("SELECT walferry_status()", names[0]))
        assert len(every) == DATABASES and {one["state"] for one in every} == {"streaming"}
        assert {(one["images"], one["resyncs"], one["lag_ms"]) for one in every} == {(1, 0, 0)}
        return {one["database"]: one["requests"] for one in every}

    before = requests()
    host.sql("INSERT INTO t VALUES (1)", conn=names[0])
    host.sync(names[0])
    # One database has written: its file went out, perhaps after a look at what that follows. The others
    # were left in peace.
    after, wrote = requests(), str(tmp_path / names[0])
    assert after.pop(wrote) - before.pop(wrote) in (1, 2, 3)
    assert after == before
    for name in names:
        replica = DirectoryReplica(tmp_path / "replicas" / name)
        assert_restores(replica, tmp_path / name, tmp_path)
        assert len(full_images(replica)) == 1


def test_databases_that_are_gone_are_forgotten(new_host, tmp_path):
    host = new_host("pysqlite3", env={"WALFERRY_REPLICA": "file://%s/replicas/{name}" % tmp_path})
    host.open(tmp_path / "stays.db", "stays")
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)", conn="stays")
    for number in range(300):
        database = tmp_path / ("%03d.db" % number)
        host.open(database, "passing")
        host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)", conn="passing")
        host.sync("passing")
        host.close("passing")
        database.unlink()
    known = [one["database"] for one in json.loads(host.value("SELECT walferry_status()", "stays"))]
    assert str(tmp_path / "stays.db") in known
    # Now and then those that are gone are looked for; the last may be on their way still.
    assert len(known) < 150, len(known)


def known(host, conn):
    return [one["database"] for one in json.loads(host.value("SELECT walferry_status()", conn))]


def test_a_closed_database_is_forgotten(new_host, tmp_path):
    host = new_host("pysqlite3", env={"WALFERRY_REPLICA": "file://%s/replicas/{name}" % tmp_path})
    stays, goes = tmp_path / "stays.db", tmp_path / "goes.db"
    for database in stays, goes:
        host.open(database, database.name)
        host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)", conn=database.name)
    assert sorted(known(host, stays.name)) == sorted(map(str, (goes, stays)))
    host.close(goes.name)
    until(lambda: known(host, stays.name) == [str(stays)], "it is shipped and forgotten")
    host.open(goes, goes.name)
    host.sql("INSERT INTO t VALUES (1)", conn=goes.name)
    host.sync(goes.name)
    assert len(known(host, stays.name)) == 2
    assert_restores(DirectoryReplica(tmp_path / "replicas" / goes.name), goes, tmp_path)
    assert len(full_images(DirectoryReplica(tmp_path / "replicas" / goes.name))) == 1


def test_a_closed_database_that_owes_is_not_forgotten(new_host, tmp_path):
    (tmp_path / "replicas").write_text("in the way of a folder")
    host = new_host("pysqlite3", env={"WALFERRY_REPLICA": "file://%s/replicas/{name}" % tmp_path})
    host.open(tmp_path / "app.db", "app")
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)", conn="app")
    host.open(tmp_path / "other.db", "other")
    host.close("app")

    def owed():
        every = json.loads(host.value("SELECT walferry_status()", "other"))
        return [one for one in every if one["database"] == str(tmp_path / "app.db")][0]
    until(lambda: owed()["last_error"], "the failure is told")
    (tmp_path / "replicas").unlink()
    until(lambda: known(host, "other") == [str(tmp_path / "other.db")], "it is shipped, then forgotten", 60)


def test_a_database_at_rest_costs_few_descriptors(new_host, replica, tmp_path):
    database = tmp_path / "app.db"

    def opened():
        host = new_host("system", replica, env={"WALFERRY_AUDIT_INTERVAL": "500ms"})
        host.open(database)
        host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE IF NOT EXISTS t (x)", "INSERT INTO t VALUES (1)")
        host.sync()
        until(lambda: host.sql("INSERT INTO t VALUES (1)") or host.status(database)["audit"], "an audit")
        return host

    def descriptors(host):
        folder = "/proc/%d/fd" % host.process.pid
        links = []
        for name in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
                links.append(os.readlink(os.path.join(folder, name)))
        return sorted(link for link in links if link.startswith(str(database)))

    def keeps(host, most):
        until(lambda: len(descriptors(host)) <= most, "what is not in use is closed")
        # It stays so, but for the moment of a look each second.
        seen = [len(descriptors(host)) for _ in range(50) if not time.sleep(0.05)]
        assert sorted(seen)[len(seen) // 2] <= most, descriptors(host)
    # SQLite's three; the pin, and the shipper's place; one of the image's that SQLite cannot close while the
    # database is open.
    host = opened()
    keeps(host, 6)
    host.close()
    assert host.finish() == 0
    keeps(opened(), 5)


def test_many_replicas_sign_in_together(new_host, proxy, s3, tmp_path):
    """Credentials are looked up once for all replicas, and again when the store refuses them."""
    prefix = "many/%s" % tmp_path.name
    replica = S3Replica(s3, prefix, proxy.endpoint)
    config, script, runs = tmp_path / "config", tmp_path / "sign-in", tmp_path / "runs"
    script.write_text("#!/bin/sh\necho run >>%s\ncat %s\n" % (runs, tmp_path / "answer"))
    script.chmod(0o755)
    config.write_text("[default]\ncredential_process=%s\n" % script)

    def given(token):
        answer = {"Version": 1, "AccessKeyId": "ASIAWALFERRYTESTS001", "SecretAccessKey": "s",
                  "SessionToken": token, "Expiration": "2099-01-01T00:00:00Z"}
        (tmp_path / "answer.new").write_text(json.dumps(answer))
        (tmp_path / "answer.new").rename(tmp_path / "answer")

    env = {name: value for name, value in replica.env.items()
           if name not in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    env.update(AWS_CONFIG_FILE=str(config), AWS_SHARED_CREDENTIALS_FILE=str(tmp_path / "none"),
               WALFERRY_REPLICA=replica.url + "/{name}")
    server = {"key": s3["AWS_ACCESS_KEY_ID"], "secret": s3["AWS_SECRET_ACCESS_KEY"]}
    given("first")
    proxy.rule("token", token="first", **server)
    host = new_host("system", env=env)
    names = ["%02d.db" % number for number in range(20)]

    def write_all():
        for name in names:
            host.sql("INSERT INTO t VALUES (randomblob(100))", conn=name)

    for name in names:
        host.open(tmp_path / name, name)
        host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)", conn=name)
    write_all()
    for name in names:
        host.sync(name)
    assert runs.read_text().split() == ["run"]

    proxy.heal()
    rule = proxy.rule("token", token="second", **server)
    write_all()
    proxy.wait(rule)
    given("second")
    for name in names:
        host.sync(name)
        assert_restores(S3Replica(s3, "%s/%s" % (prefix, name)), tmp_path / name, tmp_path)
    assert runs.read_text().split() != ["run"]
