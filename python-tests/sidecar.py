"""`walferry replicate` as a test runs it: with a service manager that listens, and a log."""

import itertools
import json
import os
import queue
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time

from harness import PROGRAM, clean_environment, walferry

NUMBERS = itertools.count()


class Sidecar:
    """A running `walferry replicate`."""

    def __init__(self, folder, database, url, *arguments, env=None, sync="20ms", wait=True, stdin=None, **how):
        number = next(NUMBERS)
        self.log, self.told = folder / ("sidecar%d.log" % number), queue.Queue()
        self.ready = False
        address = str(folder / ("notify%d" % number))
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        settings = {"NOTIFY_SOCKET": address, "WALFERRY_SYNC_INTERVAL": sync, "WALFERRY_LOG_LEVEL": "debug"}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [str(PROGRAM), "replicate", *map(str, arguments),
                 *(str(word) for word in (database, url) if word)],
                stdin=stdin or subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
                env=dict(clean_environment(), **settings, **(env or {})), **how)
        threading.Thread(target=self.listen, daemon=True).start()
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self):
        if not self.ready:
            self.wait_for("READY=1")
        self.ready = True

    def listen(self):
        while True:
            got = self.socket.recv(1000).decode()
            if not got:
                return
            self.told.put(got)

    def wait_for(self, state, seconds=60):
        """Until the service manager is told this."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if self.told.get(timeout=0.2) == state:
                    return
            except queue.Empty:
                assert self.process.poll() is None, "it has ended: %s" % self.said()
        raise AssertionError("not told %s in %d s: %s" % (state, seconds, self.said()))

    def wait_until_said(self, text, seconds=60):
        deadline = time.monotonic() + seconds
        while text not in self.said():
            assert time.monotonic() < deadline, "%r was not said: %s" % (text, self.said())
            time.sleep(0.01)

    def said(self):
        return self.log.read_text()

    def complaints(self):
        """Warnings and errors. A writer without pauses may overwrite what is left of a WAL before it is
        read, if the machine is busy with other things: that it is compared once is no mistake."""
        said = [line for line in self.said().splitlines() if " WARN: " in line or " ERROR: " in line]
        late = next((line for line in said if "begun anew past the gate" in line), None)
        return [line for line in said if line is not late]

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self, number=signal.SIGTERM):
        """Ends in order: what is committed is shipped. Its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError("it does not end: %s" % self.said()) from None


def plain(database, timeout=20):
    """A connection of an ordinary program."""
    db = sqlite3.connect(database, timeout=timeout, isolation_level=None)
    db.execute("PRAGMA synchronous=NORMAL")
    return db


def begin(database, *statements):
    """A database in WAL mode, and a connection to it."""
    db = plain(database)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    for statement in statements:
        db.execute(statement)
    return db


def insert(db, number, size=100):
    for _ in range(number):
        db.execute("INSERT INTO t (x) VALUES (randomblob(%d))" % size)


def wait_for(what, why, seconds=60):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, why()
        time.sleep(0.01)


def generation(database):
    """Salts of the WAL: how often it was begun anew."""
    with open(str(database) + "-wal", "rb") as wal:
        return int.from_bytes(wal.read(20)[16:20], "big")


def synced(database, replica):
    """Asks whoever ships to ship now; the TXID."""
    done = walferry("sync", database, "--replica", replica.url, "--json", env=replica.env)
    return json.loads(done.stdout)["txid"]


def quoted(script):
    return "%s -c %s" % (sys.executable, shlex.quote(script))
