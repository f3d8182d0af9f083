"""`walferry replicate --exec`: signals, terminals, and the duties of process 1."""

import fcntl
import os
import pty
import select
import signal
import subprocess
import termios
import time

import pytest

from harness import PROGRAM, DirectoryReplica, S3Replica, clean_environment, restore, rows
from sidecar import begin, insert, plain, quoted, synced, wait_for

# Says each signal as it comes; SIGTERM ends it.
TELLS = """
import signal
all = {signal.SIGINT, signal.SIGUSR1, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, all)
print("ready", flush=True)
got = None
while got != signal.SIGTERM:
    got = signal.sigwaitinfo(all).si_signo
    print(signal.Signals(got).name, flush=True)
"""


@pytest.fixture
def database(tmp_path):
    begin(tmp_path / "app.db").close()
    return tmp_path / "app.db"


@pytest.fixture
def terminal():
    """Both ends of one: the keyboard, and what a program has."""
    ends = pty.openpty()
    yield ends
    for end in ends:
        os.close(end)


def wait_for_line(sidecar, line):
    """What the program says next."""
    ready, _, _ = select.select([sidecar.process.stdout], [], [], 60)
    assert ready, sidecar.said()
    assert sidecar.process.stdout.readline() == line + "\n"


def test_a_signal_to_the_whole_group_is_one_signal(database, new_sidecar, replica):
    """As Ctrl-C and systemd do it: the program may be gone before the sidecar hears of it."""
    for _ in range(20):
        sidecar = new_sidecar(database, replica, "--exec", "sh -c 'echo up; exec sleep 1000'", start_new_session=True)
        assert sidecar.process.stdout.readline() == "up\n"
        os.killpg(sidecar.process.pid, signal.SIGTERM)
        assert sidecar.process.wait(60) == 128 + signal.SIGTERM, sidecar.said()


def test_a_signal_right_after_the_programs_end_is_no_second_one(database, new_sidecar, proxy, s3):
    for number in range(10):
        replica = S3Replica(s3, "sidecar/same-signal-%d-%d" % (os.getpid(), number), proxy.endpoint)
        sidecar = new_sidecar(database, replica, "--set", "shutdown-timeout=1h", "--exec", "sh -c 'read line; exit 7'",
                              stdin=subprocess.PIPE)
        synced(database, replica)
        rule = proxy.rule("blackhole", where="request", count=1000)
        insert(plain(database), 1)
        proxy.wait(rule)
        begun = time.monotonic()
        print("end", file=sidecar.process.stdin, flush=True)
        sidecar.wait_for("STOPPING=1")
        sidecar.process.send_signal(signal.SIGTERM)
        if time.monotonic() - begun < 1:  # else it may be taken for another one
            proxy.heal()
            assert sidecar.process.wait(60) == 7, sidecar.said()
            return
        proxy.heal()
        sidecar.process.wait(60)
    raise AssertionError("this machine is too slow for this test")


def test_what_the_program_wrote_last_is_shipped_after_such_a_signal(database, new_sidecar, replica, tmp_path):
    script = """
import os, signal, sqlite3
db = sqlite3.connect(os.environ["DATABASE"], isolation_level=None)
for n in range(50):
    db.execute("INSERT INTO t (x) VALUES (1)")
print("written", flush=True)
while True:
    signal.pause()
"""
    sidecar = new_sidecar(database, replica, "--exec", quoted(script), sync="1h", start_new_session=True,
                          env={"DATABASE": str(database)})
    assert sidecar.process.stdout.readline() == "written\n"
    os.killpg(sidecar.process.pid, signal.SIGTERM)
    assert sidecar.process.wait(60) == 128 + signal.SIGTERM, sidecar.said()
    assert rows(restore(replica, tmp_path / "got.db"), "SELECT count(*) FROM t") == [(50,)]


def test_a_later_signal_ends_it_at_once(database, new_sidecar, proxy, s3):
    replica = S3Replica(s3, "sidecar/later-signal-%d" % os.getpid(), proxy.endpoint)
    sidecar = new_sidecar(database, replica, "--set", "shutdown-timeout=1h", "--exec", "sh -c 'read line'",
                          stdin=subprocess.PIPE)
    rule = proxy.rule("blackhole", where="request", count=1000)
    insert(plain(database), 1)
    proxy.wait(rule)
    print("end", file=sidecar.process.stdin, flush=True)
    sidecar.wait_for("STOPPING=1")

    def is_gone():
        sidecar.process.send_signal(signal.SIGTERM)
        return sidecar.process.poll() is not None

    wait_for(is_gone, sidecar.said)
    assert sidecar.process.wait(60) == -signal.SIGTERM
    proxy.heal()


@pytest.mark.parametrize("with_terminal", [True, False])
def test_an_interrupt_by_kill_is_passed_on(with_terminal, database, new_sidecar, replica, terminal):
    sidecar = new_sidecar(database, replica, "--exec", quoted(TELLS), stdin=terminal[1] if with_terminal else None)
    assert sidecar.process.stdout.readline() == "ready\n"
    sidecar.process.send_signal(signal.SIGINT)
    wait_for_line(sidecar, "SIGINT")
    assert sidecar.end() == 0
    assert sidecar.process.stdout.read() == "SIGTERM\n"


@pytest.mark.parametrize("with_stdin", [True, False])
def test_a_key_interrupts_the_program_once(with_stdin, database, new_sidecar, replica, terminal):
    keyboard, screen = terminal
    sidecar = new_sidecar(database, replica, "--exec", quoted(TELLS), stdin=screen if with_stdin else None,
                          start_new_session=True,
                          preexec_fn=lambda: fcntl.ioctl(screen, termios.TIOCSCTTY, 0))
    assert sidecar.process.stdout.readline() == "ready\n"
    for _ in range(5):
        os.write(keyboard, b"\x03")
        wait_for_line(sidecar, "SIGINT")
        sidecar.process.send_signal(signal.SIGUSR1)  # comes behind whatever was passed on before
        wait_for_line(sidecar, "SIGUSR1")
    assert sidecar.end() == 0
    assert sidecar.process.stdout.read() == "SIGTERM\n"


ORPHANS = """
import os, signal, sys, time
def orphan():
    read, write = os.pipe()
    if os.fork() == 0:
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.write(write, b"%d" % child)
        os._exit(0)
    os.wait()
    return int(os.read(read, 20))
orphans = [orphan() for _ in range(5)]
deadline = time.monotonic() + 60
while any(os.path.exists("/proc/%d" % pid) for pid in orphans):
    if time.monotonic() > deadline:
        sys.exit(3)
    time.sleep(0.01)
sys.exit(7)
"""


def test_process_1_takes_in_orphans(database, replica):
    own = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*own, "true"], capture_output=True).returncode != 0:
        own = [word for word in own if "user" not in word]
    if subprocess.run([*own, "true"], capture_output=True).returncode != 0:
        pytest.skip("needs the right to make a PID namespace")
    # The code of the program arrives all the same, and is nobody else's.
    done = subprocess.run([*own, str(PROGRAM), "replicate", str(database), replica.url, "--exec", quoted(ORPHANS)],
                          env=clean_environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 7, done.stderr


MAKES = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.executescript("PRAGMA locking_mode=%s; PRAGMA journal_mode=WAL; CREATE TABLE t (x)" % sys.argv[2])
db.executescript("INSERT INTO t VALUES (1);" * 50)
"""


@pytest.mark.parametrize("locking", ["NORMAL", "EXCLUSIVE"])
@pytest.mark.parametrize("where", ["named", "in a folder"])
def test_what_a_program_made_last_arrives(where, locking, new_sidecar, replica, tmp_path):
    """It ends before the sidecar has looked again, or had the database to itself until then."""
    folder = tmp_path / "data"
    folder.mkdir()
    database = folder / "app.db"
    command = "%s %s %s" % (quoted(MAKES), database, locking)
    named = (database,) if where == "named" else (folder,)
    more = () if where == "named" else ("--pattern", "*.db")
    sidecar = new_sidecar(*named, replica, *more, "--exec", command)
    assert sidecar.process.wait(60) == 0, sidecar.said()
    of = replica if where == "named" else DirectoryReplica(replica.folder / "app.db")
    assert rows(restore(of, tmp_path / "out.db"), "SELECT count(*) FROM t") == [(50,)]


def test_what_is_not_replicated_at_the_end_is_told(new_sidecar, replica, tmp_path):
    database = tmp_path / "app.db"
    db = begin(database, "PRAGMA locking_mode=EXCLUSIVE", "INSERT INTO t (x) VALUES (1)")
    sidecar = new_sidecar(database, replica)
    assert sidecar.end() == 1
    assert "app.db: it is not replicated at the end" in sidecar.said()
    db.close()
