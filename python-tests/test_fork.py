"""fork() in a process that replicates: parent and child go on, each with connections of its own.

Each test is a program of its own, run as a user would run it. The rule that SQLite makes is kept: no
connection is used on the other side of a fork.
"""

import os
import signal
import subprocess
import sys
import urllib.request

import pytest

from harness import (CACHE, EXTENSION, ROOT, assert_restores, clean_environment, full_images)
from test_outages import misfortune, misfortune_library  # noqa: F401 (fixtures)
from test_processes import until

# What all programs begin with. `commit` counts what it did into the table itself.
PRELUDE = """
import concurrent.futures, json, multiprocessing, os, signal, sqlite3, subprocess, sys, threading, time
DATABASE = os.environ["DATABASE"]

def load():
    loader = sqlite3.connect(":memory:")
    loader.enable_load_extension(True)
    loader.load_extension(os.environ["EXTENSION"])
    return loader

def connect():
    db = sqlite3.connect(DATABASE, timeout=60, isolation_level=None, check_same_thread=False)
    # SQLite does not wait where several processes switch a new database to WAL mode at once.
    while True:
        try:
            db.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError as error:
            assert "locked" in str(error), error
    db.execute("PRAGMA synchronous=NORMAL")
    db.execute("PRAGMA wal_autocheckpoint=50")
    db.execute("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, w, x)")
    return db

def write(db, who, count):
    for _ in range(count):
        db.execute("INSERT INTO t (w, x) VALUES (?, randomblob(300))", (who,))

def sync(db):
    return db.execute("SELECT walferry_sync(60000)").fetchone()[0]

def child(body, *arguments):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            body(*arguments)
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException as error:
            print("child %d: %r" % (os.getpid(), error), file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    return pid

def join(*pids):
    for pid in pids:
        _, status = os.waitpid(pid, 0)
        assert status == 0, "child %d: %d" % (pid, status)

def write_in_child(who, count=50):
    db = connect()
    write(db, who, count)
    sync(db)
    db.close()
"""


@pytest.fixture
def program(replica, tmp_path):
    """Runs a program; fails unless it ends well."""

    def run(text, *arguments, wait=True, seconds=240, env=None):
        path = tmp_path / "program.py"
        path.write_text(PRELUDE + text)
        settings = dict(
            clean_environment(), DATABASE=str(tmp_path / "app.db"), WALFERRY_REPLICA=replica.url,
            EXTENSION=str(EXTENSION.with_suffix("")), WALFERRY_SYNC_INTERVAL="20ms",
            WALFERRY_LOG_FILE=str(tmp_path / "walferry.log"))
        settings.update(env or {})
        settings = {name: value for name, value in settings.items() if value is not None}
        with open(tmp_path / "program.err", "w") as errors:
            started = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", str(path), *arguments], text=True,
                env=settings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        if not wait:
            return started
        try:
            said, _ = started.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            # Its children too may hang: their stacks say where.
            subprocess.run(["pkill", "-ABRT", "-P", str(started.pid)])
            started.send_signal(signal.SIGABRT)
            started.wait()
            raise AssertionError("it hangs\n" + (tmp_path / "program.err").read_text()) from None
        errors = (tmp_path / "program.err").read_text()
        assert started.returncode == 0, "exit %d\n%s" % (started.returncode, errors)
        return said

    return run


@pytest.fixture
def arrived(new_host, replica, tmp_path):
    """Checks that the replica has the database, with so many rows, and was sent it once."""

    def check(expected):
        # What a child that just ended left behind is shipped by whoever opens the database next.
        host = new_host("system", replica)
        host.open(tmp_path / "app.db")
        assert host.value("SELECT count(*) FROM t") == expected
        host.sync()
        assert_restores(replica, tmp_path / "app.db", tmp_path)
        assert len(full_images(replica)) == 1, full_images(replica)
        log = (tmp_path / "walferry.log").read_text()
        assert "internal error" not in log and "page table does not" not in log, log

    return check


WHEN = {
    "after load": "load()",
    "after a close": "load(); db = connect(); write(db, 'parent', 50); db.close()",
    "after a sync": "load(); db = connect(); write(db, 'parent', 50); sync(db); db.close()",
    "kept open": "load(); db = connect(); write(db, 'parent', 50)",
}


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)", "exec", "killed"])
def test_fork(when, end, program, arrived):
    ends = {
        "exec": "os.execv(sys.executable, [sys.executable, __file__, 'exec'])",
        "killed": "os.kill(os.getpid(), signal.SIGTERM)",
    }
    program("""
def body(number):
    db = connect()
    write(db, "child %d" % number, 50)
    END

if sys.argv[1:] == ["exec"]:
    load()
    write_in_child("after exec")
    sys.exit(0)
WHEN
pids = [child(body, number) for number in range(4)]
kept = "KEPT"
for number in range(20) if kept else ():
    write(db, "beside", 5)
    os.system("true")
for pid in pids:
    _, status = os.waitpid(pid, 0)
    assert status == (signal.SIGTERM if "END".startswith("os.kill") else 0), status
if not kept:
    db = connect()
write(db, "last", 1)
sync(db)
state = json.loads(db.execute("SELECT walferry_status()").fetchone()[0])
assert len(state) == 1, state
""".replace("WHEN", WHEN[when]).replace("END", ends.get(end, end))
            .replace("KEPT", "yes" if when == "kept open" else ""))
    parent = 0 if when == "after load" else 50
    children = 4 * (100 if end == "exec" else 50)
    beside = 100 if when == "kept open" else 0
    arrived(parent + children + beside + 1)


def test_what_the_parent_writes_last_is_shipped_though_its_child_stood_by(program, replica, tmp_path):
    """multiprocessing ends its children with os._exit(): they do not say that they are gone."""
    program("""
def work():
    db = connect()
    write(db, "child", 10)
    while json.loads(db.execute("SELECT walferry_status()").fetchone()[0])[0]["state"] != "standby":
        time.sleep(0.01)

if __name__ == "__main__":
    load()
    db = connect()
    write(db, "parent", 10)
    sync(db)
    worker = multiprocessing.get_context("fork").Process(target=work)
    worker.start()
    worker.join()
    assert worker.exitcode == 0, worker
    write(db, "parent", 10)
    db.close()
""", env={"WALFERRY_SYNC_INTERVAL": "1h"})
    assert_restores(replica, tmp_path / "app.db", tmp_path)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(method, program, arrived):
    program("""
def work(number):
    load()
    write_in_child("worker %d" % number)
    return number

if __name__ == "__main__":
    load()
    db = connect()
    write(db, "parent", 20)
    context = multiprocessing.get_context("METHOD")
    workers = [context.Process(target=work, args=(number,)) for number in range(3)]
    for worker in workers:
        worker.start()
    write(db, "parent", 20)
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0, worker
    with context.Pool(2) as pool:
        assert sorted(pool.map(work, range(4))) == [0, 1, 2, 3]
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        assert sorted(pool.map(work, range(4))) == [0, 1, 2, 3]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        assert sorted(pool.map(work, range(4))) == [0, 1, 2, 3]
    sync(db)
""".replace("METHOD", method))
    arrived(40 + (3 + 4 + 4 + 4) * 50)


def test_forks_while_the_first_image_is_read(program, arrived):
    """The walk begins anew after each fork, and ends when there are none."""
    program("""
plain = sqlite3.connect(DATABASE, isolation_level=None)
plain.executescript("PRAGMA journal_mode=WAL; CREATE TABLE t (id INTEGER PRIMARY KEY, w, x)")
plain.execute("BEGIN")
for _ in range(60):
    plain.execute("INSERT INTO t (w, x) VALUES ('big', randomblob(1000000))")
plain.execute("COMMIT")
plain.close()
load()
db = connect()

def images():
    return json.loads(db.execute("SELECT walferry_status()").fetchone()[0])[0]["images"]

forks = 0
while forks < 40 and images() == 0:
    time.sleep(0.01 * (forks % 5))
    join(child(os.getpid))
    write(db, "parent", 1)
    forks += 1
join(child(lambda: write_in_child("child", 10)))
db.execute("DELETE FROM t WHERE w = 'parent'")
sync(db)
assert forks >= 3, forks
""")
    arrived(70)


@pytest.mark.parametrize("how", ["os._exit", "exec", "subprocess", "system"])
def test_forks_while_a_thread_writes(how, program, arrived):
    """The thread is in the middle of SQLite at the fork, so that the child must not use it: it ends
    or becomes another program."""
    rounds = 40
    program("""
if sys.argv[1:] == ["exec"]:
    load()
    write_in_child("another program", 5)
    sys.exit(0)
load()
db = connect()
stop, written = threading.Event(), 0

def keep_writing():
    global written
    own = connect()
    while not stop.is_set():
        write(own, "thread", 1)
        written += 1
    own.close()

thread = threading.Thread(target=keep_writing)
thread.start()
ACTIONS = {
    "os._exit": lambda: join(child(int)),
    "exec": lambda: join(child(os.execv, sys.executable, [sys.executable, __file__, "exec"])),
    "subprocess": lambda: subprocess.run([sys.executable, __file__, "exec"], check=True,
                                         preexec_fn=os.getpid),
    "system": lambda: os.system("exit 0"),
}
for round_ in range(ROUNDS):
    ACTIONS["HOW"]()
    write(db, "parent", 1)
stop.set()
thread.join()
db.execute("DELETE FROM t WHERE w = 'thread'")
sync(db)
assert written > 10, written
""".replace("ROUNDS", str(rounds)).replace("HOW", how))
    arrived(rounds * (6 if how in ("exec", "subprocess") else 1))


def test_a_child_does_not_hold_the_shippers_place(program, new_host, replica, tmp_path):
    """The parent is killed while a child lives on that never opened anything."""
    parent = program("""
load()
db = connect()
write(db, "parent", 50)
sync(db)
pid = child(lambda: sys.stdin.read())
write(db, "parent", 50)
print(pid, flush=True)
sys.stdin.read()
""", wait=False)
    try:
        child = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        host = new_host("apsw", replica)
        host.open(tmp_path / "app.db")
        host.sql("INSERT INTO t (w) VALUES ('next')")
        host.sync()
        assert host.status(tmp_path / "app.db")["shipper"] is None
        with open("/proc/%d/stat" % child) as stat:
            assert stat.read().split()[2] != "Z", "the child was to live on"
        assert not [link for link in links_of(child) if link.endswith("-walferry/lock")]
    finally:
        parent.stdin.close()
        parent.stdout.close()
    assert_restores(replica, tmp_path / "app.db", tmp_path)
    assert len(full_images(replica)) == 1


def links_of(pid):
    folder = "/proc/%d/fd" % pid
    return [os.readlink(folder + "/" + name) for name in os.listdir(folder)]


def test_connections_inherited_by_a_child_do_no_harm(program, arrived):
    """A child that closes what it inherited, as the end of an interpreter does."""
    program("""
load()
db = connect()
write(db, "parent", 50)
for _ in range(5):
    pid = os.fork()
    if pid == 0:
        db.close()
        sys.exit(0)
    join(pid)
    write(db, "parent", 10)
sync(db)
""")
    arrived(100)


def test_a_child_opens_again_what_it_inherited_and_closed(program, arrived):
    program("""
load()
db, other = connect(), connect()
write(db, "parent", 50)
for _ in range(5):
    pid = os.fork()
    if pid == 0:
        db.close()
        write_in_child("child", 10)
        own = connect()
        other.close()
        write_in_child("child", 10)
        write(own, "child", 10)
        sync(own)
        os._exit(0)
    write(db, "parent", 10)
    join(pid)
sync(db)
""")
    arrived(250)


APPLICATION = PRELUDE + """
load()
start = connect()  # what an application may do while it is loaded, before the fork
write(start, "preload", 20)
KEEP
local = threading.local()

def application(environ, start_response):
    if not hasattr(local, "db"):
        local.db = connect()
    write(local.db, "worker", 1)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
"""


@pytest.mark.parametrize("keep", ["", "start.close()"], ids=["kept open", "closed"])
def test_gunicorn_with_preload(keep, replica, arrived, tmp_path):
    (tmp_path / "served.py").write_text(APPLICATION.replace("KEEP", keep))
    socket = tmp_path / "address"
    log = tmp_path / "gunicorn.log"
    with open(log, "w") as errors:
        server = subprocess.Popen(
            [str(CACHE / "venv" / "bin" / "gunicorn"), "--preload", "--workers", "3", "--bind",
             "127.0.0.1:0", "--no-control-socket", "--log-file", "-", "--chdir", str(tmp_path),
             "served:application"],
            stdout=errors, stderr=errors, cwd=ROOT, env=dict(
                clean_environment(), DATABASE=str(tmp_path / "app.db"), EXTENSION=str(
                    EXTENSION.with_suffix("")), WALFERRY_REPLICA=replica.url,
                WALFERRY_LOG_FILE=str(tmp_path / "walferry.log")))
    try:
        url = until(lambda: listening(server, log), "gunicorn listens")
        pids = {urllib.request.urlopen(url, timeout=60).read() for _ in range(300)}
        assert len(pids) > 1, "one worker did all"
    finally:
        server.terminate()
        server.wait(60)
    arrived(320)


def listening(server, log):
    assert server.poll() is None, log.read_text()
    for line in log.read_text().splitlines():
        if "Listening at: " in line:
            return line.split("Listening at: ")[1].split()[0]
    return None


TENDED = """
load()
uri = "file:%s?tend=on" % DATABASE

def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)

def locks():
    inode = str(os.stat(DATABASE).st_ino)
    fields = [line.split() for line in open("/proc/locks")]
    return [line for line in fields if line[4:5] == [str(os.getpid())] and line[5].split(":")[-1] == inode]

# A connection that has read nothing holds no lock; what has one is walferry's, which looks after the WAL.
reads = sqlite3.connect(uri, uri=True)
reads.execute("PRAGMA journal_mode=WAL").fetchall()
reads.execute("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, w, x)")
sync(reads)
only_open = sqlite3.connect(uri, uri=True)
reads.close()
until(locks)

def reads_in_child():
    db = sqlite3.connect(DATABASE)
    db.execute("SELECT count(*) FROM t").fetchall()
    assert locks(), "the child reads without a lock on the file"
    db.close()

join(child(reads_in_child))
sync(only_open)
"""


def test_child_inherits_no_lock_of_the_connection_that_checkpoints(program, replica, tmp_path):
    """SQLite's notes say that the process has the lock, so that a child's connection takes none of its own."""
    program(TENDED, env={"WALFERRY_URI": "all"})
    assert_restores(replica, tmp_path / "app.db", tmp_path)


# The host's log is a function in Python, which waits for the interpreter's lock. The thread that forks has that.
LOGGED = """
import apsw

HOST = threading.get_ident()
log, reached, forked = [], threading.Event(), threading.Event()

def line(code, text):
    log.append(text)
    if os.getpid() == PID and stops(text) and not reached.is_set():
        reached.set()
        # Given up for this wait, and asked for again behind it.
        forked.wait()

PID = os.getpid()
apsw.config(apsw.SQLITE_CONFIG_LOG, line)

def of_ours():
    return isinstance(threading.current_thread(), threading._DummyThread)

def open_one(name, flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI):
    return apsw.Connection(name, flags=flags)

def load():
    db = open_one(":memory:")
    db.enable_load_extension(True)
    db.load_extension(os.environ["EXTENSION"])

def fork_there(body):
    reached.wait()
    pid = child(body)
    forked.set()
    join(pid)
"""
LINES = {
    "a replica that is taken": """
def stops(text):
    return "have the same replica" in text
load()
first = open_one(DATABASE)
first.execute("CREATE TABLE t (x)")
other = threading.Thread(target=lambda: open_one(DATABASE + "2"))
""",
    "a file that was deleted": """
def stops(text):
    return "was deleted or replaced" in text
load()
first = open_one(DATABASE)
first.execute("CREATE TABLE t (x)")
for name in DATABASE, DATABASE + "-wal", DATABASE + "-shm":
    os.unlink(name)
other = threading.Thread(target=lambda: open_one(DATABASE).execute("CREATE TABLE t (x)"))
""",
}


@pytest.mark.parametrize("what", LINES)
def test_fork_while_the_hosts_log_waits_for_the_thread_that_forks(what, program):
    program(LOGGED + LINES[what] + """
other.start()
fork_there(lambda: open_one(DATABASE + "3").execute("CREATE TABLE t (x)"))
other.join()
""", seconds=60, env={"WALFERRY_LOG_FILE": None})


CHECKPOINTS = """
def misfortune(name, path):
    with open(os.path.join(os.environ["MISFORTUNE"], name + ".new"), "w") as file:
        file.write(path)
    os.rename(file.name, os.path.join(os.environ["MISFORTUNE"], name))

loader = load()
db = connect()
db.execute("PRAGMA wal_autocheckpoint=0")
sync(db)
# Nothing can be captured: the WAL is let go, and copied once it stands still.
misfortune("full", DATABASE + "-walferry")
misfortune("slow", DATABASE + "/")
before = os.stat(DATABASE).st_mtime_ns
write(db, 1, 1500)
while os.stat(DATABASE).st_mtime_ns == before:
    time.sleep(0.01)

def in_child():
    os.unlink(os.path.join(os.environ["MISFORTUNE"], "slow"))
    assert connect().execute("SELECT count(*) FROM t").fetchone() == (1500,)

join(child(in_child))
os.unlink(os.path.join(os.environ["MISFORTUNE"], "full"))
sync(db)
"""


def test_fork_ends_a_checkpoint_of_ours(program, replica, misfortune, tmp_path):
    """It could take longer than a fork waits, and the child opens the database all the same."""
    program(CHECKPOINTS, env=dict(misfortune.env, WALFERRY_SPOOL_CAP="64KB"))
    assert_restores(replica, tmp_path / "app.db", tmp_path)


IN_SQLITE = """
def stops(text):
    return of_ours() and text.startswith("malformed")

def make(name):
    db = open_one(name)
    db.execute("PRAGMA journal_mode=WAL")
    return db

# What reads the schema says that it is broken. A connection that may write to it does not.
broken = make(DATABASE)
broken.execute("CREATE TABLE t (x); CREATE TABLE u (x)")
broken.execute("PRAGMA writable_schema=on")
broken.execute("UPDATE sqlite_master SET sql='nonsense' WHERE name='u'")
broken.close()
load()
db = open_one("file:%s?replica=%s&journal-mode=keep" % (DATABASE, URL))
db.execute("PRAGMA writable_schema=on")
db.execute("INSERT INTO t VALUES (1)")

def refused(name):
    try:
        open_one(name).execute("SELECT count(*) FROM sqlite_master").fetchall()
    except apsw.CantOpenError:
        return True

def in_child():
    os.symlink(DATABASE, DATABASE + "-link"), os.link(DATABASE, DATABASE + "-same")
    for name in "", "-link", "-same":
        assert refused(DATABASE + name), name
    assert refused("file:%s-new?replica=%s-new" % (DATABASE, URL))
    plain = make(DATABASE + "-plain")
    plain.execute("CREATE TABLE t (x)")
    assert any("is not opened" in text for text in log), log
    # Nor does a child of it wait.
    join(child(lambda: refused(DATABASE) or os._exit(2)))

fork_there(in_child)
assert any("a fork did not wait" in text for text in log), log
# The parent goes on.
db.execute("UPDATE sqlite_master SET sql='CREATE TABLE u (x)' WHERE name='u'")
db.execute("INSERT INTO t VALUES (2)")
db.execute("SELECT walferry_sync(60000)").fetchall()
"""


def test_fork_while_sqlite_calls_the_hosts_log_in_a_thread_of_ours(program, replica, tmp_path):
    """It does not wait for ever, and the child opens nothing of which it has inherited locks."""
    program(LOGGED + "URL = %r\n" % replica.url + IN_SQLITE, seconds=120,
            env={"WALFERRY_LOG_FILE": None, "WALFERRY_REPLICA": None})
    assert_restores(replica, tmp_path / "app.db", tmp_path)
