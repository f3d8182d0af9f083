"""The configuration file, as a user has it: in the extension, and in every command of the program."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from harness import (FAILED, HOSTS, LITESTREAM, PROGRAM, USAGE, HostError, NO_REPLICA, UNREACHABLE, S3Replica, check_integrity, clean_environment,
                     live_image, rows, sha256, walferry)

TABLE = "CREATE TABLE t (id INTEGER PRIMARY KEY, x)"
# Whatever YAML, a shell or an URL could make of it. A signature with it is wrong, which is the point.
ODD = "planted: # { } [ ] \" ' \n \\ % $HOME ${X} | > & * ! -secret"


@pytest.fixture
def write(tmp_path):
    def write(text, name="walferry.yml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path
    return write


@pytest.fixture
def s3_file(s3, tmp_path, write):
    """The file of the blog posts, with the server's endpoint added; and its replica."""
    replica = S3Replica(s3, "config/%s" % tmp_path.name)
    database = tmp_path / "app.db"
    path = write("""
dbs:
  - path: %s
    replicas:
      - type: s3
        bucket: %s
        path: %s
        region: %s
        endpoint: %s
        access-key-id: ${AWS_ACCESS_KEY_ID}
        secret-access-key: ${AWS_SECRET_ACCESS_KEY}
        retention: 720h
""" % (database, replica.bucket, replica.prefix, s3["AWS_REGION"], s3["S3_ENDPOINT"]))
    env = {name: replica.env[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
                                                "AWS_EC2_METADATA_DISABLED")}
    return path, database, replica, env


def plain_file(database, replica, more=""):
    return "%sdbs:\n  - path: %s\n    replica:\n      path: %s\n" % (
        more, json.dumps(str(database)), json.dumps(str(replica.folder)))


def output_of(*args, env=None):
    done = subprocess.run([str(a) for a in (PROGRAM, *args)], capture_output=True, text=True,
                          env=dict(clean_environment(), **(env or {})), timeout=120)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("kind", HOSTS)
def test_litestreams_file_works_unchanged(kind, new_host, s3_file, tmp_path):
    path, database, replica, env = s3_file
    host = new_host(kind, env=dict(env, WALFERRY_CONFIG=str(path)))
    host.open(database).sql("PRAGMA journal_mode=WAL", TABLE, "INSERT INTO t (x) VALUES (1)")
    host.sync()
    first = live_image(database)
    assert host.status(database)["replica"] == "s3://%s/%s" % (replica.bucket, replica.prefix)
    plan = walferry("restore", "--json", "--dry-run", "--config", path, database, env=env)
    moment = json.loads(plan.stdout)["timestamp"]
    host.sql("INSERT INTO t (x) VALUES (2)")
    host.sync()
    image = live_image(database)
    assert host.finish() == 0
    out = tmp_path / "out.db"
    walferry("restore", "-o", out, "--config", path, database, env=env)
    assert out.read_bytes() == image
    walferry("restore", "-o", tmp_path / "then.db", "--timestamp", moment,
             "--config", path, database, env=env)
    assert (tmp_path / "then.db").read_bytes() == first
    # Without -o it goes where the file says; what is there is not replaced.
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / ("app.db" + suffix)).unlink(missing_ok=True)
    walferry("restore", "--config", path, database, env=env)
    assert database.read_bytes() == image


def test_every_command_takes_the_file_and_the_database(new_host, s3_file, tmp_path):
    path, database, replica, env = s3_file
    host = new_host(env=dict(env, WALFERRY_CONFIG=str(path)))
    host.open(database).sql("PRAGMA journal_mode=WAL", TABLE)
    host.sync()
    assert host.finish() == 0
    for command in (["ltx"], ["verify"], ["compact"], ["retain", "--dry-run"], ["sync"],
                    ["restore", "--dry-run"], ["restore", "--list"]):
        walferry(*command, "--config", path, database, env=env)
        walferry(*command, database, env=dict(env, LITESTREAM_CONFIG=str(path)))
    # What a URL has not, the file has: of the same replica.
    walferry("ltx", "--config", path, replica.url, env=env)
    assert walferry("promote", "--dry-run", "--force", "--config", path, database, env=env)
    walferry("reset", "--dry-run", "--config", path, database, env=env)
    said = walferry("ltx", "--config", path, tmp_path / "other.db", env=env, code=USAGE).stderr
    assert "lists no database" in said and str(database) in said


def test_what_applies_and_where_it_comes_from(s3_file):
    path, database, _replica, env = s3_file
    env = dict(env, WALFERRY_SYNC_INTERVAL="3s")
    found = json.loads(walferry("databases", "--json", "--config", path, env=env).stdout)
    (one,) = found["databases"]
    assert one["path"] == str(database)
    settings = one["replicas"][0]["settings"]
    assert settings["retention"] == {"value": "720h", "from": "%s:12 dbs[0].replicas[0].retention" % path}
    assert settings["sync-interval"] == {"value": "3s", "from": "WALFERRY_SYNC_INTERVAL"}
    assert settings["levels"]["from"] == "default"
    assert one["replicas"][0]["access"]["credentials"]["value"] == "given"
    said = walferry("databases", "--config", path, env=env).stdout
    assert "720h" in said and "line 12" in said and env["AWS_SECRET_ACCESS_KEY"] not in said


def test_check_tries_the_store(s3_file, s3, tmp_path):
    path, database, replica, env = s3_file
    import sqlite3
    db = sqlite3.connect(database)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute(TABLE)
    db.close()
    found = json.loads(walferry("check", "--json", "--config", path, env=env).stdout)
    assert found["failed"] == 0
    assert [one["check"] for one in found["checks"]] == [
        "configuration", "database", "journal mode", "state folder", "credentials and list", "write",
        "conditional create", "read", "delete"]
    assert replica.objects() == [], "nothing is left behind"
    assert not list(tmp_path.glob("*walferry-check*"))
    # Wrong credentials, no such bucket, no such database, a folder that nobody may write to.
    wrong = dict(env, AWS_SECRET_ACCESS_KEY="wrong-secret-that-is-planted")
    said = walferry("check", "--config", path, env=wrong, code=FAILED)
    assert "FAILED" in said.stdout and "credentials and list" in said.stdout
    assert "planted" not in said.stdout + said.stderr
    text = path.read_text().replace("bucket: " + replica.bucket, "bucket: no-such-bucket")
    path.write_text(text)
    assert "FAILED" in walferry("check", "--config", path, env=env, code=FAILED).stdout
    database.unlink()
    said = walferry("check", "--config", path, database, env=env, code=FAILED).stdout
    assert "database: it is not there yet" in said


def test_check_of_a_folder_leaves_nothing(replica, tmp_path, write):
    database = tmp_path / "app.db"
    database.touch()
    path = write(plain_file(database, replica))
    walferry("check", "--config", path)
    assert not replica.folder.exists()
    replica.folder.mkdir(parents=True)
    (replica.folder / "mine").touch()
    walferry("check", "--config", path)
    assert [p.name for p in replica.folder.iterdir()] == ["mine"]
    # Neither walferry nor Litestream takes what is left of a broken-off check for a file.
    left = replica.folder / "walferry-check-1" / "ltx" / "0"
    left.mkdir(parents=True)
    (left / "0000000000000001-0000000000000001.ltx").write_bytes(b"x")
    walferry("ltx", "file://%s" % replica.folder, code=NO_REPLICA)


@pytest.mark.parametrize("name", ["app.db", "mit leer zeichen/räume ä.db"])
@pytest.mark.parametrize("spelling", ["absolute", "relative", "link"])
def test_databases_are_matched_by_canonical_path(name, spelling, new_host, replica, tmp_path, write):
    database = tmp_path / "data" / name
    database.parent.mkdir(parents=True)
    listed = {"absolute": database, "relative": os.path.relpath(database),
              "link": tmp_path / "link.db"}[spelling]
    if spelling == "link":
        os.symlink(database, listed)
    path = write(plain_file(listed, replica))
    host = new_host(env={"WALFERRY_CONFIG": str(path)})
    opened = tmp_path / "other link"
    os.symlink(database.parent, opened)
    host.open(opened / database.name).sql("PRAGMA journal_mode=WAL", TABLE, "INSERT INTO t (x) VALUES (7)")
    host.sync()
    # What is not listed passes through.
    host.open(tmp_path / "plain.db", "second")
    host.sql("PRAGMA journal_mode=WAL", TABLE, conn="second")
    assert not (tmp_path / "plain.db-walferry").exists()
    assert [one["database"] for one in host.status()] == [str(database)]
    image = live_image(database)
    host.finish()
    walferry("restore", "-o", tmp_path / "out.db", "--config", path, listed)
    assert (tmp_path / "out.db").read_bytes() == image


def test_folders(new_host, replica, tmp_path, write):
    data = tmp_path / "data"
    (data / "deep").mkdir(parents=True)
    path = write("dbs:\n- dir: %s\n  pattern: '*.db'\n  recursive: true\n  replica:\n    path: %s\n"
                 % (data, replica.folder))
    host = new_host(env={"WALFERRY_CONFIG": str(path)})
    for number, name in enumerate(["a.db", "deep/b.db", "deep/c.sqlite"]):
        host.open(data / name, "c%d" % number)
        host.sql("PRAGMA journal_mode=WAL", TABLE, conn="c%d" % number)
    host.sync("c0")
    host.sync("c1")
    assert sorted(one["database"] for one in host.status(conn="c0")) == [str(data / "a.db"), str(data / "deep/b.db")]
    assert sorted(p.name for p in replica.folder.iterdir()) == ["a.db", "deep"]
    walferry("restore", "-o", tmp_path / "out.db", "--config", path, data / "deep/b.db")
    listed = json.loads(walferry("databases", "--json", "--config", path).stdout)
    assert [one["path"] for one in listed["databases"]] == [str(data / "a.db"), str(data / "deep/b.db")]


MISTAKES = {
    "misspelt": ("dbs:\n  - path: /a\n    replica:\n      path: /r\n      retenton: 5h\n",
                 ":5: dbs[0].replica.retenton: this key is not known; the nearest is retention"),
    "tab": ("dbs:\n\t- path: /a\n", ":2: line 2 begins with a tab"),
    "unset": ("dbs:\n  - path: $NOT_SET_ANYWHERE\n    replica: {path: /r}\n",
              ":2: dbs[0].path: the variable NOT_SET_ANYWHERE is not set"),
    "missing": (None, "the file cannot be read"),
    "empty": ("", "the file is empty"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_file_with_a_mistake_is_never_silence(mistake, new_host, replica, tmp_path, write):
    text, expected = MISTAKES[mistake]
    path = tmp_path / "walferry.yml"
    if text is not None:
        write(text)
    host = new_host(env={"WALFERRY_CONFIG": str(path), "WALFERRY_URI": "all"})
    host.open(tmp_path / "app.db").sql(TABLE)
    (status,) = host.status()
    assert status["state"] == "error" and expected in status["last_error"], status
    with pytest.raises(HostError, match="configuration cannot be used"):
        host.sync()
    assert expected in (tmp_path / "walferry.log").read_text()
    # What the URI names is replicated all the same, and keeps all states until the file is right.
    host.open(tmp_path / "named.db", "named", vfs="walferry", replica=replica.url)
    host.sql("PRAGMA journal_mode=WAL", TABLE, conn="named")
    host.sync("named")
    assert "nothing is deleted" in (tmp_path / "walferry.log").read_text()
    for command in (["databases"], ["check"], ["restore", "-o", tmp_path / "out", tmp_path / "app.db"]):
        said = walferry(*command, "--config", path, code=USAGE).stderr
        assert expected in said, said


@pytest.mark.parametrize("how", ["file", "environment", "uri"])
def test_strict(how, new_host, tmp_path, write):
    path = write("%sdbs:\n  - path: %s\n    replica: {path: /r, retenton: 1h}\n"
                 % ("strict: true\n" if how == "file" else "", tmp_path / "app.db"))
    env = {"WALFERRY_CONFIG": str(path)}
    host = new_host(env=dict(env, **({"WALFERRY_STRICT": "1"} if how == "environment" else {})))
    uri = {"vfs": "walferry", "strict": "1"} if how == "uri" else {}
    with pytest.raises(HostError, match="(?i)unable to open|cantopen"):
        host.open(tmp_path / "app.db", **uri)
    assert "nearest is retention" in (tmp_path / "walferry.log").read_text()
    assert not (tmp_path / "app.db").exists()


def test_strict_refuses_settings_that_cannot_work(new_host, tmp_path):
    host = new_host(env={"WALFERRY_STRICT": "1"})
    with pytest.raises(HostError, match="(?i)unable to open|cantopen"):
        host.open(tmp_path / "app.db", vfs="walferry", replica="s3://bucket-alone")
    host.open(tmp_path / "plain.db", "plain")  # which nobody asks to replicate
    host.sql(TABLE, conn="plain")


@pytest.mark.parametrize("where", ["environment", "uri"])
def test_a_broken_file_that_is_strict_is_overruled(where, new_host, replica, tmp_path, write):
    path = write("strict: true\ndbs:\n  - path: /a\n    replica: {path: /r, retenton: 1h}\n")
    env = {"WALFERRY_CONFIG": str(path), "WALFERRY_URI": "all"}
    lenient = {"strict": "0"} if where == "uri" else {}
    host = new_host(env=dict(env, **({} if lenient else {"WALFERRY_STRICT": "0"})))
    host.open(tmp_path / "app.db", vfs="walferry", replica=replica.url, **lenient)
    host.sql("PRAGMA journal_mode=WAL", TABLE)
    host.sync()
    assert "nothing is deleted" in (tmp_path / "walferry.log").read_text()
    # One that is said not to be replicated has nothing to do with the file.
    host = new_host(env=dict(env, **({} if lenient else {"WALFERRY_REPLICA": ""})))
    host.open(tmp_path / "plain.db", vfs="walferry", **({"replica": ""} if lenient else {}))
    host.sql(TABLE)
    assert host.status() == []


def test_what_means_nothing_is_told(new_host, replica, tmp_path):
    env = {"WALFERRY_RETENTION": "forever", "WALFERRY_LOG_LEVEL": "verbose", "WALFERRY_LOG_FORMAT": "xml"}
    host = new_host(env=env)
    host.open(tmp_path / "app.db", vfs="walferry", replica=replica.url, retnetion="5h").sql(TABLE)
    (status,) = host.status()
    assert (status["state"], status["lag_ms"]) == ("error", None), status
    assert status["last_error"].endswith("(from WALFERRY_RETENTION)"), status
    log = (tmp_path / "walferry.log").read_text()
    for words in ("WALFERRY_LOG_LEVEL: 'verbose' is no level", "WALFERRY_LOG_FORMAT: 'xml'",
                  "the URI parameter retnetion means nothing; the nearest setting is retention"):
        assert words in log, log
    # Where there is no log to be told in, on standard error.
    nowhere = str(tmp_path / "no such folder" / "log")
    host = new_host(env={"WALFERRY_LOG": nowhere, "WALFERRY_LOG_FILE": "", "WALFERRY_DEFAULT": "off",
                         "WALFERRY_REPLICA": replica.url})
    host.open(tmp_path / "other.db").sql(TABLE)
    assert host.status() == [], "it is not the default VFS"
    host.finish()
    assert "the log cannot be written to " + nowhere in Path(host.log).read_text()


def test_a_store_that_fails_keeps_the_program_from_starting(tmp_path, write):
    """It may have the data: to begin without it would be to begin anew."""
    database = tmp_path / "app.db"
    path = write("""
dbs:
  - path: %s
    restore-if-db-not-exists: true
    replicas:
      - url: s3://bucket/app?endpoint=http://127.0.0.1:9
        access-key-id: id
        secret-access-key: key
      - path: %s
""" % (database, tmp_path / "empty"))
    program = "touch %s" % (tmp_path / "ran")
    said = walferry("replicate", "--config", path, "--exec", program, env={"AWS_REGION": "x"}, code=UNREACHABLE)
    assert "passed over replica" in said.stderr, said.stderr
    assert not database.exists() and not (tmp_path / "ran").exists()


def test_a_replica_in_a_folder_is_restored_at_the_start_by_a_plain_path(tmp_path):
    """A path that is none yet is no database that nobody lists."""
    done = walferry("replicate", tmp_path / "app.db", tmp_path / "replica", "--restore-if-db-not-exists",
                    "--exec", "true")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", HOSTS)
def test_a_new_database_gets_wal_mode_and_its_choices(kind, new_host, replica, tmp_path, write):
    path = write(plain_file(tmp_path / "app.db", replica))
    host = new_host(kind, env={"WALFERRY_CONFIG": str(path)})
    host.open(tmp_path / "app.db")
    host.sql("PRAGMA page_size=8192", "PRAGMA auto_vacuum=FULL", TABLE, "INSERT INTO t (x) VALUES (1)")
    assert host.value("PRAGMA page_size") == 8192
    assert host.value("PRAGMA auto_vacuum") == 1
    assert host.value("PRAGMA journal_mode") == "wal"
    host.sync()
    image = live_image(tmp_path / "app.db")
    host.finish()
    walferry("restore", "-o", tmp_path / "out.db", "--config", path, tmp_path / "app.db")
    assert (tmp_path / "out.db").read_bytes() == image


@pytest.mark.parametrize("kind", HOSTS)
def test_a_second_connection_and_what_is_chosen_later(kind, new_host, replica, tmp_path):
    host = new_host(kind, replica)
    host.open(tmp_path / "app.db").open(tmp_path / "app.db", "reader")
    host.sql("BEGIN", TABLE, conn="main")
    host.sql("COMMIT", "SELECT * FROM t")
    assert host.value("PRAGMA journal_mode") == "wal"
    host.sql("INSERT INTO t (x) VALUES (1)", conn="reader")
    host.sync()
    host.sync("reader")
    # Once; what the application decides later stays.
    host.close("reader")
    assert host.value("PRAGMA journal_mode=DELETE") == "delete"
    host.sql("INSERT INTO t (x) VALUES (2)")
    assert host.value("PRAGMA journal_mode") == "delete"


def test_journal_mode_keep(new_host, replica, tmp_path, write):
    path = write(plain_file(tmp_path / "app.db", replica, "journal-mode: keep\n"))
    host = new_host(env={"WALFERRY_CONFIG": str(path)})
    host.open(tmp_path / "app.db").sql(TABLE, "INSERT INTO t (x) VALUES (1)")
    assert host.value("PRAGMA journal_mode") == "delete"
    host.open(tmp_path / "app.db", "again")
    assert host.value("PRAGMA journal_mode", "again") == "delete"
    assert host.status(tmp_path / "app.db")["state"] == "not-wal"
    said = walferry("check", "--config", path, code=FAILED).stdout
    assert "journal mode: not WAL" in said


def test_journal_mode_keep_beside_a_writer(new_host, replica, tmp_path, write):
    """Somebody has the database to himself for a moment: it can be opened all the same."""
    path = write(plain_file(tmp_path / "app.db", replica, "journal-mode: keep\n"))
    plain = new_host(load=False)
    plain.open(tmp_path / "app.db").sql("PRAGMA journal_mode=DELETE", TABLE, "BEGIN EXCLUSIVE")
    host = new_host("apsw", env={"WALFERRY_CONFIG": str(path)})
    host.call("open", name=str(tmp_path / "app.db"), busy=0)
    plain.sql("COMMIT")
    assert host.value("SELECT count(*) FROM t") == 0


def test_opening_with_journal_mode_keep_leaves_a_hot_journal_alone(
        new_host, replica, tmp_path, write):
    """SQLite plays a hot journal back with a connection's first read, and not before."""
    path, database = write(plain_file(tmp_path / "app.db", replica, "journal-mode: keep\n")), tmp_path / "app.db"
    plain = new_host(load=False)
    plain.open(database).sql("PRAGMA journal_mode=DELETE", TABLE, "PRAGMA cache_size=1", "BEGIN")
    for _ in range(20):
        plain.sql("INSERT INTO t (x) VALUES (randomblob(4000))")
    plain.kill()
    journal = tmp_path / "app.db-journal"
    assert journal.stat().st_size > 0
    host = new_host(env={"WALFERRY_CONFIG": str(path)})
    host.call("open", name=str(database), busy=0)  # without a statement
    assert journal.exists()
    assert host.value("SELECT count(*) FROM t") == 0
    assert not journal.exists()
    assert host.status(database)["state"] == "not-wal"


def test_read_only_and_immutable_databases_are_not_touched(new_host, replica, tmp_path):
    import sqlite3
    database = tmp_path / "app.db"
    db = sqlite3.connect(database)
    db.execute(TABLE)
    db.commit()
    db.close()
    before = sha256(database)
    host = new_host(replica=replica)
    host.open(database, "ro", vfs="walferry", mode="ro")
    host.open(database, "immutable", vfs="walferry", immutable="1")
    for conn in ("ro", "immutable"):
        assert host.value("SELECT count(*) FROM t", conn) == 0
        host.close(conn)
    assert sha256(database) == before


def test_several_replicas(new_host, new_replica, tmp_path, write):
    first, second = new_replica(), new_replica()
    database = tmp_path / "app.db"
    path = write("dbs:\n- path: %s\n  replicas:\n  - {name: near, path: %s}\n  - {name: far, path: %s}\n"
                 % (database, first.folder, second.folder))
    host = new_host(env={"WALFERRY_CONFIG": str(path), "WALFERRY_REPLICA": second.url})
    host.open(database).sql("PRAGMA journal_mode=WAL", TABLE)
    host.sync()
    host.finish()
    # The first one has nothing: the next is asked, and that is said.
    done = walferry("restore", "-o", tmp_path / "out.db", "--config", path, database)
    assert "passed over replica near" in done.stderr and "of replica far" in done.stderr
    walferry("restore", "-o", tmp_path / "far.db", "--replica", "far", "--config", path, database)
    walferry("restore", "-o", tmp_path / "url.db", "--replica", second.url, "--config", path, database)
    assert "has no replica nowhere; there are near, far" in walferry(
        "ltx", "--replica", "nowhere", "--config", path, database, code=USAGE).stderr
    assert "several replicas (near, far)" in walferry(
        "ltx", "--config", path, database, code=USAGE).stderr
    walferry("ltx", "--replica", "far", "--config", path, database)


def test_the_log_of_the_file(new_host, replica, tmp_path, write):
    log = tmp_path / "own.log"
    path = write(plain_file(tmp_path / "app.db", replica,
                            "logging: {level: debug, type: json, file: %s}\naddr: ':9090'\n" % log))
    host = new_host(env={"WALFERRY_CONFIG": str(path), "WALFERRY_LOG": "", "WALFERRY_LOG_FILE": ""})
    host.open(tmp_path / "app.db").sql("PRAGMA journal_mode=WAL", TABLE)
    host.sync()
    host.finish()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert any("configured by" in line["msg"] for line in lines)
    assert any("addr: without effect" in line["msg"] for line in lines)
    assert any(line["level"] == "DEBUG" for line in lines)


def test_no_secret_in_any_output(new_host, s3_file, s3, tmp_path, write):
    """Secrets in every key that has one, in a file that works and in files that do not."""
    path, database, replica, env = s3_file
    secrets = {"AWS_SECRET_ACCESS_KEY": ODD, "AWS_ACCESS_KEY_ID": "planted-id"}
    customer = "cGxhbnRlZC1rZXktcGxhbnRlZC1rZXktMzJieXRlcyE="
    said = []
    good = dict(env)
    host = new_host(env=dict(good, WALFERRY_CONFIG=str(path), WALFERRY_LOG="debug"))
    host.open(database).sql("PRAGMA journal_mode=WAL", TABLE, "INSERT INTO t (x) VALUES (1)")
    host.sync()
    said.append(json.dumps(host.status()))
    host.finish()
    commands = [["databases"], ["databases", "--json"], ["check"], ["check", "--json"], ["ltx", database],
                ["verify", database], ["compact", database], ["retain", "--dry-run", database],
                ["restore", "--list", database], ["restore", "--json", "-o", tmp_path / "o1", database],
                ["sync", "--timeout", "2s", database], ["promote", "--dry-run", database], ["reset", "--dry-run", database]]
    for command in commands:
        said.append(output_of(*command, "--config", path, env=good)[1])
    wrong = dict(good, **secrets)
    host = new_host(env=dict(wrong, WALFERRY_CONFIG=str(path), WALFERRY_LOG="debug"))
    host.open(database).sql("INSERT INTO t (x) VALUES (2)")
    with pytest.raises(HostError):
        host.call("exec", sql=["SELECT walferry_sync(3000)"], **{"with": []})
    said.append(json.dumps(host.status()))
    host.finish()
    for command in commands:
        said.append(output_of(*command, "--config", path, env=wrong)[1])
    text = path.read_text() + "        sse-customer-key: %s\n" % customer
    for broken in (text, text + "        regoin: x\n", text.replace("720h", "${AWS_SECRET_ACCESS_KEY}"),
                   text.replace("region:", "endpoint: http://u:planted-password@h\n        region:"),
                   "dbs:\n  - path: /a\n    replica:\n      url: s3://b/p?secret-access-key=planted-inline\n",
                   "dbs:\n  - path: /a\n    replica:\n      type: s3\n      secret-access-key: [planted-list]\n",
                   "dbs:\n  - path: /a\n    replica:\n      secret-access-keys: planted-misspelt\n",
                   "dbs:\n  - path: /a\n    replica:\n      secret-access-key: planted: colon\n",
                   "dbs:\n  - path: /a\n    replica:\n      type: sftp\n      password: planted-sftp\n"):
        file = write(broken, "broken.yml")
        for command in commands:
            said.append(output_of(*command, "--config", file, env=wrong)[1])
        host = new_host(env=dict(wrong, WALFERRY_CONFIG=str(file), WALFERRY_LOG="debug"))
        host.open(tmp_path / "b.db").sql("SELECT 1")
        said.append(json.dumps(host.status()))
        host.finish()
    said.append((tmp_path / "walferry.log").read_text(errors="replace"))
    for file in list((tmp_path / "app.db-walferry").rglob("*")) + list(tmp_path.glob("*.err")):
        if file.is_file():
            said.append(file.read_bytes().decode("latin-1"))
    whole = "\n".join(said)
    for secret in ("planted", customer, env["AWS_SECRET_ACCESS_KEY"], env["AWS_ACCESS_KEY_ID"]):
        at = whole.find(secret)
        assert at < 0, whole[max(0, at - 400):at + 100]


def test_unreadable_file(new_host, tmp_path):
    path = tmp_path / "a folder.yml"
    path.mkdir()
    host = new_host(env={"WALFERRY_CONFIG": str(path)})
    host.open(tmp_path / "app.db").sql(TABLE)
    assert "cannot be read" in host.status(tmp_path / "app.db")["last_error"]


@pytest.mark.skipif(not LITESTREAM.exists(), reason="needs Litestream")
def test_litestream_restores_by_the_same_file(new_host, s3_file, tmp_path):
    path, database, _replica, env = s3_file
    host = new_host(env=dict(env, WALFERRY_CONFIG=str(path)))
    host.open(database).sql("PRAGMA journal_mode=WAL", TABLE, "INSERT INTO t (x) VALUES (1)")
    host.sync()
    host.finish()
    output = tmp_path / "litestream.db"
    done = subprocess.run([str(LITESTREAM), "restore", "-config", str(path), "-o", str(output), str(database)],
                          env=dict(clean_environment(), **env), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    check_integrity(output)
    assert rows(output, "SELECT x FROM t") == [(1,)]


# ---- folders and names -----------------------------------------------------------------------


def database_of(path, text):
    import sqlite3
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE t (x)")
    db.execute("INSERT INTO t VALUES (?)", (text,))
    db.commit()
    db.close()


# Characters that mean something in a URL, and two names that would decode to one.
NAMES = ["my%20app.db", "a?b.db", "a#b.db", "x%41.db", "xA.db", "a b.db", "ä.db"]


@pytest.mark.parametrize("scheme", ["file", "s3"])
def test_a_folder_with_odd_names(scheme, new_replica, tmp_path, write):
    """Each has a replica of its own, at the place where the same folder in a file has it."""
    replica, folder = new_replica(scheme), tmp_path / "data"
    folder.mkdir()
    for name in NAMES:
        database_of(folder / name, name)
    os.symlink("xA.db", folder / "link.db")  # it has a place of its own already
    (folder / "empty.db").touch()
    walferry("replicate", "--once", folder, replica.url, "--pattern", "*.db", env=replica.reading)
    if scheme == "file":
        assert sorted(path.name for path in replica.folder.iterdir()) == sorted(NAMES)
    path = write("dbs:\n- dir: %s\n  pattern: '*.db'\n  replica:\n    url: %s\n" % (folder, replica.url))
    for name in NAMES:
        walferry("restore", "-o", tmp_path / "out.db", "--config", path, folder / name,
                 env=replica.reading)
        assert rows(tmp_path / "out.db", "SELECT x FROM t") == [(name,)]
        for left in tmp_path.glob("out.db*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()


@pytest.mark.parametrize("name", NAMES)
def test_the_name_in_a_url(name, new_host, tmp_path):
    host = new_host(env={"WALFERRY_REPLICA": "file://%s/replicas/{name}" % tmp_path})
    host.open(tmp_path / name).sql(TABLE)
    host.sync()
    assert [path.name for path in (tmp_path / "replicas").iterdir()] == [name]


def test_a_replica_in_walferrys_own_folder(new_host, tmp_path, write):
    host = new_host(env={"WALFERRY_REPLICA": "%s/app.db-walferry/replica" % tmp_path})
    host.open(tmp_path / "app.db")
    assert "walferry's own folder" in host.status()[0]["last_error"]
    path = write("dbs:\n- path: %s\n  replica:\n    path: %s\n" % (
        tmp_path / "app.db", tmp_path / "app.db-walferry" / "replica"))
    said = walferry("check", "--config", path, code=FAILED).stdout
    assert "is no place for a replica" in said


def test_a_replica_in_the_folder_of_another_database(new_host, tmp_path):
    new_host(env={"WALFERRY_REPLICA": "%s/replica" % tmp_path}).open(tmp_path / "other.db").sql(TABLE)
    inside = tmp_path / "other.db-walferry" / "replica"
    host = new_host(env={"WALFERRY_REPLICA": str(inside)})
    host.open(tmp_path / "app.db")
    assert "%s is no place for a replica" % inside.parent in host.status()[0]["last_error"]
    assert not inside.exists()


def test_a_folder_that_is_not_there(tmp_path, write):
    path = write("dbs:\n- dir: %s\n  pattern: '*.db'\n  replica:\n    path: /r\n" % (tmp_path / "none"))
    said = walferry("check", "--config", path, code=FAILED).stdout
    assert "none: folder: No such file or directory" in said


def test_a_log_file_without_a_slash(tmp_path):
    database_of(tmp_path / "app.db", "x")
    subprocess.run([str(PROGRAM), "replicate", "--once", "app.db", "file:replica", "--log-file", "log"],
                   cwd=tmp_path, check=True, env=clean_environment())
    said = (tmp_path / "log").read_text()
    assert "opened" in said and "WARN" not in said
