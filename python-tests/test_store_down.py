"""The store is away, for as long as it likes: the application does not notice."""

import time

import pytest

from harness import HostError, S3Replica, assert_restores, full_images

FAULTS = {
    "refused": ("refuse", {}),
    "swallowed": ("blackhole", {}),
    "answers lost": ("blackhole", {"where": "response"}),
    "503": ("status", {"code": 503}),
}


@pytest.fixture
def replica(proxy, s3, tmp_path):
    """A replica behind the proxy; read back without it."""
    return S3Replica(s3, "down/%s" % tmp_path.name, proxy.endpoint)


def commits(host, number):
    host.call("fill", sql="INSERT INTO t VALUES (?)", size=2000, times=number, seed=number)


@pytest.mark.parametrize("fault", FAULTS)
def test_down_from_the_first_moment(fault, new_host, replica, proxy, tmp_path):
    kind, spec = FAULTS[fault]
    rule = proxy.rule(kind, **spec)
    host = new_host("system", replica)
    host.open(tmp_path / "app.db")
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
    proxy.wait(rule)  # the store is asked, and does not answer
    commits(host, 300)
    before = host.facts()["rss_kib"]
    commits(host, 3000)
    # The proxy answers nothing while these commits return: none of them waited for it.
    state = host.status(tmp_path / "app.db")
    # Before the first image nothing needs to wait on the disk: the image will have it all.
    assert state["pending_bytes"] == 0 and state["lag_ms"] > 0, state
    assert host.value("SELECT walferry_lag()") > 0
    assert host.facts()["rss_kib"] - before < 64 << 10, "memory grows while the store is away"
    with pytest.raises(HostError, match="(?i)walferry"):
        host.value("SELECT walferry_wait(300)")
    commits(host, 1)  # and the failed wait broke nothing
    proxy.heal()
    host.sync()
    assert_restores(replica, tmp_path / "app.db", tmp_path)
    state = host.status(tmp_path / "app.db")
    assert (state["pending_bytes"], state["lag_ms"], state["state"]) == (0, 0, "streaming"), state
    assert len(full_images(replica)) == 1


def test_goes_away_in_mid_stream(new_host, replica, proxy, tmp_path):
    host = new_host("system", replica)
    host.open(tmp_path / "app.db")
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
    for kind, spec in FAULTS.values():
        commits(host, 20)
        host.sync()
        rule = proxy.rule(kind, **spec)
        commits(host, 200)
        proxy.wait(rule)
        commits(host, 200)
        assert host.status(tmp_path / "app.db")["pending_bytes"] > 0
        proxy.heal()
    host.sync()
    assert_restores(replica, tmp_path / "app.db", tmp_path)
    assert len(full_images(replica)) == 1


def test_answers_are_lost_now_and_then(new_host, replica, proxy, rng, tmp_path):
    """A PUT whose answer was lost is there; repeating it must not look like another writer."""
    host = new_host("apsw", replica, env={"WALFERRY_SYNC_INTERVAL": "0"})
    host.open(tmp_path / "app.db")
    for kind in ("lost_response", "reset", "status"):
        proxy.rule(kind, rate=0.2, seed=rng.randrange(1000))
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
    for _ in range(15):
        commits(host, 5)
        host.sync()
    proxy.heal()
    commits(host, 1)
    host.sync()
    assert_restores(replica, tmp_path / "app.db", tmp_path)
    assert len(full_images(replica)) == 1
    assert host.status(tmp_path / "app.db")["state"] == "streaming"


def test_close_gives_up_in_time_and_the_next_open_ships(new_host, replica, proxy, tmp_path):
    host = new_host("system", replica, env={"WALFERRY_SHUTDOWN_TIMEOUT": "200ms"})
    host.open(tmp_path / "app.db")
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
    host.sync()
    proxy.rule("blackhole")
    commits(host, 50)
    host.close()
    assert host.finish() == 0
    proxy.heal()
    host = new_host("system", replica)
    host.open(tmp_path / "app.db")
    host.sync()
    assert_restores(replica, tmp_path / "app.db", tmp_path)
    assert len(full_images(replica)) == 1


def test_killed_while_the_store_is_away(new_host, replica, proxy, tmp_path):
    host = new_host("system", replica)
    host.open(tmp_path / "app.db")
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
    host.sync()
    # Applied but never answered: the next process must recognise its predecessor's file.
    rule = proxy.rule("blackhole", where="response", method="PUT")
    commits(host, 50)
    proxy.wait(rule)
    commits(host, 50)
    host.kill()
    proxy.heal()
    host = new_host("system", replica)
    host.open(tmp_path / "app.db")
    commits(host, 5)
    host.sync()
    assert_restores(replica, tmp_path / "app.db", tmp_path)
    assert len(full_images(replica)) == 1


def test_idle_means_no_requests(new_host, replica, proxy, tmp_path):
    host = new_host("system", replica)
    host.open(tmp_path / "app.db")
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
    commits(host, 20)
    host.sync()
    asked, counted = len(proxy.log()), host.status(tmp_path / "app.db")["requests"]
    for _ in range(50):
        host.sql("SELECT count(*), sum(length(x)) FROM t", "BEGIN IMMEDIATE", "COMMIT")
    # What is shown is an absence, so there is nothing to wait for: 150 sync intervals pass.
    time.sleep(3)
    host.sql("SELECT count(*) FROM t", "SELECT walferry_status(), walferry_lag()")
    assert host.status(tmp_path / "app.db")["requests"] == counted
    assert len(proxy.log()) == asked, proxy.log()[asked:]
