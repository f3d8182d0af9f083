"""Fixtures. What they build is in harness.py."""

import itertools
import os
import random
import signal
from pathlib import Path

import pytest

import harness
from sidecar import Sidecar


def pytest_report_header(config):
    return "walferry: WALFERRY_SEED=%d replays the random choices" % harness.SEED


def pytest_addoption(parser):
    parser.addoption("--crash-rounds", type=int, default=15, help="rounds of the SIGKILL test")
    parser.addoption("--duel-rounds", type=int, default=6, help="rounds of the duel of two writers")
    parser.addoption("--torture-minutes", type=float, default=float(os.environ.get("WALFERRY_TORTURE_MINUTES", 1)),
                     help="how long SQLite in many versions works at random")
    parser.addoption("--duel-scheme", choices=("file", "s3"), help="where they meet; else by chance")


def pytest_configure(config):
    # A program that is begun with a signal ignored goes on to ignore it: the tests may run in the background.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    for path in (harness.EXTENSION, harness.PROGRAM):
        if not path.exists() and not config.option.collectonly:
            raise pytest.UsageError("%s is missing: run `make build` first" % path)


@pytest.fixture(autouse=True)
def room(tmp_path_factory):
    """Ends the run where the disk is full: the S3 server would wait for room, and every test for the server."""
    lack = harness.lack_of_room(tmp_path_factory.getbasetemp())
    if lack:
        pytest.exit(lack, returncode=3)


@pytest.fixture(scope="session")
def servers(tmp_path_factory):
    """Starts servers on demand, each once, and stops them all at the end."""
    running = {}

    def get(script):
        if script not in running:
            running[script] = harness.Service(script, tmp_path_factory.mktemp("server") / "s")
        return running[script].env

    yield get
    for service in running.values():
        service.stop()


@pytest.fixture(scope="session")
def s3(servers):
    return servers("s3.py")


PREFIXES = itertools.count(1)


def fresh_replica(scheme, folder, servers):
    """An empty replica: a folder, or a prefix of its own on one of the two S3 servers."""
    if scheme == "file":
        return harness.DirectoryReplica(Path(folder) / "replica")
    server = servers({"s3": "s3.py", "s3-second": "s3_second.py"}[scheme])
    return harness.S3Replica(server, "tests/%d-%d" % (os.getpid(), next(PREFIXES)))


@pytest.fixture
def new_replica(tmp_path, servers):
    """Makes replicas of a chosen scheme: file, s3, s3-second."""
    count = itertools.count()

    def make(scheme="file"):
        folder = tmp_path / ("replica%d" % next(count))
        folder.mkdir()
        return fresh_replica(scheme, folder, servers)

    return make


@pytest.fixture
def replica(new_replica):
    """An empty replica in a folder."""
    return new_replica()


@pytest.fixture
def new_host(tmp_path):
    """Starts hosts; they get the extension's settings by environment and are gone at the end."""
    hosts, count = [], itertools.count()

    def make(kind="system", replica=None, load=True, env=None):
        settings = {"WALFERRY_SYNC_INTERVAL": "20ms", "WALFERRY_LOG": os.environ.get("WALFERRY_TEST_LOG", "info"),
                    "WALFERRY_LOG_FILE": str(tmp_path / "walferry.log")}
        if replica is not None:
            settings.update(replica.env, WALFERRY_REPLICA=replica.url)
        settings.update(env or {})
        log = tmp_path / ("host%d.err" % next(count))
        host = harness.Host(kind, settings, log)
        hosts.append(host)
        return host.load() if load else host

    yield make
    for host in hosts:
        if host.process.poll() is None:
            host.kill()


@pytest.fixture
def rng(request):
    """Random choices of one test, from the seed of the run and the test's name."""
    return random.Random("%d %s" % (harness.SEED, request.node.nodeid))


@pytest.fixture
def proxy(tmp_path, s3):
    """A fault proxy in front of the S3 server."""
    service = harness.FaultProxy(tmp_path / "proxy", s3["S3_ENDPOINT"])
    yield service
    service.stop()


@pytest.fixture
def new_sidecar(tmp_path):
    running = []

    def make(database, replica, *arguments, **options):
        options["env"] = dict(replica.env, **options.get("env", {}))
        running.append(Sidecar(tmp_path, database, replica.url, *arguments, **options))
        return running[-1]

    yield make
    for sidecar in running:
        if sidecar.process.poll() is None:
            sidecar.kill()
