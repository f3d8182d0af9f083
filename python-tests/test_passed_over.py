"""`walferry replicate`: what it cannot replicate is said, and counts at the end; what it must not touch stays."""

import os
import resource
import shutil
import signal
import subprocess
import sys

import pytest

from harness import PROGRAM, DirectoryReplica, clean_environment, restore, rows, walferry
from sidecar import begin, insert, plain, quoted, wait_for
from test_files import needs_root, open_folder  # noqa: F401  (a fixture)

NOBODY, OWNER, COMMON = 65534, 61001, 61002


def become(user, *groups):
    def preexec():
        os.setgroups(groups)
        os.setgid(user)
        os.setuid(user)
    return preexec


def given_to(user, *paths, group=None, mode=None):
    for path in paths:
        os.chown(path, user, user if group is None else group)
        if mode is not None:
            os.chmod(path, mode)


def once(*arguments, **options):
    return subprocess.run([str(PROGRAM), "replicate", "--once", *map(str, arguments)], env=clean_environment(),
                          capture_output=True, text=True, timeout=60, **options)


# ---- folders that cannot be read --------------------------------------------------------------


@needs_root
def test_a_folder_that_cannot_be_read_counts(open_folder, new_sidecar):
    data, replica = open_folder / "data", DirectoryReplica(open_folder / "replica")
    (data / "secret").mkdir(parents=True)
    begin(data / "a.db").close()
    begin(data / "secret" / "b.db").close()
    given_to(NOBODY, open_folder, data, data / "a.db")
    os.chmod(data / "secret", 0o700)
    arguments = ("--pattern", "*.db", "--recursive")
    done = once(data, replica.url, *arguments, preexec_fn=become(NOBODY))
    assert done.returncode == 1, done.stderr
    assert "%s: " % (data / "secret") in done.stderr and "Permission denied" in done.stderr
    assert "synced %s" % (data / "a.db") in done.stdout

    sidecar = new_sidecar(data, replica, *arguments, preexec_fn=become(NOBODY), wait=False)
    sidecar.wait_until_said("a.db: opened")
    sidecar.wait_until_said("secret: ")
    assert sidecar.end() == 1, sidecar.said()
    errors = [line for line in sidecar.complaints() if "secret: it cannot be read" in line]
    assert len(errors) == 1, sidecar.said()


def test_a_folder_that_does_not_exist_is_told_and_counts(new_sidecar, new_replica, tmp_path):
    replica, folder = new_replica(), tmp_path / "late"
    assert once(folder, replica.url, "--pattern", "*.db").returncode == 2
    sidecar = new_sidecar(folder, replica, "--pattern", "*.db")
    sidecar.wait_until_said("late: it cannot be read")
    folder.mkdir()
    begin(folder / "a.db").close()
    sidecar.wait_until_said("a.db: opened")
    assert sidecar.end() == 0
    shutil.rmtree(folder)
    sidecar = new_sidecar(folder, replica, "--pattern", "*.db")
    assert sidecar.end() == 1
    assert "late: it is not replicated at the end" in sidecar.said()


def test_a_folder_of_the_file_that_does_not_exist_counts(tmp_path, new_replica):
    begin(tmp_path / "a.db").close()
    file = tmp_path / "walferry.yml"
    file.write_text("""
dbs:
  - path: %s/a.db
    replica:
      url: %s
  - dir: %s/nosuch
    pattern: "*.db"
    replica:
      url: %s
""" % (tmp_path, new_replica().url, tmp_path, new_replica().url))
    done = once("--config", file)
    assert done.returncode == 2, done.stderr
    assert "nosuch: it cannot be read" in done.stderr
    assert "synced %s" % (tmp_path / "a.db") in done.stdout
    done = walferry("databases", "--config", file, code=1)
    assert "nosuch: it cannot be read" in done.stderr
    assert str(tmp_path / "a.db") in done.stdout


@needs_root
def test_check_of_a_folder_that_cannot_be_read_fails(open_folder):
    (open_folder / "data" / "secret").mkdir(parents=True)
    begin(open_folder / "data" / "a.db").close()
    os.chmod(open_folder / "data" / "secret", 0o700)
    file = open_folder / "walferry.yml"
    file.write_text("""
dbs:
  - dir: %s/data
    pattern: "*.db"
    recursive: true
    replica:
      url: file://%s/replica
""" % (open_folder, open_folder))
    given_to(NOBODY, open_folder, open_folder / "data" / "a.db")
    done = subprocess.run([str(PROGRAM), "check", "--config", str(file)], env=clean_environment(), text=True,
                          capture_output=True, timeout=60, preexec_fn=become(NOBODY))
    assert done.returncode == 1 and "Permission denied" in done.stdout, done
    assert "%s/data/secret" % open_folder in done.stdout


# ---- databases that cannot be read, or are refused --------------------------------------------


@needs_root
def test_a_database_that_cannot_be_read_counts(open_folder, new_sidecar):
    replica = DirectoryReplica(open_folder / "replica")
    for name in ("a.db", "b.db"):
        begin(open_folder / name).close()
    given_to(NOBODY, open_folder, open_folder / "a.db")
    os.chmod(open_folder / "b.db", 0o600)
    sidecar = new_sidecar(open_folder, replica, "--pattern", "*.db", preexec_fn=become(NOBODY), wait=False)
    sidecar.wait_until_said("a.db: opened")
    sidecar.wait_until_said("b.db: Permission denied")
    assert sidecar.end() == 1, sidecar.said()
    assert "b.db: it is not replicated at the end" in sidecar.said()


def test_a_path_that_leads_through_a_file_counts(new_sidecar, replica, tmp_path):
    (tmp_path / "file").write_text("x")
    sidecar = new_sidecar(tmp_path / "file" / "app.db", replica)
    assert sidecar.end() == 1, sidecar.said()
    assert "app.db: Not a directory" in sidecar.said()


def test_databases_for_which_descriptors_do_not_suffice_count(new_sidecar, new_replica, tmp_path):
    folder, replica = tmp_path / "data", new_replica()
    folder.mkdir()
    for number in range(12):
        begin(folder / ("f%d.db" % number)).close()
    sidecar = new_sidecar(folder, replica, "--pattern", "f*.db",
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60)))
    assert sidecar.end() == 1, sidecar.said()


def test_a_database_that_the_extension_refuses_counts(new_sidecar, tmp_path):
    database = tmp_path / "app.db"
    begin(database).close()
    replica = DirectoryReplica(tmp_path / "app.db-walferry" / "replica")
    sidecar = new_sidecar(database, replica)
    sidecar.wait_until_said("is not replicated")
    assert sidecar.end() == 1, sidecar.said()
    assert "app.db: opened" not in sidecar.said()
    assert "app.db: it is not replicated at the end" in sidecar.said()
    assert once(database, replica.url).returncode == 1


# ---- databases of other users -----------------------------------------------------------------


WRITES = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('INSERT INTO t (x) VALUES (1)').connection.commit()"


def writes(database, user, *groups):
    return subprocess.run([sys.executable, "-c", WRITES, str(database)], capture_output=True, text=True,
                          preexec_fn=become(user, *groups))


@needs_root
@pytest.mark.parametrize("mode", [0o644, 0o664])
def test_a_sidecar_of_another_user_makes_nothing_that_shuts_the_owner_out(mode, open_folder, new_sidecar):
    data, database = open_folder / "data", open_folder / "data" / "app.db"
    data.mkdir()
    begin(database).close()
    given_to(OWNER, data, mode=0o777)
    given_to(OWNER, database, mode=mode)
    given_to(NOBODY, open_folder)
    replica = DirectoryReplica(open_folder / "replica")
    sidecar = new_sidecar(database, replica, preexec_fn=become(NOBODY), wait=False)
    wait_for(lambda: "app.db: " in sidecar.said(), sidecar.said)
    done = writes(database, OWNER)
    assert done.returncode == 0, done.stderr
    assert "run walferry as" in sidecar.said()
    assert sidecar.end() == 1, sidecar.said()
    assert once(database, replica.url, preexec_fn=become(NOBODY)).returncode == 1
    assert writes(database, OWNER).returncode == 0


@needs_root
@pytest.mark.parametrize("first", ["application", "sidecar"])
def test_a_sidecar_of_a_common_group_goes_on_working(first, open_folder, new_sidecar, tmp_path):
    data, database = open_folder / "data", open_folder / "data" / "app.db"
    data.mkdir()
    begin(database).close()
    given_to(OWNER, data, group=COMMON, mode=0o2775)
    given_to(OWNER, database, group=COMMON, mode=0o664)
    given_to(NOBODY, open_folder)
    replica = DirectoryReplica(open_folder / "replica")
    holder = None
    if first == "application":
        script = WRITES + "; import time; db = sqlite3.connect(sys.argv[1]); db.execute('SELECT * FROM t').fetchall(); print(1, flush=True); time.sleep(100)"
        holder = subprocess.Popen([sys.executable, "-c", script, str(database)], stdout=subprocess.PIPE,
                                  preexec_fn=become(OWNER, COMMON))
        holder.stdout.readline()
    sidecar = new_sidecar(database, replica, preexec_fn=become(NOBODY, COMMON), wait=False)
    sidecar.wait_until_said("app.db: opened")
    done = writes(database, OWNER, COMMON)
    assert done.returncode == 0, done.stderr
    assert sidecar.end() == 0, sidecar.said()
    if holder:
        holder.kill()
        holder.wait()
    count = 2 if holder else 1
    assert rows(restore(replica, tmp_path / "out.db"), "SELECT count(*) FROM t") == [(count,)]


# ---- inherited signals ------------------------------------------------------------------------


def ignoring(number):
    return lambda: signal.signal(number, signal.SIG_IGN)


def test_children_that_are_ignored_are_waited_for_all_the_same(new_sidecar, replica, tmp_path):
    """With SIGCHLD ignored the kernel keeps no exit code."""
    database = tmp_path / "app.db"
    begin(database).close()
    script = ("import sqlite3, signal, sys; db = sqlite3.connect(sys.argv[1]); db.execute('INSERT INTO t (x) VALUES (1)');"
              "db.commit(); sys.exit(7 if signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL else 8)")
    sidecar = new_sidecar(database, replica, "--exec", "%s %s" % (quoted(script), database), wait=False, sync="1h",
                          preexec_fn=ignoring(signal.SIGCHLD))
    assert sidecar.process.wait(60) == 7, sidecar.said()
    assert rows(restore(replica, tmp_path / "out.db"), "SELECT count(*) FROM t") == [(1,)]


@pytest.mark.parametrize("with_program", [True, False])
def test_a_signal_that_is_ignored_stays_ignored(with_program, new_sidecar, replica, tmp_path):
    """As after nohup."""
    database = tmp_path / "app.db"
    begin(database).close()
    program = ("--exec", "sh -c 'grep SigIgn /proc/self/status; exec sleep 1000'") if with_program else ()
    sidecar = new_sidecar(database, replica, *program, preexec_fn=ignoring(signal.SIGHUP), start_new_session=True)
    if with_program:
        ignored = int(sidecar.process.stdout.readline().split()[1], 16)
        assert ignored & 1 << signal.SIGHUP - 1
    os.killpg(sidecar.process.pid, signal.SIGHUP)
    insert(plain(database), 1)
    assert sidecar.end() == (128 + signal.SIGTERM if with_program else 0), sidecar.said()
    assert "told to end by signal 1\n" not in sidecar.said()
