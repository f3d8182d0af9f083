"""What goes wrong has its exit code, and a message that names what it is about."""

import json
import shutil
import time

import pytest

from harness import (CORRUPT, NO_REPLICA, REFUSED, UNREACHABLE, USAGE, DirectoryReplica, HostError,
                     S3Replica, assert_restores, restore, rows, s3_environment, txids, walferry)
from test_processes import until


@pytest.fixture
def written(new_host, replica, tmp_path):
    """A replica of five files or more; its process is gone."""
    host = new_host(replica=replica, env={"WALFERRY_SYNC_INTERVAL": "0"})
    host.open(tmp_path / "app.db")
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    for n in range(5):
        host.sql("INSERT INTO t (x) VALUES (randomblob(5000))")
        host.sync()
    host.close()
    host.finish()
    return replica


def fails(code, *arguments, env=None, names=()):
    """The program ends with this code and says why; nothing of ours is left behind."""
    done = walferry(*arguments, env=env, code=code)
    assert done.stderr.strip() and not done.stdout.strip(), done.stdout
    assert "panicked" not in done.stderr
    for name in names:
        assert name in done.stderr, "%r not in: %s" % (name, done.stderr)
    return done.stderr


def test_usage(tmp_path):
    fails(USAGE, "restore", "file:///nowhere")  # no -o
    fails(USAGE, "restore", "-o", tmp_path / "out.db")  # no URL
    fails(USAGE, "restore", "-o", tmp_path / "out.db", "--txid", "zebra", "file:///nowhere")
    fails(USAGE, "restore", "-o", tmp_path / "out.db", "gopher://bucket/app", names=["gopher"])
    fails(USAGE, "no-such-command")


def test_no_replica(tmp_path, s3):
    (tmp_path / "empty").mkdir()
    for url in ("file://%s/empty" % tmp_path, "file://%s/missing" % tmp_path):
        fails(NO_REPLICA, "restore", "-o", tmp_path / "out.db", url, names=[url[7:]])
    url = "s3://%s/no/such/prefix" % s3["S3_BUCKET"]
    fails(NO_REPLICA, "restore", "-o", tmp_path / "out.db", url, env=s3_environment(s3),
          names=["no/such/prefix"])
    assert not (tmp_path / "out.db").exists()


@pytest.mark.parametrize("name, what", [
    ("AWS_ACCESS_KEY_ID", "access key id"), ("AWS_SESSION_TOKEN", "session token"), ("AWS_REGION", "region")])
def test_variable_with_a_line_break(name, what, new_host, s3, tmp_path):
    """As a file has at its end. The SDK panics where a header cannot be made of it."""
    env = dict(s3_environment(s3))
    # At the end of a token the SDK takes it away.
    env[name] = env[name] + "\n" if name in env else "to\nken"
    fails(USAGE, "restore", "-o", tmp_path / "out.db", "s3://%s/app" % s3["S3_BUCKET"], env=env,
          names=[what, "line break"])
    replica = S3Replica(s3, "line-break/%s" % tmp_path.name)
    replica.env[name] = env[name]
    host = new_host("system", replica)
    host.open(tmp_path / "app.db").sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
    until(lambda: what in (host.status(tmp_path / "app.db")["last_error"] or ""), "the error is told")
    host.sql("INSERT INTO t VALUES (1)")
    assert host.value("SELECT walferry_lag()") > 0
    assert "internal error" not in (tmp_path / "walferry.log").read_text()


@pytest.mark.parametrize("option", ["?endpoint=http://localhost%0A", "?region=eu-west-1%0A", ""])
def test_setting_with_a_line_break(option, s3, tmp_path):
    env = dict(s3_environment(s3), AWS_ENDPOINT_URL=s3["S3_ENDPOINT"] + "\n" * (not option))
    fails(USAGE, "restore", "-o", tmp_path / "out.db", "s3://%s/app%s" % (s3["S3_BUCKET"], option), env=env,
          names=["line break", option[1:].partition("=")[0] or "AWS_ENDPOINT_URL"])


PROFILES = {
    "of a process": "credential_process = printf '{{\"Version\":1,\"AccessKeyId\":\"{key}\\\\n\",\"SecretAccessKey\":\"{secret}\"}}'\n",
    "for another role": "role_arn = arn:aws:iam::123456789012:role/backup\ncredential_source = Environment\n",
}


@pytest.mark.parametrize("kind", ["of a process", "for another role"])
def test_profile_with_a_line_break(kind, s3, tmp_path):
    """For another role the SDK signs a request with the key that it found, before there are credentials."""
    env = dict(s3_environment(s3))
    (tmp_path / "config").write_text("[profile other]\nregion = us-east-1\n" + PROFILES[kind].format(
        key=env["AWS_ACCESS_KEY_ID"], secret=env["AWS_SECRET_ACCESS_KEY"]))
    env.update(AWS_CONFIG_FILE=str(tmp_path / "config"), AWS_ACCESS_KEY_ID=env["AWS_ACCESS_KEY_ID"] + "\n")
    said = fails(USAGE, "restore", "-o", tmp_path / "out.db", "s3://%s/app?profile=other" % s3["S3_BUCKET"], env=env,
                 names=["line break"])
    assert env["AWS_SECRET_ACCESS_KEY"] not in said


def test_key_of_a_process_for_another_role_with_a_line_break(s3, tmp_path):
    """The SDK signs its request for the role with that key, and panics."""
    env = dict(s3_environment(s3))
    (tmp_path / "config").write_text("[profile first]\nregion = us-east-1\n" + PROFILES["of a process"].format(
        key=env["AWS_ACCESS_KEY_ID"], secret=env["AWS_SECRET_ACCESS_KEY"]) + """
[profile other]
region = us-east-1
role_arn = arn:aws:iam::123456789012:role/backup
source_profile = first
""")
    env["AWS_CONFIG_FILE"] = str(tmp_path / "config")
    done = walferry("restore", "-o", tmp_path / "out.db", "s3://%s/app?profile=other" % s3["S3_BUCKET"], env=env,
                    code=UNREACHABLE)
    assert "line break" in done.stderr and env["AWS_SECRET_ACCESS_KEY"] not in done.stderr


@pytest.mark.parametrize("script", ["s3.py", "s3_second.py"])
def test_wrong_secret(script, servers, tmp_path):
    server = servers(script)
    env = dict(s3_environment(server), AWS_SECRET_ACCESS_KEY="not-the-secret-of-this-store")
    said = fails(UNREACHABLE, "restore", "-o", tmp_path / "out.db", "s3://%s/app" % server["S3_BUCKET"],
                 env=env, names=[server["S3_BUCKET"]])
    assert "not-the-secret" not in said


def test_wrong_bucket(s3, tmp_path):
    fails(NO_REPLICA, "restore", "-o", tmp_path / "out.db", "s3://no-such-bucket-here/app",
          env=s3_environment(s3), names=["no-such-bucket-here"])


def test_endpoint_refuses(s3, proxy, tmp_path):
    proxy.rule("refuse")
    fails(UNREACHABLE, "restore", "-o", tmp_path / "out.db", "s3://%s/app" % s3["S3_BUCKET"],
          env=s3_environment(s3, proxy.endpoint), names=[s3["S3_BUCKET"]])


def test_output_exists(written, tmp_path):
    (tmp_path / "out.db").write_text("someone's file")
    fails(REFUSED, "restore", "-o", tmp_path / "out.db", written.url, names=["out.db"])
    assert (tmp_path / "out.db").read_text() == "someone's file"


@pytest.mark.parametrize("which", ["first", "middle", "last"])
def test_a_flipped_bit(which, written, rng, tmp_path):
    keys = written.keys()
    path = written.path(*{"first": keys[0], "middle": keys[len(keys) // 2], "last": keys[-1]}[which])
    good = path.read_bytes()
    for _ in range(12):
        at = rng.randrange(len(good))
        bad = bytearray(good)
        bad[at] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        done = walferry_either(tmp_path, written)
        if done is not None:  # a few bits of a compressed page say nothing; see the LTX format
            assert path.name in done and not (tmp_path / "out.db").exists(), (at, done)
    path.write_bytes(good)
    restore(written, tmp_path / "out.db")


def walferry_either(tmp_path, replica):
    """The message of a refused restore; None where the result is exactly right."""
    reference = tmp_path / "app.db"
    try:
        restore(replica, tmp_path / "out.db")
    except AssertionError:
        return fails(CORRUPT, "restore", "-o", tmp_path / "out.db", replica.url)
    assert (tmp_path / "out.db").read_bytes() == reference.read_bytes()
    (tmp_path / "out.db").unlink()
    return None


@pytest.mark.parametrize("cut", ["empty", "half", "one byte less", "one byte more"])
def test_a_file_of_the_wrong_length(cut, written, tmp_path):
    path = written.path(*written.keys()[-2])
    good = path.read_bytes()
    path.write_bytes({"empty": b"", "half": good[:len(good) // 2], "one byte less": good[:-1],
                      "one byte more": good + b"\0"}[cut])
    fails(CORRUPT, "restore", "-o", tmp_path / "out.db", written.url, names=[path.name])
    assert not (tmp_path / "out.db").exists()


def test_a_missing_file(written, tmp_path):
    keys = [key for key in written.keys() if key[0] == 0]
    gone = keys[len(keys) // 2]
    written.path(*gone).unlink()
    fails(CORRUPT, "restore", "-o", tmp_path / "out.db", written.url, names=["%016x" % gone[1]])
    assert not (tmp_path / "out.db").exists()
    restore(written, tmp_path / "before.db", gone[1] - 1)  # what lies before it is still there


def test_a_txid_that_is_not_there(written, tmp_path):
    beyond = txids(written)[-1] + 1
    fails(NO_REPLICA, "restore", "-o", tmp_path / "out.db", "--txid", "%016x" % beyond, written.url,
          names=["%016x" % beyond])


def test_a_file_of_another_database(written, new_host, tmp_path):
    """TXIDs alone would fit; the chain of database checksums does not."""
    other = DirectoryReplica(tmp_path / "other")
    host = new_host(replica=other, env={"WALFERRY_SYNC_INTERVAL": "0"})
    host.open(tmp_path / "other.db")
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    for n in range(8):
        host.sql("INSERT INTO t (x) VALUES (randomblob(5000))")
        host.sync()
    host.close()
    _, first, last = max(key for key in written.keys() if key[0] == 0)
    shutil.copy(other.path(0, first, last), written.path(0, first, last))
    fails(CORRUPT, "restore", "-o", tmp_path / "out.db", written.url, names=["%016x" % first])


def test_listing(written):
    plain = walferry("ltx", written.url).stdout
    listed = json.loads(walferry("ltx", "--json", written.url).stdout)
    assert written.keys() == sorted((file["level"], int(file["min_txid"], 16),
                                     int(file["max_txid"], 16)) for file in listed["files"])
    assert int(listed["head"], 16) == txids(written)[-1]
    assert listed["restorable"]["states"] == len(txids(written)) and listed["problem"] is None
    for _level, _first, last in written.keys():
        assert "%016x" % last in plain


def test_a_second_process_is_told_its_place(new_host, replica, tmp_path):
    first = new_host("system", replica)
    first.open(tmp_path / "app.db")
    first.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
    first.sync()
    second = new_host("apsw", replica)
    second.open(tmp_path / "app.db")
    second.sql("INSERT INTO t VALUES ('from the second')")
    deadline = time.monotonic() + 60
    while second.status(tmp_path / "app.db")["state"] == "opening":
        assert time.monotonic() < deadline, "it does not find its place"
        time.sleep(0.01)
    assert second.status(tmp_path / "app.db")["state"] == "standby"
    assert first.status(tmp_path / "app.db")["state"] == "streaming"
    first.sql("INSERT INTO t VALUES ('from the first')")
    first.sync()
    assert_restores(replica, tmp_path / "app.db", tmp_path)


@pytest.mark.parametrize("wrong", ["secret", "bucket"])
def test_the_extension_reports_a_store_that_says_no(wrong, new_host, s3, tmp_path):
    replica = S3Replica(s3, "denied")
    if wrong == "secret":
        replica.env["AWS_SECRET_ACCESS_KEY"] = "not-the-secret-of-this-store"
    else:
        replica.url = "s3://no-such-bucket-here/app"
    host = new_host("system", replica)
    host.open(tmp_path / "app.db")
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)")
    with pytest.raises(HostError):
        host.value("SELECT walferry_wait(2000)")
    state = host.status(tmp_path / "app.db")
    assert state["last_error"], state
    assert "not-the-secret" not in json.dumps(state)
    assert host.value("SELECT count(*) FROM t") == 1


def test_two_databases_at_one_replica(new_host, replica, tmp_path):
    """The second database must not write into the history of the first."""
    first = new_host("system", replica)
    first.open(tmp_path / "app.db")
    first.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)", "INSERT INTO t VALUES ('first')")
    first.sync()
    other = new_host("system", replica)
    other.open(tmp_path / "other.db")
    other.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)", "INSERT INTO t VALUES ('other')")
    outcomes = []
    for host in (other, first):
        host.sql("INSERT INTO t VALUES ('more')")
        try:
            host.value("SELECT walferry_wait(3000)")
            outcomes.append("shipped")
        except HostError:
            outcomes.append("fenced")
    # Whoever owns the line now, what restores is one of them, whole, and the other was told.
    assert outcomes.count("shipped") <= 1, outcomes
    owner = "other" if outcomes[0] == "shipped" else "first"
    found = {x for (x,) in rows(restore(replica, tmp_path / "out.db"), "SELECT x FROM t")}
    assert owner in found and len(found - {"more"}) == 1
