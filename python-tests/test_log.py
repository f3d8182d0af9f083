"""Where lines of the log go, and what they must not do to the program: nothing of its files, its standard
streams and its signals is touched, and it never waits for whoever reads them."""

import concurrent.futures
import subprocess
import sys

import pytest

from harness import EXTENSION, clean_environment

BEGIN = """
import os, signal, socket, sqlite3, subprocess, sys
HERE = os.getcwd()

def load():
    loader = sqlite3.connect(":memory:")
    loader.enable_load_extension(True)
    loader.load_extension(os.environ["EXTENSION"])
    return loader

def connect(name="app.db", **uri):
    name = "file:" + os.path.join(HERE, name) + "".join("?%s=%s" % one for one in uri.items())
    return sqlite3.connect(name, uri=True, isolation_level=None)

def work(name="app.db"):
    db = connect(name)
    db.execute("CREATE TABLE t (x)")
    db.execute("SELECT walferry_sync(60000)").fetchall()
    return db

def warn():
    # The parameter means nothing, and that is a line of this thread's.
    connect("plain.db", retnetion="5h").close()
"""


@pytest.fixture
def run(tmp_path):
    """Runs a program in a folder of its own, with what it needs to be read by; the end of it."""

    def run_one(text, seconds=60, **env):
        folder = tmp_path / "work"
        folder.mkdir()
        settings = dict(clean_environment(), EXTENSION=str(EXTENSION.with_suffix("")), WALFERRY_LOG_LEVEL="debug",
                        WALFERRY_REPLICA="file://%s/{name}" % (tmp_path / "replica"), WALFERRY_SYNC_INTERVAL="1ms")
        settings.update(env)
        with open(tmp_path / "err", "wb") as errors:
            try:
                done = subprocess.run(["/usr/bin/python3", "-c", BEGIN + text], cwd=folder, timeout=seconds,
                                      env=settings, stdout=subprocess.PIPE, stderr=errors, text=True)
            except subprocess.TimeoutExpired:
                raise AssertionError("it hangs\n" + (tmp_path / "err").read_text()) from None
        assert done.returncode == 0, "exit %d\n%s" % (done.returncode, (tmp_path / "err").read_text())
        return folder

    return run_one


DAEMON = """
load()
if %r:
    child = os.fork()
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
os.closerange(3, 1024)
own = [os.open("own%%d" %% number, os.O_RDWR | os.O_CREAT) for number in range(20)]
ours, theirs = socket.socketpair()
theirs.setblocking(False)
other = connect("other.db", replica="")
other.execute("CREATE TABLE t (x)")
work()
assert [os.fstat(number).st_size for number in own] == [0] * 20, "a file has got lines of the log"
try:
    raise AssertionError("a client has got %%r" %% theirs.recv(1000))
except BlockingIOError:
    pass
assert connect("other.db", replica="").execute("PRAGMA integrity_check").fetchall() == [("ok",)]
"""


@pytest.mark.parametrize("forks", [False, True], ids=["stays", "forks"])
def test_program_that_closes_all_its_descriptors(forks, run, tmp_path):
    """As daemons do: what gets their numbers next is the program's."""
    run(DAEMON % forks, WALFERRY_LOG_FILE=str(tmp_path / "log"))
    assert "app.db" in (tmp_path / "log").read_text()


def test_path_of_the_log_is_that_of_the_moment_of_loading(run):
    folder = run("""
load()
os.mkdir("later"), os.chdir("later")
work()
""", WALFERRY_LOG="./log")
    assert "app.db" in (folder / "log").read_text()
    assert not (folder / "later" / "log").exists()


def test_log_that_is_moved_away_is_made_anew(run):
    folder = run("""
load()
warn()
os.rename("log", "log.1")
warn()
""", WALFERRY_LOG_FILE="log", WALFERRY_LOG_LEVEL="warn")
    assert [(folder / name).read_text().count("retnetion") for name in ("log", "log.1")] == [1, 1]


def test_no_line_of_the_log_has_the_number_of_a_standard_stream(run, tmp_path):
    """What the program writes to a stream that is closed is not for the log."""
    run("""
os.closerange(0, 3)
load()
for number in 0, 1, 2:
    try:
        os.write(number, b"stray")
    except OSError:
        pass
warn()
""", WALFERRY_LOG_FILE=str(tmp_path / "log"))
    log = (tmp_path / "log").read_text()
    assert "stray" not in log and "retnetion" in log, log


def test_log_to_a_pipe_that_nobody_reads(run):
    run("""
os.mkfifo("log")
load()
work()
reader = os.open("log", os.O_RDONLY | os.O_NONBLOCK)
warn()
told = os.read(reader, 65536).decode().splitlines()
assert " of the log were lost" in told[0] and "retnetion" in told[1], told
""", WALFERRY_LOG="./log")


LOCKED = """
tries = "import sqlite3; sqlite3.connect('app.db', timeout=0).execute('BEGIN IMMEDIATE')"
tried = subprocess.run([sys.executable, "-c", tries], capture_output=True, text=True)
assert "database is locked" in tried.stderr, "others may write meanwhile"
assert os.path.getsize("app.db") == size, "the log is written to it"
"""


def test_log_that_is_a_database(run, tmp_path):
    """To open and close it would drop the locks that the process has on it."""
    run("""
db = connect(replica="")
db.execute("CREATE TABLE t (x)")
db.execute("BEGIN IMMEDIATE")
size = os.path.getsize("app.db")
load()
warn()
""" + LOCKED, WALFERRY_LOG_FILE="app.db")
    assert "cannot be written to app.db" in (tmp_path / "err").read_text()


def test_log_that_becomes_a_database(run):
    folder = run("""
load()
work("log")
assert connect("log").execute("PRAGMA integrity_check").fetchall() == [("ok",)]
""", WALFERRY_LOG_FILE="log")
    assert b"walferry INFO" not in (folder / "log").read_bytes()


STDERR = {
    "log": {"WALFERRY_LOG": "stderr"},
    "complaint": {"WALFERRY_LOG_LEVEL": "verbose"},
}
UNREAD = {
    "pipe": """
read, written = os.pipe()
""",
    "socket": """
ends = socket.socketpair()
read, written = (end.fileno() for end in ends)
""",
}


@pytest.mark.parametrize("kind", UNREAD)
@pytest.mark.parametrize("what", STDERR)
def test_reader_of_standard_error_that_is_gone(what, kind, run):
    run("signal.signal(signal.SIGPIPE, signal.SIG_DFL)" + UNREAD[kind] + """
os.dup2(written, 2)
os.close(read)
load()
work()
assert signal.SIGPIPE not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
assert not signal.sigpending()
""" + ("os._exit(0)" if kind == "socket" else ""), **STDERR[what])


def test_signal_of_the_programs_own_stays_pending(run):
    run("""
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPIPE])
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
signal.pthread_kill(__import__("threading").get_ident(), signal.SIGPIPE)
read, written = os.pipe()
os.dup2(written, 2)
os.close(read)
load()
warn()
assert signal.SIGPIPE in signal.sigpending()
os._exit(0)
""", WALFERRY_LOG="stderr")


@pytest.mark.parametrize("kind", UNREAD)
@pytest.mark.parametrize("what", STDERR)
def test_standard_error_that_is_full(what, kind, run):
    run(UNREAD[kind] + """
os.dup2(written, 2)
os.set_blocking(2, False)
try:
    while True:
        os.write(2, bytes(4096))
except BlockingIOError:
    pass
os.set_blocking(2, True)
load()
work()
os.set_blocking(read, False)
def all_that_is_there():
    told = b""
    try:
        while True:
            told += os.read(read, 65536)
    except BlockingIOError:
        return told.replace(bytes(1), b"").decode()
all_that_is_there()
warn()
told = all_that_is_there()
if os.environ.get("WALFERRY_LOG"):
    lost, line = told.splitlines()[:2]
    assert " of the log were lost" in lost and "retnetion" in told, told
assert os.get_blocking(2)
""", **STDERR[what])


# The log is a function in Python, and threads of walferry's have lines for it while Python ends.
ENDS = """
import apsw, os, shutil, sys, threading

lines = []
apsw.config(apsw.SQLITE_CONFIG_LOG, lambda code, text: lines.append(text))
loader = apsw.Connection(":memory:")
loader.enable_load_extension(True)
loader.load_extension(sys.argv[1])
db = apsw.Connection(sys.argv[2])
db.execute("CREATE TABLE t (x)")
for _ in range(20):
    db.execute("INSERT INTO t VALUES (1)")
"""


def test_host_whose_log_is_in_python_ends_well_while_lines_come(tmp_path):
    """Python ends a thread that asks for the interpreter then, and about one program of 100 aborted."""
    env = dict(clean_environment(), WALFERRY_LOG_LEVEL="debug", WALFERRY_SYNC_INTERVAL="0",
               WALFERRY_REPLICA="file://%s/{name}" % (tmp_path / "replica"))

    def run(number):
        command = [sys.executable, "-c", ENDS, str(EXTENSION.with_suffix("")), str(tmp_path / ("%d.db" % number))]
        done = subprocess.run(command, env=env, text=True, capture_output=True, timeout=120)
        return done.returncode, done.stderr

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        assert set(pool.map(run, range(120))) == {(0, "")}
