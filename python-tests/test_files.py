"""Users and files of the machine: modes and owners of what walferry makes, links and pipes in its
folder, folders that cannot be synced, and set-uid programs."""

import errno
import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import apsw
import pytest

from harness import EXTENSION, PROGRAM, HostError, assert_restores, clean_environment, restore, rows, walferry
from sidecar import wait_for
from test_outages import misfortune, misfortune_library  # noqa: F401 (fixtures)
from test_processes import until

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="gives files to another user, which only root may")
USER = 23456


@pytest.fixture
def umask():
    """Sets the umask; what a test starts has it too."""
    before = os.umask(0o22)
    os.umask(before)
    yield os.umask
    os.umask(before)


@pytest.fixture
def open_folder():
    """A folder that other users can reach, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp(prefix="walferry-files-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def make_database(path, mode=0o600, owner=None):
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA journal_mode=WAL; CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    connection.close()
    if owner is not None:
        os.chown(path, owner, owner)
    path.chmod(mode)
    return path


def state_folder(database):
    return database.with_name(database.name + "-walferry")


def everything(folder):
    return [folder, *folder.rglob("*")]


def mode_of(path):
    return stat.S_IMODE(path.lstat().st_mode)


def expected_mode(path, mode):
    """Folders are searched by who may read; the lock is for who may write."""
    if stat.S_ISDIR(path.lstat().st_mode):
        return mode | (mode & 0o444) >> 2
    if path.name == "lock":
        return mode & 0o222 | (mode & 0o222) << 1
    return mode


def wrong_modes(folder, mode):
    return {str(path): oct(mode_of(path)) for path in everything(folder)
            if mode_of(path) != expected_mode(path, mode)}


def work(host, database):
    host.open(database)
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, x)",
             "INSERT INTO t (x) VALUES ('a row')")
    host.sync()


# ---- modes and owners ------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0, 0o22, 0o77], ids=oct)
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664], ids=oct)
def test_state_folder_has_mode_of_database(mode, mask, umask, new_host, replica, tmp_path):
    database = make_database(tmp_path / "app.db", mode)
    umask(mask)
    first = new_host("system", replica)
    work(first, database)
    folder = state_folder(database)
    # The second process makes the first one listen at the bell.
    second = new_host("system", replica)
    work(second, database)
    until((folder / "bell").exists, "the bell is there")
    assert stat.S_ISFIFO((folder / "bell").lstat().st_mode)
    assert not wrong_modes(folder, mode)
    first.close()
    first.finish()
    work(second, database)
    second.close()
    second.finish()
    assert not wrong_modes(folder, mode)
    names = {path.name for path in folder.iterdir()}
    assert {"lock", "state", "pages", "spool", "copies", "shm-3"} <= names


def test_row_in_spool_is_for_those_who_read_database(umask, new_host, replica, tmp_path):
    database = make_database(tmp_path / "app.db", 0o640)
    umask(0)
    host = new_host("system", replica)
    work(host, database)
    # The replica is away, so that what is committed waits in the spool.
    replica.folder.rename(tmp_path / "away")
    host.sql("INSERT INTO t (x) VALUES ('secret')")
    spool = state_folder(database) / "spool"
    until(lambda: list(spool.glob("*.ltx")), "a file waits")
    host.kill()
    assert not wrong_modes(state_folder(database), 0o640)


def test_wide_modes_of_earlier_version_are_narrowed(new_host, replica, tmp_path):
    database = make_database(tmp_path / "app.db")
    host = new_host("system", replica)
    work(host, database)
    host.close()
    host.finish()
    folder = state_folder(database)
    (folder / "spool" / "of-old.ltx.unusable").write_bytes(b"rows")
    (folder / "kept-1").mkdir()
    (folder / "kept-1" / "rows.ltx").write_bytes(b"rows")
    for path in everything(folder):
        path.chmod(0o777 if path.is_dir() else 0o666)
    host = new_host("system", replica)
    work(host, database)
    assert not wrong_modes(folder, 0o600)
    # Whoever changes the database's mode changes that of the folder with the next opening.
    host.close()
    host.finish()
    database.chmod(0o640)
    host = new_host("system", replica)
    work(host, database)
    assert not wrong_modes(folder, 0o640)


@needs_root
def test_root_that_syncs_first_leaves_folder_to_user(open_folder):
    database = make_database(open_folder / "app.db", 0o640, USER)
    os.chown(open_folder, USER, USER)
    replica = open_folder / "replica"
    walferry("sync", database, "--replica", "file://%s" % replica)
    folder = state_folder(database)
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in everything(folder)} == {(USER, USER)}
    assert not wrong_modes(folder, 0o640)
    for path in everything(replica):
        os.chown(path, USER, USER)
    done = subprocess.run([str(PROGRAM), "sync", str(database), "--replica", "file://%s" % replica], user=USER, group=USER,
                          extra_groups=[], env=clean_environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_root
@pytest.mark.parametrize("mask", [0o277, 0o577, 0o777])
def test_umask_that_leaves_the_owner_nothing(mask, open_folder):
    """Root would not notice."""
    database = make_database(open_folder / "app.db", 0o640, USER)
    os.chown(open_folder, USER, USER)
    replica = open_folder / "replica"
    done = subprocess.run([str(PROGRAM), "sync", str(database), "--replica", "file://%s" % replica], user=USER, group=USER,
                          extra_groups=[], umask=mask, env=clean_environment(), capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not wrong_modes(state_folder(database), 0o640)
    assert not wrong_modes(replica, 0o600)
    out = open_folder / "out" / "copy.db"
    out.parent.mkdir()
    os.chown(out.parent, USER, USER)
    done = subprocess.run([str(PROGRAM), "restore", "-o", str(out), "file://%s" % replica], user=USER, group=USER,
                          extra_groups=[], umask=mask, env=clean_environment(), capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert mode_of(out) == 0o600


@needs_root
def test_folder_of_stranger_is_refused(open_folder, new_host):
    """In /tmp whoever comes first makes the folder."""
    database = make_database(open_folder / "app.db")
    folder = state_folder(database)
    folder.mkdir(0o777)
    os.chown(folder, USER, USER)
    host = new_host("system", env={"WALFERRY_REPLICA": "file://%s/replica" % open_folder})
    host.open(database)
    with pytest.raises(HostError, match="app.db-walferry.*user %d owns" % USER):
        work(host, database)
    assert not list(folder.iterdir())


def test_folder_is_ignored_by_git(new_host, replica, tmp_path):
    database = tmp_path / "app.db"
    work(new_host("system", replica), database)
    assert (state_folder(database) / ".gitignore").read_text() == "*\n"


# ---- links and odd files ---------------------------------------------------------------------


def replaced_by(path, odd, precious):
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
    if odd == "link":
        path.symlink_to(precious)
    elif odd == "hard link":
        path.hardlink_to(precious)
    else:
        os.mkfifo(path)


@pytest.mark.parametrize("odd", ["link", "hard link", "pipe"])
@pytest.mark.parametrize("name", ["lock", "state", "state.tmp", "pages", "history", "history.tmp", "shm-3",
                                  "spool/next.tmp"])
def test_what_is_odd_in_folder_is_not_followed(name, odd, new_host, replica, tmp_path):
    database, precious = tmp_path / "app.db", tmp_path / "precious"
    precious.write_bytes(b"mine" * 500)
    host = new_host("system", replica)
    work(host, database)
    host.close()
    host.finish()
    path = state_folder(database) / name
    replaced_by(path, odd, precious)
    host = new_host("system", replica)
    host.open(database)
    host.sql("INSERT INTO t (x) VALUES ('meanwhile')")
    refused = name == "lock" or name == "state" and odd != "hard link"
    if refused:
        said = until(lambda: host.status(database)["last_error"], "it is said")
        assert str(path) in said and ("remove it" in said or "move it" in said), said
        path.unlink()
    host.sync()
    host.sql("INSERT INTO t (x) VALUES ('and on')")
    host.sync()
    host.close()
    host.finish()
    assert precious.read_bytes() == b"mine" * 500
    assert_restores(replica, database, tmp_path)


@pytest.mark.parametrize("name", ["spool", "copies"])
def test_linked_folder_is_refused(name, new_host, replica, tmp_path):
    database, elsewhere = tmp_path / "app.db", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "x.tmp").write_text("mine")
    host = new_host("system", replica)
    work(host, database)
    host.close()
    host.finish()
    path = state_folder(database) / name
    replaced_by(path, "link", elsewhere)
    host = new_host("system", replica)
    host.open(database)
    host.sql("INSERT INTO t (x) VALUES ('meanwhile')")
    said = until(lambda: host.status(database)["last_error"], "it is said")
    assert str(path) in said and "remove it" in said, said
    path.unlink()
    host.sync()
    assert [entry.name for entry in elsewhere.iterdir()] == ["x.tmp"]
    assert_restores(replica, database, tmp_path)


@pytest.mark.parametrize("odd", ["link", "file"])
def test_bell_that_is_no_pipe_is_not_rung(odd, new_host, replica, tmp_path):
    database, precious = tmp_path / "app.db", tmp_path / "precious"
    precious.write_bytes(b"mine")
    first = new_host("system", replica)
    work(first, database)
    bell = state_folder(database) / "bell"
    bell.symlink_to(precious) if odd == "link" else bell.write_bytes(b"mine")
    second = new_host("system", replica)
    for host in (second, first, second):
        work(host, database)
    log = tmp_path / "walferry.log"
    until(lambda: str(bell) in log.read_text(), "the log names it")
    assert precious.read_bytes() == bell.read_bytes() == b"mine"


def test_status_does_not_wait_for_pipe(new_host, replica, tmp_path):
    database = tmp_path / "app.db"
    host = new_host("system", replica)
    work(host, database)
    host.kill()
    for name in ("state", "shm-3"):
        replaced_by(state_folder(database) / name, "pipe", None)
    subprocess.run([str(PROGRAM), "status", str(database)], env=clean_environment(), timeout=60)


@pytest.mark.parametrize("name", ["database", "record", "lock"])
@pytest.mark.parametrize("odd", ["link", "pipe"])
def test_restore_follows_nothing_in_its_folder(name, odd, new_host, replica, tmp_path):
    database, precious, out = tmp_path / "app.db", tmp_path / "precious", tmp_path / "out.db"
    precious.write_bytes(b"mine")
    work(new_host("system", replica), database)
    folder = tmp_path / "out.db-restoring"
    folder.mkdir(0o700)
    replaced_by(folder / name, odd, precious)
    done = subprocess.run([str(PROGRAM), "restore", "-o", str(out), replica.url], env=clean_environment(),
                          capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and str(folder / name) in done.stderr, done.stdout + done.stderr
    assert precious.read_bytes() == b"mine" and not out.exists()
    shutil.rmtree(folder, ignore_errors=True)
    restore(replica, out)


# ---- the lock --------------------------------------------------------------------------------


@needs_root
def test_reader_of_database_cannot_take_lock(open_folder, new_host):
    database = make_database(open_folder / "app.db", 0o644)
    host = new_host("system", env={"WALFERRY_REPLICA": "file://%s/replica" % open_folder})
    work(host, database)
    host.close()
    host.finish()
    lock = state_folder(database) / "lock"
    taken = subprocess.run(
        ["/usr/bin/python3", "-c", "import fcntl, os, sys\n"
         "fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)", str(lock)],
        user=USER, group=USER, extra_groups=[], cwd="/", capture_output=True, text=True)
    assert "PermissionError" in taken.stderr, taken
    assert mode_of(lock) == 0o600 and mode_of(lock.with_name("state")) == 0o644


# ---- folders that cannot be synced -----------------------------------------------------------


@pytest.mark.parametrize("name", ["EINVAL", "EBADF", "EOPNOTSUPP", "ENOSYS"])
def test_folder_that_cannot_be_synced_is_no_obstacle(name, misfortune, new_host, replica, tmp_path):  # noqa: F811
    database = tmp_path / "app.db"
    misfortune.set("folders", getattr(errno, name))
    host = new_host("system", replica, env=misfortune.env)
    work(host, database)
    host.close()
    host.finish()
    walferry("restore", "-o", tmp_path / "out.db", replica.url, env=misfortune.env)
    assert rows(tmp_path / "out.db", "SELECT count(*) FROM t") == [(1,)]


def test_folder_whose_disk_fails_is_an_error(misfortune, new_host, replica, tmp_path):  # noqa: F811
    database = tmp_path / "app.db"
    misfortune.set("folders", errno.EIO)
    host = new_host("system", replica, env=misfortune.env)
    host.open(database)
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    assert "os error 5" in until(lambda: host.status(database)["last_error"], "it is said")
    misfortune.over("folders")
    work(host, database)


# ---- restore ---------------------------------------------------------------------------------


def test_restored_database_has_mode_of_former(umask, new_host, replica, tmp_path):
    database, out = tmp_path / "app.db", tmp_path / "out.db"
    work(new_host("system", replica), database)
    umask(0)
    walferry("restore", "-o", out, replica.url)
    assert mode_of(out) == 0o600 and not wrong_modes(state_folder(out), 0o600)
    out.chmod(0o640)
    walferry("restore", "-o", out, "--force", "--force", replica.url)
    assert mode_of(out) == 0o640 and not wrong_modes(state_folder(out), 0o640)
    walferry("restore", "-o", out, "--force", "--force", "--mode", "604", replica.url)
    assert mode_of(out) == 0o604
    umask(0o77)
    walferry("restore", "-o", tmp_path / "new.db", "--mode", "0664", replica.url)
    assert mode_of(tmp_path / "new.db") == 0o664 and not wrong_modes(state_folder(tmp_path / "new.db"), 0o664)
    walferry("restore", "-o", tmp_path / "no.db", "--mode", "rw-r--r--", replica.url, code=2)


@needs_root
def test_restored_database_has_owner_of_former(new_host, replica, tmp_path):
    database, out = tmp_path / "app.db", make_database(tmp_path / "out.db", 0o640, USER)
    work(new_host("system", replica), database)
    walferry("restore", "-o", out, "--force", replica.url)
    assert {path.stat().st_uid for path in [out, *everything(state_folder(out))]} == {USER}
    assert {path.stat().st_gid for path in [out, *everything(state_folder(out))]} == {USER}
    assert mode_of(out) == 0o640


# ---- set-uid programs ------------------------------------------------------------------------

SET_UID = """
import os, sqlite3, sys
extension, database = sys.argv[1:]
loader = sqlite3.connect(":memory:")
loader.enable_load_extension(True)
loader.load_extension(extension)
db = sqlite3.connect(database, uri=True)
db.execute("PRAGMA journal_mode=WAL")
db.execute("CREATE TABLE IF NOT EXISTS t (x)")
db.execute("INSERT INTO t VALUES (1)")
db.commit()
print(db.execute("SELECT walferry_status()").fetchone()[0])
"""


@needs_root
def test_set_uid_program_believes_no_variable(open_folder):
    python = open_folder / "python"
    shutil.copy(os.path.realpath("/usr/bin/python3"), python)
    os.chown(python, USER, USER)
    python.chmod(0o4755)
    folder = open_folder / "work"
    folder.mkdir()
    os.chown(folder, USER, USER)
    config = open_folder / "walferry.yml"
    config.write_text("dbs:\n  - path: %s/app.db\n    replica:\n      url: file://%s/config\n" % (folder, folder))
    named = {"PYTHONHOME": "/usr", "WALFERRY_REPLICA": "file://%s/variable" % folder,
             "WALFERRY_CONFIG": str(config), "WALFERRY_LOG_FILE": str(folder / "log")}

    def run(database):
        done = subprocess.run([str(python), "-c", SET_UID, str(EXTENSION.with_suffix("")), database],
                              env=dict(clean_environment(), **named), cwd="/", capture_output=True, text=True,
                              timeout=120)
        assert done.returncode == 0, done.stderr
        return done

    done = run("%s/app.db" % folder)
    assert done.stdout.strip() == "[]", done.stdout
    assert done.stderr.count("set-uid") == 1, done.stderr
    assert {path.name for path in folder.iterdir()} <= {"app.db", "app.db-wal", "app.db-shm"}
    # Neither is a URI, with which the program may attach what it is told to.
    named["WALFERRY_URI"] = "all"
    done = run("file:%s/app.db?replica=file://%s/parameter" % (folder, folder))
    assert "uri-parameters: all" in done.stdout, done.stdout
    assert not (folder / "parameter").exists() and not (folder / "log").exists()


# ---- modes that are set ----------------------------------------------------------------------


@pytest.mark.parametrize("mode", [None, "640", "0644"])
@pytest.mark.parametrize("by", ["variable", "file"])
def test_folder_replica_has_mode_that_is_set(by, mode, umask, new_host, replica, tmp_path):
    env = {"WALFERRY_LEVELS": "100ms"}
    if by == "file":
        config = tmp_path / "walferry.yml"
        config.write_text("dbs:\n  - path: %s\n    replica: {type: file, path: %s%s}\n" % (
            tmp_path / "app.db", replica.folder, ", file-mode: %s" % mode if mode else ""))
        env["WALFERRY_CONFIG"] = str(config)
    else:
        env.update({"WALFERRY_FILE_MODE": mode} if mode else {}, WALFERRY_REPLICA=replica.url)
    umask(0o77 if mode else 0)
    host = new_host("system", env=env)
    work(host, tmp_path / "app.db")
    host.sql("INSERT INTO t (x) VALUES ('a row')")
    host.sync()
    assert any(path.suffix == ".ltx" for path in everything(replica.folder))
    # A folder for joined files may just be made: it has its mode before anything is in it.
    wait_for(lambda: not wrong_modes(replica.folder, int(mode or "600", 8)),
             lambda: str(wrong_modes(replica.folder, int(mode or "600", 8))))


def test_mode_of_folder_replica_must_let_its_owner_in(new_host, replica, tmp_path):
    for mode in ["440", "1777", "rw"]:
        host = new_host("system", replica, env={"WALFERRY_FILE_MODE": mode})
        host.open(tmp_path / "app.db")
        with pytest.raises(HostError, match="WALFERRY_FILE_MODE"):
            host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE IF NOT EXISTS t (x)", "SELECT walferry_sync()")
        assert not replica.folder.exists()


@pytest.mark.parametrize("by", ["variable", "entry", "top"])
def test_new_database_has_restore_mode(by, umask, new_host, replica, tmp_path):
    umask(0o77)
    database, config = tmp_path / "app.db", tmp_path / "walferry.yml"
    work(new_host("system", replica), database)
    key = "restore-mode: 640\n"
    config.write_text("%sdbs:\n  - path: %s\n    replica: {type: file, path: %s}\n    %s" % (
        key if by == "top" else "", tmp_path / "listed.db", replica.folder, key if by == "entry" else ""))
    env = {"WALFERRY_RESTORE_MODE": "640"} if by == "variable" else {}

    def restored(output, *arguments, target=replica.url):
        walferry("restore", "-o", output, *arguments, target, env=env)
        return oct(mode_of(output))

    if by == "variable":
        assert restored(tmp_path / "new.db") == oct(0o640)
    elif by == "top":
        assert restored(tmp_path / "new.db", "--config", config, target=replica.url + "/") == oct(0o640)
    listed = tmp_path / "listed.db"
    assert restored(tmp_path / "by-name.db", "--config", config, target=listed) == oct(0o640)
    assert restored(listed, "--config", config, "--mode", "644", target=listed) == oct(0o644)
    # One that is replaced keeps what it has.
    assert restored(listed, "--config", config, "--force", target=listed) == oct(0o644)
