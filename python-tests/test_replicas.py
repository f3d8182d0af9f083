"""Several replicas of one database: each has a position and failures of its own."""

import json
import signal
import time

import pytest

from harness import (DirectoryReplica, HostError, S3Replica, assert_restores, full_images, journal,
                     s3_environment, walferry)
from sidecar import generation
from test_processes import opened, until, wal

TABLE = "CREATE TABLE t (x)"


class Setting:
    """Two replicas of a database: a folder, and S3 behind the proxy."""

    def __init__(self, folder, s3, proxy, new_host):
        self.folder, self.database = folder, folder / "app.db"
        self.disk = DirectoryReplica(folder / "replica")
        self.cloud = S3Replica(s3, "several/%s" % folder.name, proxy.endpoint)
        self.env, self.new_host = s3_environment(s3, proxy.endpoint), new_host

    def replicas(self):
        return [self.disk, self.cloud]

    def host(self, *replicas, kind="apsw", **env):
        """A process that replicates the database to these, named in this order."""
        config = self.folder / "walferry.yml"
        urls = "".join("      - url: %s\n" % replica.url for replica in replicas or self.replicas())
        config.write_text("dbs:\n  - path: %s\n    replicas:\n%s" % (self.database, urls))
        return self.new_host(kind, env=dict(self.env, WALFERRY_CONFIG=str(config), **env))

    def open(self, *replicas, **env):
        host = self.host(*replicas, **env).open(self.database)
        host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE IF NOT EXISTS t (x)")
        return host

    def status(self, host):
        """By replica, in the order of the class."""
        every = {one["replica"]: one for one in host.status()}
        return [every.get(replica.url) for replica in self.replicas()]

    def assert_all_restore(self):
        for replica in self.replicas():
            assert_restores(replica, self.database, self.folder)


@pytest.fixture
def setting(tmp_path, s3, proxy, new_host):
    return Setting(tmp_path, s3, proxy, new_host)


def fill(host, times, seed=1):
    host.call("fill", sql="INSERT INTO t VALUES (?)", size=2000, times=times, seed=seed)


def begins_anew(setting, host):
    """Commits until the WAL has begun anew, twice: how long it is each time depends on the pace."""
    deadline = time.monotonic() + 60
    for _ in range(2):
        before = generation(setting.database)
        while generation(setting.database) == before:
            assert time.monotonic() < deadline, "the WAL does not begin anew"
            fill(host, 40, seed=7)


def images(setting):
    return [len(full_images(replica)) for replica in setting.replicas()]


def assert_nothing_was_compared(setting, *hosts):
    """Each new beginning of the WAL waited for every replica."""
    found = [one for host in hosts for one in setting.status(host) if one and one["resyncs"]]
    assert not found, found


def test_each_replica_has_everything(setting):
    host = setting.open()
    fill(host, 50)
    host.sync()
    setting.assert_all_restore()
    disk, cloud = setting.status(host)
    assert disk["state"] == cloud["state"] == "streaming", (disk, cloud)
    assert disk["lag_ms"] == cloud["lag_ms"] == 0
    # The next process goes on with both, in whatever order they are named.
    host.finish()
    for replicas in (setting.replicas()[::-1], setting.replicas()):
        host = setting.open(*replicas)
        fill(host, 20, seed=2)
        host.sync()
        setting.assert_all_restore()
        host.finish()
    assert images(setting) == [1, 1]


def test_one_that_fails_does_not_hinder_the_other(setting, proxy):
    host = setting.open()
    fill(host, 10)
    host.sync()
    rule = proxy.rule("refuse")
    fill(host, 300)
    proxy.wait(rule)
    fill(host, 300, seed=2)
    # That it is all there shows in the replica; what waits for both does not return.
    with pytest.raises(HostError, match="(?i)s3://"):
        host.value("SELECT walferry_sync(2000)")
    until(lambda: setting.status(host)[0]["lag_ms"] == 0, "the folder has everything")
    disk, cloud = setting.status(host)
    assert disk["last_error"] is None and cloud["last_error"], (disk, cloud)
    assert cloud["lag_ms"] > 0 and cloud["pending_bytes"] > 0, cloud
    assert host.value("SELECT walferry_lag()") >= cloud["lag_ms"] > 0
    assert_restores(setting.disk, setting.database, setting.folder)
    # Nobody needs the WAL for the replica that is away: it does not grow.
    begins_anew(setting, host)
    proxy.heal()
    host.sync()
    setting.assert_all_restore()
    assert images(setting) == [1, 1]
    assert_nothing_was_compared(setting, host)


def test_replicas_come_and_go(setting):
    for replicas, expected in (
            ([setting.disk], [1, 0]), (setting.replicas(), [1, 1]), ([setting.cloud], [1, 1]),
            # The folder missed what was committed meanwhile, and is compared.
            ([setting.cloud, setting.disk], [1, 1])):
        host = setting.open(*replicas)
        fill(host, 30, seed=len(expected))
        host.sync()
        for replica in replicas:
            assert_restores(replica, setting.database, setting.folder)
        assert images(setting) == expected, replicas
        host.finish()


def test_processes_take_over_all_of_them(setting, tmp_path):
    """Writers in three processes, of which the one that ships is killed; nothing acked is lost."""
    hosts = [setting.open(WALFERRY_SYNC_INTERVAL="50ms") for _ in range(3)]
    for host in hosts:
        host.sql("PRAGMA busy_timeout=20000")
    lock = tmp_path / "app.db-walferry" / "lock"
    for round_ in range(3):
        for host in hosts:
            fill(host, 40, seed=round_)
        hosts[-1].sync()
        pid = int(lock.read_text())
        shipper = next(host for host in hosts if host.process.pid == pid)
        pending = [host.ask("fill", sql="INSERT INTO t VALUES (?)", size=2000, times=200, seed=9)
                   for host in hosts if host is not shipper]
        shipper.process.send_signal(signal.SIGKILL)
        shipper.process.wait()
        hosts.remove(shipper)
        for one in pending:
            one.result()
        hosts.append(setting.open(WALFERRY_SYNC_INTERVAL="50ms"))
        hosts[-1].sql("PRAGMA busy_timeout=20000")
        hosts[0].sync()
        setting.assert_all_restore()
    begins_anew(setting, hosts[0])
    assert images(setting) == [1, 1]


def test_each_is_shipped_by_another_process(setting, tmp_path):
    """The places are taken one by one; the WAL begins anew only when both shippers have it."""
    first = setting.open(setting.disk)
    fill(first, 10)
    first.sync()
    second = setting.open()
    fill(second, 10)
    second.sync()
    disk, cloud = setting.status(second)
    assert disk["shipper"] == first.process.pid and cloud["shipper"] is None, (disk, cloud)
    third = setting.open()
    for _ in range(20):
        fill(third, 100, seed=3)
    # While the shippers do not hear of it in time the WAL is appended to, and no longer.
    before, deadline = generation(setting.database), time.monotonic() + 60
    while generation(setting.database) == before:
        assert time.monotonic() < deadline, "the WAL does not begin anew"
        fill(third, 20, seed=4)
    third.sync()
    setting.assert_all_restore()
    assert images(setting) == [1, 1]
    assert_nothing_was_compared(setting, first, second)


def test_another_writer_takes_one_of_them(setting, tmp_path, new_host):
    host = setting.open()
    fill(host, 10)
    host.sync()
    (tmp_path / "other").mkdir()
    other = new_host("apsw", setting.disk)
    other.open(tmp_path / "other" / "app.db").sql("PRAGMA journal_mode=WAL", TABLE)
    other.sync()
    fill(host, 10, seed=2)
    until(lambda: setting.status(host)[0]["state"] == "fenced", "the folder is lost")
    fill(host, 10, seed=3)
    until(lambda: setting.status(host)[1]["lag_ms"] == 0, "the other one goes on")
    assert_restores(setting.cloud, setting.database, tmp_path)
    host.finish()
    other.finish()
    # A person takes it back: which of them is meant has to be said.
    env = dict(setting.env)
    walferry("promote", setting.database, env=env, code=2)
    walferry("promote", setting.database, "--replica", setting.disk.url, env=env)
    host = setting.open()
    host.sync()
    setting.assert_all_restore()
    host.finish()
    shown = walferry("reset", setting.database, "--json", env=env).stdout
    assert {json.loads(line)["replica"] for line in shown.splitlines()} == {
        setting.disk.url, setting.cloud.url}


def test_processes_that_name_other_replicas(setting):
    """Neither keeps the other from its replica, as when a new version names a new one."""
    old = setting.open(setting.disk)
    fill(old, 10)
    old.sync()
    new = setting.open(setting.cloud)
    fill(new, 10, seed=2)
    new.sync()
    old.sync()
    setting.assert_all_restore()
    old.finish()
    fill(new, 10, seed=3)
    new.finish()
    # The new one keeps its folder when it is alone.
    host = setting.open(setting.cloud)
    fill(host, 10, seed=4)
    host.sync()
    assert_restores(setting.cloud, setting.database, setting.folder)
    assert images(setting) == [1, 1]


def test_the_program_ships_to_all_of_them(setting):
    host = setting.open(WALFERRY_SHUTDOWN_TIMEOUT="0")
    fill(host, 10)
    host.kill()
    said = walferry("sync", "--json", "--config", setting.folder / "walferry.yml", setting.database,
                    env=setting.env).stdout
    said = [json.loads(line) for line in said.splitlines()]
    assert [one["replica"] for one in said] == [setting.disk.url, setting.cloud.url]
    assert all(one["lag_ms"] == 0 and one["txid"] for one in said), said
    setting.assert_all_restore()


def test_sync_is_an_error_while_one_of_them_is_refused(setting):
    """The others have all that is committed: each was waited for all the same."""
    host = setting.host(WALFERRY_URI="all")
    host.open(setting.folder / "other.db", conn="other", replica=setting.cloud.url).sql(TABLE, conn="other")
    host.open(setting.database).sql("PRAGMA journal_mode=WAL", TABLE, "INSERT INTO t VALUES (1)")
    for function in ("walferry_sync", "walferry_wait"):
        with pytest.raises(HostError, match="have the same replica"):
            host.sql("SELECT %s(30000)" % function)
    assert_restores(setting.disk, setting.database, setting.folder)
    assert host.value("SELECT walferry_lag()") is None
    disk = setting.status(host)[0]
    assert disk["lag_ms"] == 0 and disk["last_error"] is None, disk
    host.sync("other")
