"""What the program says of a database that other processes have open."""

import json
import signal
import subprocess

from harness import OK, PROGRAM, REFUSED, assert_restores, clean_environment, stop, walferry
from test_processes import until


def status(path):
    return json.loads(walferry("status", "-json", path).stdout)[0]


def test_status_of_a_database_at_work(new_host, new_replica, tmp_path, proxy):
    replica, path = new_replica("s3"), tmp_path / "app.db"
    replica.env = dict(replica.reading, AWS_ENDPOINT_URL=proxy.endpoint)
    host = new_host("apsw", replica)
    host.open(path).sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
    txid = host.sync()
    # The shipper speaks once a second.
    said = status(path)
    while said["acked"] != txid or said["state"] != "streaming":
        said = status(path)
    assert said["shipper"] == host.process.pid and said["replica"] == replica.url
    assert said["spool_files"] == 0 and said["lag_ms"] == 0 and said["wal_bytes"] > 0

    # The store goes away: what waits is seen, and why.
    proxy.rule("reset")
    host.sql("INSERT INTO t VALUES (1)")
    while said["spool_files"] == 0 or not said["last_error"] or not said["lag_ms"]:
        said = status(path)
    assert said["state"] == "waiting" and said["pending_bytes"] > 0
    text = walferry("status", path).stdout
    assert "waiting to %s, by process %d" % (replica.url, host.process.pid) in text, text

    # Nobody ships it any more.
    host.kill()
    said = status(path)
    assert (said["shipper"], said["state"], said["lag_ms"]) == (None, "closed", None)
    assert said["spool_files"] > 0
    # What was not shipped is not thrown away by one word.
    refused = walferry("restore", "-force", "-o", path, replica.url, env=replica.reading, code=REFUSED)
    assert "--force twice" in refused.stderr
    walferry("sync", "-wait", "-timeout", "60", path, "--replica", replica.url, env=replica.reading)
    said = status(path)
    assert said["spool_files"] == 0 and said["acked"] > txid
    walferry("restore", "-force", "-o", path, replica.url, env=replica.reading)


def test_status_of_a_shipper_that_is_stopped_says_silent(new_host, replica, tmp_path):
    path = tmp_path / "app.db"
    host = new_host("apsw", replica)
    host.open(path).sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
    txid = host.sync()
    until(lambda: (status(path)["acked"], status(path)["lag_ms"]) == (txid, 0), "all is shipped")
    stop(host.process)
    until(lambda: status(path)["lag_ms"] is None, "the shipper counts as silent")
    said, text = status(path), walferry("status", path).stdout
    assert said["lag_ms"] is None and said["shipper"] == host.process.pid, said
    assert "was not heard of for" in said["last_error"], said
    assert "was not heard of for" in text and "lag" not in text and "when last heard of" in text, text
    host.process.send_signal(signal.SIGCONT)
    until(lambda: status(path)["lag_ms"] == 0 and not status(path)["last_error"], "the shipper speaks")


def test_a_database_in_use_is_not_replaced(new_host, replica, tmp_path):
    path = tmp_path / "app.db"
    host = new_host("apsw", replica)
    host.open(path).sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
    host.sync()
    for force in (["-force"], ["-force", "-force"]):
        done = subprocess.run([str(PROGRAM), "restore", *force, "-o", str(path), replica.url], text=True,
                              capture_output=True, env=clean_environment())
        assert done.returncode == REFUSED and str(host.process.pid) in done.stderr, done.stderr
    host.sql("INSERT INTO t VALUES (1)")
    host.sync()
    assert host.finish() == OK
    # All of it was shipped, which the state beside it proves: one word is enough.
    walferry("restore", "-force", "-o", path, replica.url)


def test_a_wal_that_is_begun_anew_is_no_lag(new_host, replica, tmp_path):
    """It looks like a commit, and the interval at whose end that would be found out is an hour."""
    path = tmp_path / "app.db"
    host = new_host("apsw", replica, env={"WALFERRY_SYNC_INTERVAL": "1h"})
    host.open(path).sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)")
    host.sync()
    host.sql("PRAGMA wal_checkpoint(TRUNCATE)")
    until(lambda: host.status(path)["lag_ms"] == 0, "no lag")
    assert host.status(path)["state"] == "streaming"
    host.sql("INSERT INTO t VALUES (2)")
    until(lambda: host.status(path)["lag_ms"], "a lag")
    host.sync()
    assert_restores(replica, path, tmp_path)


def test_refusal_ends_when_the_database_is_opened_as_it_should_be(new_host, replica, tmp_path):
    host, database = new_host("system"), tmp_path / "app.db"
    host.open(":memory:", "other")
    host.open(database, replica="s3://")
    host.sql("CREATE TABLE t (x)")
    assert host.status(database)["state"] == "error"
    host.close()
    host.open(database, replica=replica.url)
    host.sync()
    # The only entry of this database.
    assert host.status(database)["state"] == "streaming"
    host.close()
    assert [one["state"] for one in host.status(conn="other")] in ([], ["streaming"])
