#!/usr/bin/env python3
"""Random work of real SQLite in many versions, which looks for commits that walferry loses.

    torture.py --minutes 60 [--seed N] [--round N] [--hosts 3.40.1,3.54.1]

It needs Python alone, what `make build` made, and the hosts of tests/scripts/hosts.sh. How it works is in
docs/torture.md.
"""

import argparse
import collections
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("WALFERRY_CACHE", ROOT / ".cache"))
HOSTS = CACHE / "hosts"
EXTENSION = ROOT / "dist" / "walferry.so"
PROGRAM = ROOT / "dist" / "walferry"
TRIED_WITHOUT = 60  # rounds without walferry, to see whether SQLite is broken by itself
STATES_CHECKED = 45  # of one round; all, if there are no more

# Built without pread: a process and its forked child share the position of each file, and plain SQLite reads and
# writes in the wrong place after a fork. walferry keeps the two apart, so its processes fork there too.
WITHOUT_PREAD = {"3.35.4", "3.41.2"}

LOST, SEEN = "acknowledged and lost", "seen, told and lost"
JUDGE_SEEN = True  # whether the second is red, or only counted

# What a thread does, and how often; see host.c.
WEIGHTS = {"tx": 40, "spill": 3, "read": 6, "ckpt": 5, "close": 6, "sync": 4, "vacuum": 0, "mode": 0,
           "excl": 0, "sleep": 20, "pause": 1, "ddl": 1}
# Other lines of the journals.
NOTES = {"f": "forks", "n": "changes of the limit on descriptors", "m": "times in another journal mode",
         "l": "exclusive sessions"}
# What a round is about. Everything else is drawn for each process.
THEMES = ("beside", "beside", "takeover", "pool", "fork", "fork", "starved", "modes", "alone", "alone", "spill", "sidecar",
          "anything", "anything")
# A writer without walferry that begins the WAL anew all the time, while walferry's guard is down beside it.
HOT = {"tx": 100, "spill": 0, "read": 1, "ckpt": 3, "close": 0, "sync": 0, "vacuum": 0, "mode": 0, "excl": 0,
       "sleep": 20, "pause": 1, "ddl": 0}
WITH_HOT = {"beside": 1, "takeover": 1, "fork": 0.7, "starved": 0.7, "sidecar": 0.3}


class Red(Exception):
    """The round has failed: a class of failures, and what it was here."""

    def __init__(self, kind, what):
        super().__init__("%s: %s" % (kind, what))
        self.kind = kind


def clean_environment():
    return {name: value for name, value in os.environ.items()
            if not name.startswith(("WALFERRY_", "AWS_", "LITESTREAM_"))}


def find_hosts(wanted=None):
    """(version, path) of each host, oldest first."""
    found = {}
    for path in sorted(HOSTS.glob("*/host")):
        version = subprocess.run([path, "version"], capture_output=True, text=True, check=True).stdout.strip()
        if not wanted or version in wanted or path.parent.name in wanted:
            found[version] = path
    return sorted(found.items(), key=lambda item: [int(part) for part in item[0].split(".")])


class Process:
    """A host at work, or the sidecar."""

    def __init__(self, round_, name, command, env, session=True):
        self.name, self.killed, self.stopped = name, False, False
        self.log = round_.folder / (name + ".err")
        with open(self.log, "ab") as errors:
            self.process = subprocess.Popen(
                list(map(str, command)), stdin=subprocess.DEVNULL, stdout=errors, stderr=errors,
                env=dict(clean_environment(), **env), start_new_session=session)

    def alive(self):
        return self.process.poll() is None

    def send(self, number):
        """To it and its children, in one call: no child outlives it for a moment."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass

    def kill(self):
        if self.alive():
            self.killed = True
        self.send(signal.SIGKILL)
        self.process.wait()

    def whereabouts(self):
        said = []
        for task in sorted(Path("/proc/%d/task" % self.process.pid).glob("*")):
            try:
                said.append(" ".join((task / name).read_text().strip() for name in ("comm", "wchan", "syscall")))
            except OSError:
                pass
        return "; ".join(said)


class Round:
    walferry_takes_part = True

    def __init__(self, seed, number, hosts, folder):
        self.rng = random.Random("%d/%d" % (seed, number))
        self.number, self.hosts, self.folder = number, hosts, folder
        self.database, self.replica = folder / "app.db", folder / "replica"
        self.url = "file://%s" % self.replica
        self.theme = self.rng.choice(THEMES)
        self.processes, self.sidecar, self.count = [], None, 0
        self.began, self.events = time.time(), []
        self.rows = self.rng.choice((60, 150, 150, 400))
        self.levels = self.rng.choice((None, None, "off", "1s,3s"))
        self.facts, self.errors, self.done = (collections.Counter() for _ in range(3))
        self.intended, self.committed, self.acks = set(), set(), []

    def say(self, format_, *args):
        self.events.append("%8.3f %s" % (time.time() - self.began, format_ % args))

    # ---- processes ---------------------------------------------------------------------------

    def environment(self):
        env = {"WALFERRY_REPLICA": self.url, "WALFERRY_LOG_FILE": str(self.folder / "log"),
               "WALFERRY_SYNC_INTERVAL": self.rng.choice(("0", "1ms", "5ms", "5ms", "50ms", "300ms")),
               "WALFERRY_SHUTDOWN_TIMEOUT": self.rng.choice(("0s", "2s")),
               "WALFERRY_AUDIT_INTERVAL": self.rng.choice(("24h", "24h", "1ms")), "WALFERRY_AUDIT_RATE": "1GB"}
        if self.levels:
            env["WALFERRY_LEVELS"] = self.levels
        return env

    def host(self, what, shipping, **settings):
        version, path = self.rng.choice(self.hosts)
        self.count += 1
        name = "%02d-%s-%s%s" % (self.count, what, version,
                                 "" if shipping else "-hot" if settings.get("hot") else "-plain")
        settings.update(seed=self.rng.randrange(1 << 40), writer=self.count)
        if not shipping and version in WITHOUT_PREAD:
            settings.pop("fork", None)
        if shipping and self.walferry_takes_part:
            settings["extension"] = EXTENSION.with_suffix("")
        command = [path, what, self.database, self.folder / (name + ".journal"),
                   *("%s=%s" % item for item in settings.items())]
        self.facts["host %s%s" % (version, "" if shipping else " plain")] += 1
        self.say("%s %s", name, " ".join("%s=%s" % item for item in settings.items()))
        return name, command, self.environment() if shipping else {}

    def once(self, what, shipping, **settings):
        """A host that does one thing; what it says."""
        name, command, env = self.host(what, shipping, **settings)
        try:
            done = subprocess.run(list(map(str, command)), stdin=subprocess.DEVNULL, text=True, timeout=120,
                                  capture_output=True, env=dict(clean_environment(), **env))
        except subprocess.TimeoutExpired:
            raise Red("hang", "%s does not end" % name) from None
        self.say("%s ended with %d: %s", name, done.returncode, (done.stdout + done.stderr).strip())
        return done

    def weights(self):
        rng, theme = self.rng, self.theme
        weights = {name: weight * rng.choice((0.3, 1, 1, 3)) for name, weight in WEIGHTS.items()}
        if theme == "pool" or rng.random() < 0.2:
            weights["close"] *= 4
        if theme == "spill" or rng.random() < 0.1:
            weights["spill"] = 12
        if theme == "modes" or rng.random() < 0.1:
            weights.update(mode=6, close=weights["close"] * 2)
        if theme == "alone" or rng.random() < 0.1:
            weights.update(excl=6, close=weights["close"] * 2)
        if rng.random() < 0.1:
            weights["vacuum"] = 1
        if rng.random() < 0.3:
            weights["pause"] = 6
        return {name: max(1, round(weight)) if weight else 0 for name, weight in weights.items()}

    def start(self, role, seconds):
        rng, shipping = self.rng, role not in ("plain", "hot")
        settings = dict(HOT if role == "hot" else self.weights(), seconds="%.3f" % seconds, rows=self.rows,
                        threads=rng.choice((1, 1, 2, 3)), end=rng.choice(("close", "close", "leave", "exit", "_exit")))
        if role == "hot":
            settings.update(hot=1, threads=1, sleep=rng.choice((10, 100, 400)))
        elif role == "closer":  # few commits, and a guard that is often down
            settings.update(close=60, tx=20, sleep=40, read=2)
        elif self.theme == "fork" or rng.random() < 0.08:
            settings["fork"] = rng.choice((0.05, 0.2, 0.6, 1.5))
            if settings["end"] == "exit":  # its child would live on for a moment, without its locks
                settings["end"] = "close"
        if role != "hot" and (self.theme == "starved" or rng.random() < 0.08):
            settings["emfile"] = rng.choice((0.1, 0.3, 1, 2))
        if shipping and rng.random() < 0.1:
            settings["late"] = 1
        if role != "hot" and rng.random() < (0.5 if self.theme == "spill" else 0.1):
            settings["lazy"] = 1
        if self.theme in ("modes", "alone"):
            settings["threads"] = rng.choice((1, 1, 2))
        name, command, env = self.host("run", shipping, **settings)
        self.processes.append(Process(self, name, command, env))
        return self.processes[-1]

    def start_sidecar(self):
        self.count += 1
        name = "%02d-sidecar" % self.count
        self.say("%s starts", name)
        self.sidecar = Process(self, name, [
            PROGRAM, "replicate", self.database, self.url, "--extension", EXTENSION,
            "--log-file", self.folder / "log", "--set", "sync-interval=" + self.rng.choice(("5ms", "50ms"))], {})

    def end_sidecar(self, number, continued=()):
        """Sends it the signal, and waits for its end. Stopped processes go on in their time meanwhile: one of them may
        have the database locked, which the sidecar rightly calls an error at its end."""
        if not self.sidecar:
            return
        self.say("%s gets signal %d", self.sidecar.name, number)
        if number == signal.SIGKILL:
            self.sidecar.kill()
        else:
            self.sidecar.send(number)
            until = time.monotonic() + 20
            while continued and self.sidecar.alive() and time.monotonic() < until:
                self.wait_until(time.monotonic() + 0.01, continued)
            self.ended(self.sidecar, max(1, until - time.monotonic()))
        self.sidecar = None

    def ended(self, process, seconds):
        """Waits for its end, which must be a good one."""
        try:
            code = process.process.wait(seconds)
        except subprocess.TimeoutExpired:
            where = process.whereabouts()
            raise Red("hang", "%s does not end: %s" % (process.name, where)) from None
        if code and not process.killed:
            raise Red("crash", "%s ended with %d: %s" % (process.name, code, process.log.read_text()[-300:].strip()))

    # ---- a phase: some processes at a time -----------------------------------------------------

    def phase(self, first, final):
        rng = self.rng
        length = rng.uniform(0.6, 2.6)
        wanted, plan = rng.choice((1, 1, 2, 2, 2, 3, 4)), []
        hot = rng.random() < WITH_HOT.get(self.theme, 0.1)
        if hot:
            plan.append((0, rng.random(), "start", ("hot", length)))
            wanted = min(wanted, 2)
        if self.theme in ("modes", "alone") and rng.random() < 0.6:
            wanted = 1  # what these want is refused where others have the database open
        if self.theme == "takeover":
            for _ in range(rng.randint(2, 6)):
                plan.append((rng.random() * length, rng.random(), "start", ("walferry", rng.uniform(0.05, 0.4))))
            wanted = 0
        for n in range(wanted):
            shipping = rng.random() < (0.4 if self.theme == "sidecar" else 0.7) or (first and n == 0)
            role = "walferry" if shipping else "plain"
            if shipping and self.theme == "beside":
                role = rng.choice(("closer", "closer", "walferry"))
            at = 0 if n == 0 else rng.random() * length * 0.6
            plan.append((at, rng.random(), "start", (role, max(0.2, length - at) * rng.uniform(0.5, 1))))
        if self.theme == "sidecar" or rng.random() < 0.1:
            plan.append((rng.random() * length * 0.5, rng.random(), "sidecar", None))
            if rng.random() < 0.5:
                plan.append((rng.uniform(0.5, 1) * length, rng.random(), "no sidecar",
                             rng.choice((signal.SIGTERM, signal.SIGKILL))))
        for _ in range(rng.choice((0, 0, 0, 1, 2))):
            plan.append((rng.random() * length, rng.random(), "kill", None))
        # A process that is stopped with its guard down makes the moment long.
        often = hot and rng.random() < 0.6
        for _ in range(rng.randint(4, 12) if often else rng.choice((0, 0, 0, 1, 2))):
            plan.append((rng.random() * length, rng.random(), "stop", 0.04 if often else rng.choice((0.02, 0.2, 0.7))))
        killed_at_end = rng.random() < (0.5 if not final else 0.3)
        start, continued = time.monotonic(), []
        for at, _, what, how in sorted(plan, key=lambda item: item[:2]):
            self.wait_until(start + at, continued)
            alive = [process for process in self.processes if process.alive()]
            if what == "start":
                self.start(*how)
            elif what == "sidecar":
                self.start_sidecar()
            elif what == "no sidecar":
                self.end_sidecar(how, continued)
            elif alive and what == "kill":
                victim = rng.choice(alive)
                self.say("%s is killed", victim.name)
                victim.kill()
            elif alive and what == "stop":
                guards = [process for process in alive if "hot" not in process.name]
                victim = rng.choice(guards if often and guards else alive)
                self.say("%s stops for %.2f s", victim.name, how)
                victim.send(signal.SIGSTOP)
                continued.append((time.monotonic() + how, victim))
        if killed_at_end:
            self.wait_until(start + length * rng.uniform(0.6, 1), continued)
            self.say("all are killed")
            for process in [*self.processes, *filter(None, [self.sidecar])]:
                if process.alive():
                    process.killed = True
                process.send(signal.SIGKILL)
            for process in [*self.processes, *filter(None, [self.sidecar])]:
                process.process.wait()
            self.sidecar = None
        else:
            self.wait_until(start + length, continued, everything=True)
        for process in self.processes:
            self.ended(process, 40)
        self.processes.clear()
        self.end_sidecar(rng.choice((signal.SIGTERM, signal.SIGTERM, signal.SIGKILL)))
        self.say("all is closed")
        self.read_journals()
        if killed_at_end or rng.random() < 0.3:
            self.check_now()
        shm = Path(str(self.database) + "-shm")
        if rng.random() < 0.25 and shm.exists():
            self.say("-shm is removed")
            shm.unlink()

    def wait_until(self, when, continued, everything=False):
        while True:
            now = time.monotonic()
            for item in [item for item in continued if item[0] <= now]:
                item[1].send(signal.SIGCONT)
                continued.remove(item)
            if now >= when and not (everything and continued):
                return
            time.sleep(0.01)

    # ---- what the journals say -----------------------------------------------------------------

    def read_journals(self):
        self.intended, self.committed, self.acks = set(), set(), []
        errors, done = collections.Counter(), collections.Counter()
        for path in sorted(self.folder.glob("*.journal*")):
            for line in path.read_text(errors="replace").splitlines():
                words = line.split(" ", 4 if line[0] == "a" else 3)
                if words[0] == "i":
                    self.intended.add((int(words[1]), int(words[2])))
                elif words[0] == "c":
                    self.committed.add((int(words[1]), int(words[2])))
                elif words[0] == "a":
                    told, own, seen, head = int(words[1], 16), int(words[2]), int(words[3]), int(words[4], 16)
                    if head:  # else the host could not look
                        self.acks.append((head, own, seen, told))
                elif words[0] == "e":
                    errors["%s: %s %s" % (words[1], words[2], words[3])] += 1
                    if int(words[2]) & 0xff in (11, 26):
                        raise Red("source broken", "%s: %s" % (path.name, line))
                elif words[0] in NOTES:
                    done[NOTES[words[0]]] += 1
                elif words[0] == "x":
                    raise Red("hang" if "child" in line else "source broken", "%s: %s" % (path.name, line[2:]))
        self.errors, self.done = errors, done

    # ---- checks --------------------------------------------------------------------------------

    def walferry(self, *arguments):
        return subprocess.run(list(map(str, [PROGRAM, *arguments])), text=True, timeout=120, capture_output=True,
                              stdin=subprocess.DEVNULL, env=clean_environment())

    def checker(self, *arguments):
        done = subprocess.run([str(self.hosts[-1][1]), *map(str, arguments)], text=True, timeout=120,
                              capture_output=True, env=clean_environment())
        if done.returncode:
            raise Red("source broken", "%s: %s" % (arguments[0], done.stderr.strip()))
        return done.stdout

    def restore(self, txid=None, keep=None):
        """What a restore gives: the number of its commit and its digest, after it has proven to be consistent."""
        output = self.folder / "restored" / "at.db"
        shutil.rmtree(output.parent, ignore_errors=True)
        output.parent.mkdir()
        label = "the newest" if txid is None else "%x" % txid
        done = self.walferry("restore", "-q", "-o", output, *([] if txid is None else ["--txid", "%016x" % txid]), self.url)
        if done.returncode:
            raise Red("restore fails", "%s: exit code %d: %s" % (label, done.returncode, done.stderr.strip()[:400]))
        got = json.loads(self.checker("check", output))
        self.facts["restores"] += 1
        if got["code"] or got["integrity"] != "ok":
            raise Red("corrupt", "%s: state %d: %s" % (label, got["n"], got["integrity"]))
        if got["digest"] != got["actual"]:
            raise Red("torn", "%s says that it is state %d, with other rows" % (label, got["n"]))
        if got["n"] and (got["commits"], got["newest"]) != (got["n"], got["n"]):
            raise Red("torn", "%s is state %d, with %d commits up to %d" % (
                label, got["n"], got["commits"], got["newest"]))
        state = (got["n"], got["digest"])
        if got["n"] and state not in self.intended:
            raise Red("unknown state", "%s is state %d, which nobody committed" % (label, got["n"]))
        if keep:
            shutil.copy(output, keep)
        return state

    def check_now(self):
        """Whatever was acknowledged is there, though all may have been killed a moment ago."""
        if not self.acks and not list(self.replica.glob("ltx/*/*.ltx")):
            return
        n, _ = self.restore()
        self.say("the newest is state %d of %d", n, max(self.intended)[0])
        own = max((own for _, own, _, _ in self.acks), default=0)
        seen = max((seen for _, _, seen, _ in self.acks), default=0)
        # A commit that SQLite itself has lost meanwhile does not count.
        if n < (max(own, seen) if JUDGE_SEEN else own) and not self.sqlite_lost():
            raise Red(LOST if n < own else SEEN, "commit %d (seen: %d); the newest is state %d" % (own, seen, n))

    def sqlite_lost(self):
        """Commits that returned and are not in the database, as after a crash of SQLite < 3.50.2 with frames
        that have no salt. A copy is looked at, so that the database stays as it is."""
        copy = self.folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for suffix in ("", "-wal", "-journal"):
            if os.path.exists(str(self.database) + suffix):
                shutil.copy(str(self.database) + suffix, copy / ("app.db" + suffix))
        self.log = {tuple(map(int, line.split())) for line in self.checker("log", copy / "app.db").splitlines()}
        shutil.rmtree(copy)
        return self.committed - self.log

    def check_all(self, head, rng):
        image, newest = self.folder / "source.db", self.folder / "newest.db"
        lost = self.sqlite_lost()
        if lost:
            self.facts["rounds with commits that SQLite lost"] += 1
            self.facts["commits that SQLite lost"] += len(lost)
            self.say("SQLite itself has lost %d commits from %d on", len(lost), min(lost)[0])
        else:
            self.intended = self.log  # what was not committed after all is no state
        self.checker("image", self.database, image)
        source = json.loads(self.checker("check", image))
        if source["integrity"] != "ok" or source["digest"] != source["actual"]:
            raise Red("source broken", json.dumps(source))
        state = self.restore(keep=newest)
        if state != (source["n"], source["digest"]):
            raise Red("the newest differs", "it is state %d, the database is at %d" % (state[0], source["n"]))
        pages, kind = differing(image, newest), "the newest differs"
        if pages:
            if set(pages) <= free_pages(image):
                kind = "free pages differ"  # no row is wrong, but what wrote them was not captured
            raise Red(kind, "pages %s%s of state %d" % (pages[:10], "..." if len(pages) > 10 else "", state[0]))
        listed = json.loads(self.walferry("restore", "--list", "--json", self.url).stdout)
        txids = sorted(int(each["txid"], 16) for each in listed["states"])
        if listed["gaps"] or listed["problem"] or not txids or txids[-1] != head:
            raise Red("listing", "head %x; %s" % (head, json.dumps({k: listed[k] for k in ("gaps", "problem", "head")})))
        self.facts["TXIDs"] += len(txids)
        chosen = txids if len(txids) <= STATES_CHECKED else sorted(rng.sample(txids, STATES_CHECKED))
        wrong, states = None, {}
        for txid in chosen:
            try:
                states[txid] = self.restore(txid)[0]
            except Red as red:
                wrong = self.first_wrong(red, txid, txids, states)
                break
        if wrong:
            raise wrong
        if not lost:
            self.check_order(states)

    def first_wrong(self, red, bad, txids, states):
        """The first TXID at which that is so."""
        good = max(states, default=0)
        while between := [txid for txid in txids if good < txid < bad]:
            middle = between[len(between) // 2]
            try:
                self.restore(middle)
                good = middle
            except Red as other:
                red, bad = other, middle
        for path in self.replica.glob("ltx/0/%016x-%016x.ltx" % (bad, bad)):
            self.say("TXID %x was written at %.3f", bad, path.stat().st_mtime - self.began)
        return red

    def check_order(self, states):
        before = 0
        for txid, n in sorted(states.items()):
            if n < before:
                raise Red("goes back", "TXID %x is state %d, after state %d" % (txid, n, before))
            before = n
        broken = {}
        for head, own, seen, told in self.acks:
            self.facts["TXIDs told that are too early"] += told in states and states[told] < max(own, seen)
            for at, n in states.items():
                if at >= head and n < max(own, seen):
                    kind = LOST if n < own else SEEN
                    broken.setdefault(kind, "commit %d (seen: %d) was told with TXID %x, when %x was the newest; TXID "
                                      "%x is state %d" % (own, seen, told, head, at, n))
        for kind, what in sorted(broken.items()):  # what it had committed itself first
            self.facts["rounds: " + kind] += 1
            if kind == LOST or JUDGE_SEEN:
                raise Red(kind, what)

    # ---- the whole -----------------------------------------------------------------------------

    def run(self):
        rng = self.rng
        self.replica.mkdir()
        self.say("theme %s", self.theme)
        done = self.once("setup", rng.random() < 0.5, rows=self.rows, wal=rng.choice((0, 1, 1)),
                         page_size=rng.choice((0, 0, 512, 1024, 8192)), auto_vacuum=rng.choice((0, 0, 0, 1, 2)))
        if done.returncode:
            raise Red("crash", "setup: " + done.stderr)
        phases = rng.choice((1, 2, 2, 3))
        for n in range(phases):
            self.phase(n == 0, n == phases - 1)
        done = self.once("last", True, wait=60000, rows=self.rows)
        self.read_journals()
        if done.returncode:
            raise Red("the last sync fails", (done.stderr + done.stdout).strip()[:600])
        head, status = done.stdout.splitlines()
        if json.loads(status)[0]["state"] == "fenced":
            raise Red("fenced", status)
        self.check_all(int(head, 16), rng)

    def end(self):
        for process in [*self.processes, *filter(None, [self.sidecar])]:
            process.kill()

    def findings(self):
        """What walferry's log says, without names and numbers."""
        counted = collections.Counter()
        log = self.folder / "log"
        for line in log.read_text(errors="replace").splitlines() if log.exists() else ():
            found = re.search(r"(INFO|WARN|ERROR): (.*)", line)
            if found:
                said = found[2].replace(str(self.folder), "")
                said = re.sub(r"\b[0-9a-f]{16}\b|\b\d+\b", "N", said)
                counted["%s %s" % (found[1], said[:150])] += 1
        return counted


def pages_of(path):
    data = path.read_bytes()
    size = int.from_bytes(data[16:18], "big")
    size = 65536 if size == 1 else size
    return [data[n:n + size] for n in range(0, len(data), size)]


def differing(one, other):
    """The numbers of the pages that two databases do not share."""
    one, other = pages_of(one), pages_of(other)
    return [n + 1 for n in range(max(len(one), len(other))) if one[n:n + 1] != other[n:n + 1]]


def free_pages(path):
    """The leaves of the list of free pages, which hold nothing."""
    pages, found = pages_of(path), set()
    trunk = int.from_bytes(pages[0][32:36], "big")
    while trunk:
        page = pages[trunk - 1]
        for n in range(int.from_bytes(page[4:8], "big")):
            found.add(int.from_bytes(page[8 + 4 * n:12 + 4 * n], "big"))
        trunk = int.from_bytes(page[:4], "big")
    return found


class Without(Round):
    """The same work of SQLite alone."""

    walferry_takes_part = False

    def check_now(self):
        pass

    def start_sidecar(self):
        pass

    def is_broken(self):
        """Whether SQLite contradicts itself."""
        try:
            self.run()
        except Red as red:
            return red.kind == "source broken"
        finally:
            self.end()
        return False


class Campaign:
    def __init__(self, seed, hosts, folder, say=print):
        self.seed, self.hosts, self.folder, self.say = seed, hosts, Path(folder).resolve(), say
        self.facts, self.errors, self.findings = (collections.Counter() for _ in range(3))
        self.red, self.most = [], (0, 0)

    def round(self, number):
        """Whether it was green."""
        folder = self.folder / ("seed%d-round%d" % (self.seed, number))
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        round_, red = Round(self.seed, number, self.hosts, folder), None
        try:
            round_.run()
        except Red as failure:
            red = failure
        finally:
            round_.end()
        if red and red.kind == "source broken" and self.is_broken_without(number):
            round_.facts["rounds in which SQLite is broken by itself"] += 1
            self.say("round %d (%s): %s; without walferry too" % (number, round_.theme, red))
            red = None
        try:
            round_.read_journals()
        except Red:
            pass
        findings = round_.findings()
        differ = [what for what in findings if "not as captured" in what]
        if differ and not red:
            red = Red("audit", differ[0])
        self.facts.update(round_.facts)
        self.facts.update(round_.done)
        self.facts["rounds"] += 1
        self.facts["commits"] += len(round_.committed)
        self.facts["acknowledgements"] += len(round_.acks)
        self.errors.update(round_.errors)
        self.findings.update(findings)
        compared = sum(count for what, count in findings.items() if "app.db: compared" in what)
        self.facts["comparisons"] += compared
        self.facts["images"] += sum(count for what, count in findings.items() if "sending a full image as" in what)
        self.most = max(self.most, (compared, number))
        round_.say("%s", red or "green")
        (folder / "events").write_text("\n".join(round_.events) + "\n")
        if not red:
            shutil.rmtree(folder)
            return True
        self.red.append((number, red))
        self.say("RED round %d (%s): %s\n    again: make torture SEED=%d ROUND=%d HOSTS=%s\n    kept: %s" % (
            number, round_.theme, red, self.seed, number, ",".join(version for version, _ in self.hosts), folder))
        return False

    def is_broken_without(self, number):
        """Whether SQLite contradicts itself in the same round without walferry, too, as releases before
        3.51.3 do where several processes checkpoint and reset the WAL."""
        folder = self.folder / ("seed%d-round%d-without" % (self.seed, number))
        for _ in range(TRIED_WITHOUT):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            broken = Without(self.seed, number, self.hosts, folder).is_broken()
            shutil.rmtree(folder)
            if broken:
                return True
        return False

    def summary(self):
        lines = ["%d rounds, %d red, %d commits, %d acknowledgements, %d TXIDs, %d restores" % (
            self.facts["rounds"], len(self.red), self.facts["commits"], self.facts["acknowledgements"],
            self.facts["TXIDs"], self.facts["restores"]),
            "%d images, %d comparisons, most in round %s: %d" % (
                self.facts["images"], self.facts["comparisons"], self.most[1], self.most[0])]
        for title, counter in (("facts", self.facts), ("errors of SQLite", self.errors), ("walferry's log", self.findings)):
            lines.append(title + ":")
            lines += ["  %6d %s" % (count, what) for what, count in counter.most_common(40)]
        if self.red:
            lines.append("red:")
            kinds = collections.Counter(red.kind for _, red in self.red)
            lines += ["  %6d %s, as in round %d" % (
                count, kind, next(number for number, red in self.red if red.kind == kind)) for kind, count in kinds.items()]
        return "\n".join(lines)


def campaign(minutes, seed, hosts, folder, only=None, say=print, stop_at=None):
    """Rounds, until the time is over or so many are red. One round alone is repeated until it is red."""
    work = Campaign(seed, hosts, folder, say)
    end, number = time.monotonic() + minutes * 60, 0
    while time.monotonic() < end:
        work.round(only if only is not None else number)
        number += 1
        if len(work.red) >= (1 if only is not None else stop_at or len(work.red) + 1):
            break
    return work


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--round", type=int, default=None, help="only this one, until it is red")
    parser.add_argument("--hosts", default=None, help="versions, with commas between; else all")
    parser.add_argument("--folder", default=str(CACHE / "torture"))
    parser.add_argument("--stop-at", type=int, default=None, help="so many red rounds end it")
    parser.add_argument("--own", action="store_true", help="of what walferry_sync() tells, judge only a connection's "
                        "own commits, not those that it had read")
    options = parser.parse_args()
    global JUDGE_SEEN
    JUDGE_SEEN = not options.own
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    hosts = find_hosts(options.hosts and options.hosts.split(","))
    if not hosts:
        parser.error("no hosts: run tests/scripts/hosts.sh")
    print("SEED=%d, hosts %s" % (seed, " ".join(version for version, _ in hosts)), flush=True)
    work = campaign(options.minutes, seed, hosts, options.folder, options.round,
                    lambda text: print(text, flush=True), options.stop_at)
    print(work.summary())
    return 1 if work.red else 0


if __name__ == "__main__":
    sys.exit(main())
