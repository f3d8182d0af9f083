"""What the server scripts beside this file share. Standard library only, Python 3.9 or later.

Each script takes one action and the folder of one server:

    python3 NAME.py start  --dir DIR --install CACHE    install if needed, start, wait, print KEY=VALUE
    python3 NAME.py status --dir DIR                    exit code 0 running, 3 not
    python3 NAME.py stop   --dir DIR                    end that server and nothing else

DIR holds `log`, `env` (the printed lines) and `pid`. A server listens on 127.0.0.1 only and lives
in a session of its own, so it outlives the script: whoever starts it stops it.
"""

import argparse
import contextlib
import datetime
import fcntl
import hashlib
import hmac
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse


class StartFailed(Exception):
    """The server did not come up; worth another try with other ports."""


def say(text):
    print(text, file=sys.stderr, flush=True)


def take_ports(count):
    """Ports the kernel calls free; all are held until all are known, so they differ."""
    held = []
    try:
        for _ in range(count):
            sock = socket.socket()
            held.append(sock)
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in held]
    finally:
        for sock in held:
            sock.close()


def lack_of_room(folder, least=1 << 30):
    """What is wrong with the room on a folder's disk for a server's data; nothing if there is enough: `least`
    bytes, and two hundredths of the disk, the double of what SeaweedFS wants."""
    disk = shutil.disk_usage(folder)
    least = max(least, disk.total // 50)
    if disk.free >= least:
        return None
    return "%s has %d MB free, and a server there needs %d MB: remove something, or set TMPDIR to another disk" % (
        folder, disk.free >> 20, least >> 20)


# ---- installation ----------------------------------------------------------------------------


def venv(install, name, requirements):
    """A virtual environment with pinned packages, made once; returns its folder of programs."""
    root = os.path.join(install, name)
    stamp = os.path.join(root, "requirements")
    wanted = "\n".join(requirements)
    os.makedirs(install, exist_ok=True)
    with open(root + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (os.path.exists(stamp) and open(stamp).read() == wanted):
            say("installing %s" % " ".join(requirements))
            shutil.rmtree(root, ignore_errors=True)
            checked([sys.executable, "-m", "venv", root])
            pip = [root + "/bin/python", "-m", "pip", "install", "-q", "--retries", "5",
                   "--disable-pip-version-check"]
            checked(pip + list(requirements))
            with open(stamp, "w") as out:
                out.write(wanted)
    return root + "/bin"


def checked(command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit("%s failed:\n%s" % (" ".join(command), done.stdout[-3000:]))


# ---- one server process ----------------------------------------------------------------------


class Server:
    """The process recorded in a folder. A pid alone may be reused, so its start time is kept too."""

    def __init__(self, folder):
        self.folder = folder
        self.process = None

    def path(self, name):
        return os.path.join(self.folder, name)

    def launch(self, command, env):
        with open(self.path("log"), "ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            env=dict(os.environ, **env), cwd=self.folder,
                                            start_new_session=True)
        with open(self.path("pid"), "w") as out:
            out.write("%d %s\n" % (self.process.pid, proc_stat(self.process.pid)[1]))

    def await_ready(self, probe, seconds=60):
        """Asks until `probe` answers true; a server that ends meanwhile ends the waiting."""
        deadline, last = time.monotonic() + seconds, "no answer"
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise StartFailed("exit code %s\n%s" % (self.process.returncode, self.log_tail()))
            try:
                if probe():
                    return
            except (OSError, http.client.HTTPException) as error:
                last = repr(error)
            time.sleep(0.05)
        self.stop()
        raise StartFailed("not ready in %ds (%s)\n%s" % (seconds, last, self.log_tail()))

    def publish(self, env):
        text = "".join("%s=%s\n" % item for item in env.items())
        with open(self.path("env"), "w") as out:
            out.write(text)
        sys.stdout.write(text)
        sys.stdout.flush()

    def log_tail(self):
        with contextlib.suppress(OSError), open(self.path("log"), errors="replace") as log:
            return log.read()[-2000:]
        return ""

    def pid(self):
        try:
            with open(self.path("pid")) as recorded:
                pid, started = recorded.read().split()
        except (OSError, ValueError):
            return None
        state, now = proc_stat(int(pid))
        return int(pid) if state not in (None, "Z") and now == started else None

    def stop(self):
        pid = self.pid()
        if pid is not None:
            for number, grace in ((signal.SIGTERM, 15), (signal.SIGKILL, 15)):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, number)
                if self.gone(grace):
                    break
        with contextlib.suppress(OSError):
            with open(self.path("leftovers")) as names:
                for name in names.read().split():
                    with contextlib.suppress(OSError):
                        os.remove(name)
        for name in ("pid", "leftovers"):
            with contextlib.suppress(OSError):
                os.remove(self.path(name))

    def gone(self, seconds):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process is not None:
                self.process.poll()
            if self.pid() is None:
                return True
            time.sleep(0.05)
        return False


def proc_stat(pid):
    """State letter and start time of a process, from /proc."""
    try:
        with open("/proc/%d/stat" % pid) as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return None, None


# ---- requests --------------------------------------------------------------------------------


def request(method, url, body=b"", headers=None):
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
    try:
        target = (parts.path or "/") + ("?" + parts.query if parts.query else "")
        connection.request(method, target, body=body or None, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def signed(method, url, key, secret, body=b"", service="s3", headers=None):
    """One request with an AWS signature (version 4); enough to set a server up and probe it."""
    parts = urllib.parse.urlsplit(url)
    stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    digest = hashlib.sha256(body).hexdigest()
    sent = {"host": parts.netloc, "x-amz-date": stamp, "x-amz-content-sha256": digest}
    sent.update(headers or {})
    names = sorted(sent)
    canonical = [method, parts.path or "/", parts.query]
    canonical += ["%s:%s" % (name, sent[name]) for name in names]
    canonical += ["", ";".join(names), digest]
    scope = "/".join((stamp[:8], "us-east-1", service, "aws4_request"))
    sent["authorization"] = "AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%s, Signature=%s" % (
        key, scope, ";".join(names), signature("\n".join(canonical), scope, stamp, secret))
    return request(method, url, body, sent)


def signature(canonical, scope, stamp, secret):
    """The signature (version 4) of a canonical request."""
    text = "\n".join(("AWS4-HMAC-SHA256", stamp, scope,
                      hashlib.sha256(canonical.encode()).hexdigest()))
    chain = ("AWS4" + secret).encode()
    for part in scope.split("/") + [text]:
        chain = hmac.new(chain, part.encode(), hashlib.sha256).digest()
    return chain.hex()


# ---- command line ----------------------------------------------------------------------------


def main(about, install, start, arguments=()):
    """Runs one action. `install(cache)` returns what `start(server, installed, options)` needs."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("action", choices=("install", "start", "status", "stop"))
    parser.add_argument("--dir", help="folder of this server")
    parser.add_argument("--install", default=".cache/servers", help="folder of installed packages")
    for flags, settings in arguments:
        parser.add_argument(flags, **settings)
    options = parser.parse_args()
    if options.action == "install":
        install(os.path.abspath(options.install))
        return
    if not options.dir:
        parser.error("--dir is needed")
    server = Server(os.path.abspath(options.dir))
    if options.action == "stop":
        server.stop()
    elif options.action == "status":
        pid = server.pid()
        print("running, pid %d" % pid if pid else "not running")
        sys.exit(0 if pid else 3)
    else:
        if server.pid():
            raise SystemExit("%s: already running; stop it first" % server.folder)
        installed = install(os.path.abspath(options.install))
        for attempt in (1, 2, 3):
            shutil.rmtree(server.folder, ignore_errors=True)
            os.makedirs(server.folder)
            try:
                start(server, installed, options)
                return
            except StartFailed as failure:
                say("start %d of 3 failed: %s" % (attempt, failure))
        sys.exit(1)
