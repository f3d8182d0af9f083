"""A program that uses SQLite as an application does, told what to do line by line.

    python3 driver.py system|apsw|pysqlite3

Reads JSON requests from standard input, one a line: {"id": N, "conn": NAME, "do": WHAT, ...}. Each
named connection has a thread of its own, so requests to different connections run side by side;
requests to one run in order. Answers, one line each, in the order they come: {"id": N, "ok": ...}
or {"id": N, "error": TEXT}. Needs nothing but Python 3.9 and the SQLite module of its kind.
"""

import faulthandler
import hashlib
import json
import os
import queue
import random
import signal
import sys
import threading
import time

KIND = sys.argv[1]
ANSWERS = threading.Lock()
# What an extension prints must not come between the answers.
OUTPUT = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


# ---- one face for three SQLite modules -------------------------------------------------------


class Connection:
    """A connection in autocommit mode; `run` takes one statement and answers all rows."""

    def __init__(self, name, busy=20000):
        uri = name.startswith("file:")
        if KIND == "apsw":
            import apsw
            self.errors = apsw.Error
            self.raw = apsw.Connection(name, flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
                                       | (apsw.SQLITE_OPEN_URI if uri else 0))
            self.raw.set_busy_timeout(busy)
        else:
            self.errors = module().Error
            self.raw = module().connect(name, uri=uri, timeout=busy / 1000, isolation_level=None,
                                        check_same_thread=False)
        # Not in every build the default; the tests say when they mean something else.
        if busy:
            self.run("PRAGMA synchronous=NORMAL")

    def load(self, path):
        self.raw.enable_load_extension(True)
        self.raw.load_extension(path)

    def run(self, sql, parameters=()):
        return [list(row) for row in self.raw.execute(sql, parameters)]

    def close(self):
        self.raw.close()


def module():
    if KIND == "pysqlite3":
        import pysqlite3
        return pysqlite3
    import sqlite3
    return sqlite3


def version():
    if KIND == "apsw":
        import apsw
        return apsw.sqlite_lib_version()
    return module().sqlite_version


# ---- what a test can ask for -----------------------------------------------------------------


def dump(connection):
    """A digest of everything the database says: schema and rows, in an order of their own."""
    digest = hashlib.sha256()
    tables = connection.run("SELECT name, sql FROM sqlite_master WHERE type IN ('table', 'index')"
                            " AND name NOT LIKE 'sqlite_%' ORDER BY name")
    for name, sql in tables:
        digest.update(repr((name, sql)).encode())
        if sql.upper().startswith("CREATE TABLE"):
            for row in connection.run('SELECT * FROM "%s" ORDER BY rowid' % name):
                digest.update(repr(row).encode())
    return digest.hexdigest()


def payload(seed, number):
    """The row that commit `number` of a `writer` inserts; anyone can work it out again."""
    rng = random.Random("%s/%d" % (seed, number))
    return rng.randbytes(rng.choice((10, 200, 3000, 9000)))


def writer(connection, seed, journal, wait_every=0, start=1, count=1 << 40, stop=None):
    """Commits numbered rows and notes each in a file, once COMMIT has returned. With `start` 0 it
    shares the table with writers of other processes.

    Commit n inserts row n and deletes row n - 50 now and then, so that what the database must
    hold follows from n alone. A line `acked n` is noted when walferry_wait() has returned.
    """
    log = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number in range(start, start + count):
        if stop and stop.is_set():
            break
        connection.run("BEGIN IMMEDIATE")
        if start == 0:  # others write too: the next number is what the table says
            number = (connection.run("SELECT max(n) FROM log")[0][0] or 0) + 1
        connection.run("INSERT INTO log (n, body) VALUES (?, ?)", (number, payload(seed, number)))
        if number % 3 == 0:
            connection.run("DELETE FROM log WHERE n = ?", (number - 50,))
        connection.run("UPDATE log SET body = ? WHERE n = ?",
                       (payload(seed + "'", number), number - 7))
        connection.run("COMMIT")
        os.write(log, b"done %d\n" % number)
        if wait_every and number % wait_every == 0:
            try:
                connection.run("SELECT walferry_wait(20000)")
            except connection.errors:
                if start:
                    raise
                continue  # the store is away for longer than this
            os.write(log, b"acked %d\n" % number)
    os.close(log)


def churn(connection, rows, seed, seconds):
    """One-row transactions as fast as they go; how many, and the seconds that the longest took."""
    rng, commits, longest = random.Random(seed), 0, 0.0
    end = time.monotonic() + seconds
    before = time.monotonic()
    while before < end:
        connection.run("UPDATE t SET x = ? WHERE id = ?",
                       ("%0200d" % commits, rng.randrange(rows) + 1))
        now = time.monotonic()
        longest, before, commits = max(longest, now - before), now, commits + 1
    return [commits, longest]


def inserter(connection, name, journal, count=1 << 40, start=1, stop=None):
    """Commits the rows (name, 1), (name, 2), ... and notes each in a file once it is committed.

    Any number of these write to one database at once; what has to be in it follows from the notes.
    """
    log = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number in range(start, start + count):
        if stop and stop.is_set():
            break
        connection.run("INSERT INTO t (w, n, x) VALUES (?, ?, ?)",
                       (name, number, payload(name, number)))
        os.write(log, b"done %d\n" % number)
    os.close(log)


def process():
    """What the kernel says of this process: names of its threads, its memory."""
    threads = []
    for task in os.listdir("/proc/self/task"):
        try:
            with open("/proc/self/task/%s/comm" % task) as comm:
                threads.append(comm.read().strip())
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            pass
    with open("/proc/self/status") as status:
        memory = [line.split()[1] for line in status if line.startswith("VmRSS:")]
    return {"threads": sorted(threads), "rss_kib": int(memory[0]), "sqlite": version(),
            "pid": os.getpid()}


class Worker(threading.Thread):
    """Owns one connection."""

    def __init__(self, name):
        super().__init__(name=name[:15], daemon=True)
        self.requests, self.connection, self.stop = queue.Queue(), None, threading.Event()

    def ask(self, request):
        """A stop that comes before the worker has begun is for this request too."""
        self.stop.clear()
        self.requests.put(request)

    def run(self):
        while True:
            request = self.requests.get()
            try:
                answer(request["id"], ok=self.act(request))
            except Exception as error:  # every failure is the asker's to judge
                answer(request["id"], error="%s: %s" % (type(error).__name__, error))

    def act(self, request):
        what = request["do"]
        if what == "open":
            self.connection = Connection(request["name"], request.get("busy", 20000))
            return True
        if what == "load":
            self.connection.load(request["path"])
            return True
        if what == "exec":
            rows = []
            for statement in request["sql"]:
                rows = self.connection.run(statement, [decoded(p) for p in request.get("with", ())])
            return [[encoded(value) for value in row] for row in rows]
        if what == "fill":  # many transactions, without a message for each
            rng = random.Random(request["seed"])
            for _ in range(request["times"]):
                self.connection.run(request["sql"], (rng.randbytes(request["size"]),))
            return True
        if what == "attempts":  # the same of an application that goes on after an error; how many failed
            rng, failed = random.Random(request["seed"]), 0
            for _ in range(request["times"]):
                try:
                    self.connection.run(request["sql"], (rng.randbytes(request["size"]),))
                except self.connection.errors:
                    failed += 1
            return failed
        if what == "become":  # another user, as a daemon does that has opened its files
            os.setgid(request["user"])
            os.setuid(request["user"])
            return True
        if what == "dump":
            return dump(self.connection)
        if what == "image":  # the pages, as this connection reads them
            return encoded(self.connection.raw.serialize("main"))
        if what == "writer":
            writer(self.connection, *request["args"], stop=self.stop)
            return True
        if what == "churn":
            return churn(self.connection, *request["args"])
        if what == "inserter":
            inserter(self.connection, *request["args"], stop=self.stop)
            return True
        if what == "close":
            self.connection.close()
            self.connection = None
            return True
        raise ValueError("unknown request %r" % what)


def encoded(value):
    return {"hex": value.hex()} if isinstance(value, bytes) else value


def decoded(value):
    return bytes.fromhex(value["hex"]) if isinstance(value, dict) else value


def answer(number, **what):
    line = json.dumps(dict(what, id=number)) + "\n"
    with ANSWERS:
        OUTPUT.write(line)
        OUTPUT.flush()


def main():
    faulthandler.register(signal.SIGUSR2)  # a host that does not answer says where it is
    workers = {}
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "process":
            answer(request["id"], ok=process())
        elif request["do"] == "stop":
            workers[request["conn"]].stop.set()
            answer(request["id"], ok=True)
        else:
            name = request["conn"]
            if name not in workers:
                workers[name] = Worker(name)
                workers[name].start()
            workers[name].ask(request)


if __name__ == "__main__":
    main()
