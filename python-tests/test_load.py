"""Loading: every host takes the extension, and nothing happens that was not asked for."""

import re
import subprocess

import pytest

from harness import EXTENSION, HOSTS, assert_restores, clean_environment, walferry


@pytest.mark.parametrize("kind", HOSTS)
def test_loads_in_every_host(new_host, kind):
    host = new_host(kind)
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", host.value("SELECT walferry_version()", "loader"))


def test_loads_in_the_shell(tmp_path):
    done = subprocess.run(
        ["sqlite3", str(tmp_path / "plain.db")], text=True, capture_output=True, timeout=60,
        env=clean_environment(),
        input=".load %s\nSELECT walferry_version();\n.vfslist\n" % EXTENSION.with_suffix(""))
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert done.stdout.splitlines()[0] in walferry("version").stdout
    assert '"walferry"' in done.stdout


def test_only_the_entry_points_are_exported():
    listed = subprocess.run(["nm", "-D", "--defined-only", str(EXTENSION)], text=True,
                            capture_output=True, check=True).stdout
    assert {line.split()[-1] for line in listed.splitlines()} == {
        "sqlite3_extension_init", "sqlite3_walferry_init"}


def test_no_sqlite_inside():
    """A SQLite of its own in the extension would break the host's locks on the database."""
    content = EXTENSION.read_bytes()
    # The source id is in every SQLite library, stripped or not.
    assert not re.search(rb"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d [0-9a-f]{64}", content)
    undefined = subprocess.run(["nm", "-D", "--undefined-only", str(EXTENSION)], text=True,
                               capture_output=True, check=True).stdout
    assert "sqlite3_" not in undefined


def test_needs_only_the_c_library():
    needed = subprocess.run(["ldd", str(EXTENSION)], text=True, capture_output=True, check=True)
    names = {line.split()[0].split("/")[-1].split(".so")[0] for line in needed.stdout.splitlines()}
    assert names <= {"linux-vdso", "libc", "libm", "libgcc_s", "libpthread", "libdl", "librt",
                     "ld-linux-x86-64", "ld-linux-aarch64"}, names


@pytest.mark.parametrize("kind", HOSTS)
def test_no_thread_before_a_replicated_database(new_host, kind, replica, tmp_path):
    host = new_host(kind)
    host.open(tmp_path / "plain.db")
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)")
    assert not [name for name in host.facts()["threads"] if name.startswith("walferry")]
    assert not (tmp_path / "plain.db-walferry").exists()
    host.open(tmp_path / "app.db", "second", vfs="walferry", replica=replica.url)
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)", conn="second")
    host.sync("second")
    assert [name for name in host.facts()["threads"] if name.startswith("walferry")]


def test_unreplicated_databases_know_no_numbers(new_host, tmp_path):
    host = new_host()
    host.open(tmp_path / "plain.db")
    assert host.sql("SELECT walferry_txid(), walferry_lag(), walferry_status()") == [[None, None, "[]"]]


@pytest.mark.parametrize("name", [":memory:", ""])
def test_memory_and_temporary_databases_pass_through(new_host, replica, tmp_path, name):
    """The environment names a replica for every file, and these are not files."""
    host = new_host(replica=replica)
    host.open(name)
    host.sql("CREATE TABLE t (x)", "INSERT INTO t VALUES (randomblob(100000))",
             "CREATE TEMP TABLE u AS SELECT randomblob(3000000)")
    assert host.value("SELECT walferry_lag()") is None
    assert host.status() == []
    assert not replica.folder.exists() or not list(replica.folder.iterdir())


def test_loading_into_an_open_database_adopts_it(new_host, replica, tmp_path):
    """What `sqlite3 app.db` and then `.load` does."""
    database = tmp_path / "app.db"
    host = new_host(replica=replica, load=False)
    host.open(database)
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)")
    host.call("load", path=str(EXTENSION.with_suffix("")))
    host.sql("INSERT INTO t VALUES (2)")
    host.sync()
    assert_restores(replica, database, tmp_path)


def test_walferry_default_0_leaves_the_default_vfs(new_host, replica, tmp_path):
    host = new_host(replica=replica, env={"WALFERRY_DEFAULT": "0"})
    host.open(tmp_path / "plain.db")
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
    assert host.value("SELECT walferry_lag()") is None
    host.open(tmp_path / "app.db", "named", vfs="walferry")
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)", conn="named")
    host.sync("named")
    assert replica.keys()


def test_name_in_the_replica_url(new_host, tmp_path):
    host = new_host(env={"WALFERRY_REPLICA": "file://%s/{name}" % (tmp_path / "all")})
    for name in ("one.db", "two.db"):
        host.open(tmp_path / name, name)
        host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)", conn=name)
        host.sync(name)
        assert list((tmp_path / "all" / name).rglob("*.ltx"))
    assert len(host.status(conn="one.db")) == 2
