"""What the tests stand on: hosts, replicas, servers, the program, and comparisons."""

import hashlib
import itertools
import json
import os
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import apsw

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests" / "servers"))
from common import lack_of_room  # noqa: E402,F401 (for conftest.py)
CACHE = Path(os.environ.get("WALFERRY_CACHE", ROOT / ".cache"))
EXTENSION = ROOT / "dist" / "walferry.so"
PROGRAM = ROOT / "dist" / "walferry"
LITESTREAM = CACHE / "venv" / "bin" / "litestream"
LITESTREAM_FRAMES = CACHE / "litestream-0.5.11" / "bin" / "litestream"
HOSTS = ("system", "apsw", "pysqlite3")
SYNC_MS = int(os.environ.get("WALFERRY_TEST_SYNC_MS", "60000"))
SEED = int(os.environ.get("WALFERRY_SEED") or random.SystemRandom().randrange(1 << 32))

# The processes among which the tests are shared out have the same.
os.environ["WALFERRY_SEED"] = str(SEED)

# Exit codes of the program.
OK, FAILED, USAGE, NO_REPLICA, CORRUPT, UNREACHABLE, REFUSED = range(7)


def clean_environment():
    """The environment without anything that could lead a test astray."""
    return {name: value for name, value in os.environ.items()
            if not name.startswith(("WALFERRY_", "AWS_", "LITESTREAM_"))}


# ---- hosts -----------------------------------------------------------------------------------


class HostError(Exception):
    """The host's SQLite said no."""


class Pending:
    """An answer that has been asked for."""

    def __init__(self, host):
        self.host, self.answers = host, queue.Queue(1)

    def done(self):
        return not self.answers.empty()

    def result(self, seconds=180):
        try:
            got = self.answers.get(timeout=seconds)
        except queue.Empty:
            raise AssertionError("no answer from %s in %ds\n%s" % (
                self.host, seconds, self.host.whereabouts())) from None
        if "error" in got:
            raise HostError(got["error"])
        return got["ok"]


class Host:
    """A process that uses SQLite through one of the hosts; see driver.py."""

    def __init__(self, kind, env, log):
        python = {"system": "/usr/bin/python3"}.get(kind, sys.executable)
        self.kind, self.log, self.garbled = kind, log, None
        self.numbers, self.waiting, self.lock = itertools.count(1), {}, threading.Lock()
        with open(log, "ab") as errors:
            self.process = subprocess.Popen(
                [python, str(Path(__file__).with_name("driver.py")), kind], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=errors, text=True, env=dict(clean_environment(), **env))
        threading.Thread(target=self.listen, daemon=True).start()

    def __str__(self):
        return "%s host %d (%s)" % (self.kind, self.process.pid, self.log)

    def whereabouts(self):
        """Where each of its threads is: what the kernel says, and Python, at the log's end."""
        said = ["not understood: %.1000s" % self.garbled] if self.garbled else []
        for task in sorted(Path("/proc/%d/task" % self.process.pid).glob("*")):
            try:
                facts = [(task / name).read_text().strip() for name in ("comm", "wchan", "syscall")]
            except OSError as error:  # it has just ended
                facts = [str(error)]
            said.append(" ".join([task.name, *facts]))
        before = os.path.getsize(self.log)
        self.process.send_signal(signal.SIGUSR2)
        deadline = time.monotonic() + 10
        while os.path.getsize(self.log) == before and time.monotonic() < deadline:
            time.sleep(0.1)
        return "\n".join(said) + "\n" + Path(self.log).read_text()[-4000:]

    def listen(self):
        for line in self.process.stdout:
            try:
                got = json.loads(line)
            except ValueError:  # a killed process ends in mid-line
                self.garbled = line
                continue
            with self.lock:
                waiting = self.waiting.pop(got["id"])
            waiting.answers.put(got)
        with self.lock:
            left, self.waiting = self.waiting, None
        for waiting in left.values():
            waiting.answers.put({"error": "%s is gone" % self})

    def ask(self, do, conn="main", **fields):
        """Sends a request and does not wait for its answer."""
        pending, number = Pending(self), next(self.numbers)
        with self.lock:
            if self.waiting is None:
                raise HostError("%s is gone" % self)
            self.waiting[number] = pending
        try:
            self.process.stdin.write(json.dumps(dict(fields, id=number, do=do, conn=conn)) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise HostError("%s is gone: %s" % (self, error)) from None
        return pending

    def call(self, do, conn="main", **fields):
        return self.ask(do, conn, **fields).result()

    def load(self):
        """Loads the extension the way an application does: on any connection, once."""
        self.call("open", "loader", name=":memory:")
        self.call("load", "loader", path=str(EXTENSION.with_suffix("")))
        return self

    def open(self, path, conn="main", **uri):
        self.call("open", conn, name=file_uri(path, **uri) if uri else str(path))
        return self

    def sql(self, *statements, conn="main", args=()):
        """Runs statements; the rows of the last one. Arguments go to every statement."""
        with_args = [{"hex": a.hex()} if isinstance(a, bytes) else a for a in args]
        return self.call("exec", conn, sql=statements, **{"with": with_args})

    def value(self, sql, conn="main"):
        return self.sql(sql, conn=conn)[0][0]

    def sync(self, conn="main"):
        """Everything committed so far is on the replica when this returns; its TXID."""
        return self.value("SELECT walferry_sync(%d)" % SYNC_MS, conn)

    def status(self, path=None, conn="main"):
        """walferry_status(), or its object of one database."""
        every = json.loads(self.value("SELECT walferry_status()", conn))
        if path is None:
            return every
        found = [one for one in every if os.path.realpath(one["database"]) == os.path.realpath(path)]
        assert len(found) == 1, "%s in %s" % (path, every)
        return found[0]

    def facts(self):
        return self.call("process")

    def close(self, conn="main"):
        self.call("close", conn)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def finish(self):
        """The end of a program that closed nothing: standard input ends, the process exits."""
        if self.process.poll() is None:
            self.process.stdin.close()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.returncode


def stop(process):
    """SIGSTOP, until each of its threads has stopped: on a busy machine some go on for a moment."""
    process.send_signal(signal.SIGSTOP)
    deadline = time.monotonic() + 30
    while not all(state_of(task) == "T" for task in Path("/proc/%d/task" % process.pid).iterdir()):
        assert time.monotonic() < deadline, "process %d does not stop" % process.pid
        time.sleep(0.001)


def state_of(task):
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "T"  # a thread that has ended


def file_uri(path, **parameters):
    query = urllib.parse.urlencode({k.replace("_", "-"): v for k, v in parameters.items()},
                                   quote_via=urllib.parse.quote)
    return "file:%s?%s" % (urllib.parse.quote(str(path)), query)


# ---- replicas --------------------------------------------------------------------------------


class DirectoryReplica:
    """A replica in a folder."""

    scheme = "file"

    def __init__(self, folder):
        self.folder = Path(folder)
        self.url = "file://%s" % self.folder
        self.env = self.reading = {}

    def keys(self):
        """Every LTX file: (level, first TXID, last TXID), sorted."""
        return sorted(filter(None, (parse_key(str(p.relative_to(self.folder)))
                                    for p in self.folder.rglob("*.ltx"))))

    def path(self, level, first, last):
        return self.folder / "ltx" / str(level) / ("%016x-%016x.ltx" % (first, last))

    def read(self, level, first, last):
        return self.path(level, first, last).read_bytes()

    def overwrite(self, level, first, last, data):
        """What a store never does: a file with other bytes."""
        self.path(level, first, last).write_bytes(data)

    def remove_all(self):
        shutil.rmtree(self.folder)
        self.folder.mkdir()

    def litestream(self):
        return ("      type: file\n      path: %s\n" % self.folder)

    def litestream_url(self):
        return self.url


class S3Replica:
    """A replica under a prefix of a bucket."""

    scheme = "s3"

    def __init__(self, server, prefix, endpoint=None):
        import boto3
        self.server, self.bucket, self.prefix = server, server["S3_BUCKET"], prefix
        self.endpoint = endpoint or server["S3_ENDPOINT"]
        self.url = "s3://%s/%s" % (self.bucket, prefix)
        self.env = s3_environment(server, self.endpoint)  # of hosts, perhaps through a proxy
        self.reading = s3_environment(server)  # of whoever restores
        self.client = boto3.client(
            "s3", endpoint_url=server["S3_ENDPOINT"], region_name=server["AWS_REGION"],
            aws_access_key_id=server["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=server["AWS_SECRET_ACCESS_KEY"])

    def objects(self):
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self.prefix + "/")
        return [item["Key"] for page in pages for item in page.get("Contents", ())]

    def keys(self):
        return sorted(filter(None, (parse_key(k[len(self.prefix) + 1:]) for k in self.objects())))

    def key(self, level, first, last):
        return "%s/%04x/%016x-%016x.ltx" % (self.prefix, level, first, last)

    def read(self, level, first, last):
        key = self.key(level, first, last)
        return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def overwrite(self, level, first, last, data):
        key = self.key(level, first, last)
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data)

    def remove_all(self):
        for name in self.objects():
            self.client.delete_object(Bucket=self.bucket, Key=name)

    def litestream(self):
        return ("      type: s3\n      bucket: %s\n      path: %s\n      endpoint: %s\n"
                "      region: %s\n      force-path-style: true\n"
                % (self.bucket, self.prefix, self.server["S3_ENDPOINT"], self.server["AWS_REGION"]))

    def litestream_url(self):
        return "%s?endpoint=%s&region=%s&forcePathStyle=true" % (
            self.url, urllib.parse.quote(self.server["S3_ENDPOINT"], safe=""), self.server["AWS_REGION"])


def s3_environment(server, endpoint=None):
    return {
        "AWS_ENDPOINT_URL": endpoint or server["S3_ENDPOINT"],
        "AWS_ACCESS_KEY_ID": server["AWS_ACCESS_KEY_ID"],
        "AWS_SECRET_ACCESS_KEY": server["AWS_SECRET_ACCESS_KEY"],
        "AWS_REGION": server["AWS_REGION"],
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def parse_key(name):
    found = re.fullmatch(r"(?:ltx/(\d)|([0-9a-f]{4}))/([0-9a-f]{16})-([0-9a-f]{16})\.ltx", name)
    if not found:
        return None
    level = int(found[1]) if found[1] else int(found[2], 16)
    return level, int(found[3], 16), int(found[4], 16)


def txids(replica):
    """The TXIDs that can be asked for: where a file ends."""
    return sorted({last for _level, _first, last in replica.keys()})


def full_images(replica):
    """Files that were made of the whole database: level-0 files whose tag says so, and snapshots, but for
    those that were joined of files that are there. When that is done depends on the time of day."""
    found, keys = [], replica.keys()
    for level, first, last in keys:
        if level == 9 and (0, last, last) in keys:
            continue
        header = replica.read(level, first, last)[:100]
        tagged = header[80:82] == b"WF" and header[83] & 1
        if level == 9 or (level == 0 and tagged):
            found.append((level, first, last))
    return found


# ---- servers ---------------------------------------------------------------------------------


class Service:
    """A server of tests/servers, for as long as a test session or a test needs it."""

    def __init__(self, script, folder, *arguments):
        self.script, self.folder = str(ROOT / "tests" / "servers" / script), str(folder)
        done = subprocess.run(
            [sys.executable, self.script, "start", "--dir", self.folder,
             "--install", str(CACHE / "servers"), *arguments], stdout=subprocess.PIPE, text=True)
        assert done.returncode == 0, "%s did not start" % script
        self.env = dict(line.split("=", 1) for line in done.stdout.splitlines())

    def stop(self):
        subprocess.run([sys.executable, self.script, "stop", "--dir", self.folder], check=True)


class FaultProxy(Service):
    """The fault proxy in front of a server."""

    # Paths of files that have one commit or some, and not of those that join them, which are due at any time.
    LOG = "/(ltx/0|0000)/"

    def __init__(self, folder, endpoint):
        super().__init__("fault_proxy.py", folder, "--upstream", endpoint.split("//")[1])
        self.endpoint, self.admin = self.env["PROXY_ENDPOINT"], self.env["PROXY_ADMIN"]

    def ask(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.admin + path, data=data, method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def rule(self, kind, **spec):
        return self.ask("POST", "/rules", dict(spec, kind=kind))["rule"]

    def wait(self, rule, hits=1, seconds=30):
        """Until a rule has acted so often."""
        try:
            self.ask("GET", "/wait?rule=%d&hits=%d&timeout=%d" % (rule, hits, seconds))
        except urllib.error.HTTPError as error:
            raise AssertionError("no request met the rule in %ds: %s" % (
                seconds, error.read().decode())) from None

    def heal(self):
        self.ask("DELETE", "/rules")

    def log(self):
        return self.ask("GET", "/log")


# ---- the program -----------------------------------------------------------------------------


def walferry(*arguments, env=None, code=OK):
    """Runs the program; fails unless it ends with this exit code."""
    done = subprocess.run([str(PROGRAM), *map(str, arguments)], text=True, timeout=600,
                          capture_output=True, stdin=subprocess.DEVNULL,
                          env=dict(clean_environment(), **(env or {})))
    assert done.returncode == code, "walferry %s: exit code %d, not %d\n%s%s" % (
        " ".join(map(str, arguments)), done.returncode, code, done.stdout, done.stderr)
    return done


def restore(replica, output, txid=None, code=OK, timestamp=None):
    """Restores with our program; the path of the output."""
    at = ["--txid", "%016x" % txid] if txid else []
    at += ["--timestamp", timestamp] if timestamp else []
    walferry("restore", "-o", output, *at, replica.url, env=replica.reading, code=code)
    return Path(output)


def litestream_config(folder, replica, database="app.db"):
    config = Path(folder) / "litestream.yml"
    config.write_text("dbs:\n  - path: %s\n    replica:\n%s" % (
        Path(folder) / database, replica.litestream()))
    return config


def litestream_restore(folder, replica, output, txid=None, binary=LITESTREAM, timestamp=None):
    """The same by Litestream, which knows nothing of us."""
    config = litestream_config(folder, replica)
    at = ["-txid", "%016x" % txid] if txid else []
    at += ["-timestamp", timestamp] if timestamp else []
    done = subprocess.run(
        [str(binary), "restore", "-config", str(config), *at, "-o", str(output),
         str(Path(folder) / "app.db")], text=True, capture_output=True, timeout=600,
        env=dict(clean_environment(), **replica.reading))
    assert done.returncode == 0 and Path(output).exists(), done.stdout + done.stderr
    return Path(output)


# ---- comparisons -----------------------------------------------------------------------------


def live_image(path):
    """The pages of a database as a new reader sees them, WAL included; nothing is changed."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    connection.set_busy_timeout(20000)
    try:
        image = connection.serialize("main")
    finally:
        connection.close()
    return image


def assert_same_pages(expected, got, what=""):
    """Two images, page for page, with a message that says which pages differ."""
    if expected == got:
        return
    size = int.from_bytes(expected[16:18], "big")
    size = 65536 if size == 1 else size
    pages = [n + 1 for n in range(max(len(expected), len(got)) // size)
             if expected[n * size:(n + 1) * size] != got[n * size:(n + 1) * size]]
    raise AssertionError("%s: %d and %d bytes, page size %d, differing pages %s" % (
        what, len(expected), len(got), size, pages[:20]))


def assert_restores(replica, database, folder, name="restored.db"):
    """The newest state of the replica is the database, page for page."""
    output = restore(replica, Path(folder) / name)
    assert_same_pages(live_image(database), output.read_bytes(), replica.url)
    check_integrity(output)
    output.unlink()


def check_integrity(path):
    """Opens a copy in memory, so that the file stays as it is."""
    connection = apsw.Connection("file:%s?immutable=1" % urllib.parse.quote(str(path)),
                                 flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
    try:
        found = list(connection.execute("PRAGMA integrity_check"))
    finally:
        connection.close()
    assert found == [("ok",)], found


def rows(path, sql):
    """A query on a restored file, which stays as it is."""
    connection = apsw.Connection("file:%s?immutable=1" % urllib.parse.quote(str(path)),
                                 flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
    try:
        return list(connection.execute(sql))
    finally:
        connection.close()


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# ---- the numbered log of driver.writer() -----------------------------------------------------

LOG_TABLE = "CREATE TABLE log (n INTEGER PRIMARY KEY, body BLOB)"


def payload(seed, number):
    """As in driver.py, which must stand alone."""
    rng = random.Random("%s/%d" % (seed, number))
    return rng.randbytes(rng.choice((10, 200, 3000, 9000)))


def expected_log(seed, number):
    """What table `log` holds after commit `number`, from the rules of driver.writer()."""
    deleted = {n - 50 for n in range(3, number + 1, 3)}
    return {n: payload(seed + "'", n + 7) if n + 7 <= number else payload(seed, n)
            for n in range(1, number + 1) if n not in deleted}


def assert_log_state(path, seed):
    """The file holds a state that `writer` committed, whole; the number of that commit."""
    check_integrity(path)
    if not rows(path, "SELECT 1 FROM sqlite_master WHERE name = 'log'"):
        return 0
    got = dict(rows(path, "SELECT n, body FROM log"))
    number = max(got, default=0)
    expected = expected_log(seed, number)
    assert got.keys() == expected.keys(), "commit %d: rows %s" % (
        number, sorted(got.keys() ^ expected.keys())[:20])
    wrong = [n for n in got if got[n] != expected[n]]
    assert not wrong, "commit %d: wrong content in rows %s" % (number, wrong[:20])
    return number


def journal(path):
    """(last commit that returned, last commit known to be on the replica) of a writer."""
    last = {"done": 0, "acked": 0}
    for line in Path(path).read_text().splitlines():
        word, number = line.split()
        last[word] = int(number)
    return last["done"], last["acked"]
