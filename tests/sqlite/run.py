#!/usr/bin/env python3
"""SQLite's own TCL tests, with walferry and without, and what differs.

    run.py [--slice | --all | --only PATTERN...] [--versions 3.40.1] [--modes keep,wal] [--jobs N]

Needs only Python, the extension of `make build`, and the test programs of tests/scripts/sqlite-tests.sh.
docs/sqlite-tests.md describes how a run works, and the format of tests/sqlite/differences.txt.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import fnmatch
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CACHE = Path(os.environ.get("WALFERRY_CACHE", ROOT / ".cache")) / "sqlite-tests"
EXTENSION = ROOT / "dist" / "walferry.so"
SCRIPT = Path(__file__).resolve().parent / "script.tcl"
DIFFERENCES = Path(__file__).resolve().parent / "differences.txt"

MODES = ("keep", "wal")
REPEATS = 3  # repetitions of both sides, beside nothing: a case counts that differs in each
SHOWN = 6  # cases of a script that the report names of those that are listed
PATIENCE = 5  # a script with walferry may take this many times as long as alone, and GRACE seconds
GRACE = 45
# As SQLite's own tests do on Windows, where "automatic backup tools" keep files open: walferry's threads may
# be making a file in the folder that a script is about to remove.
OPTIONS = ("--file-retries=200", "--file-retry-delay=10")

# The scripts of `make sqlite-tests`, by their names' beginnings.
GROUPS = (
    "wal", "pager", "lock", "shared", "backup", "vacuum", "incrvacuum", "autovacuum", "savepoint", "journal", "jrnlmode",
    "mmap", "corrupt", "crash", "ioerr", "attach", "thread", "malloc",
    # Near the VFS, and not in a group of that name.
    "8_3_names", "async", "atomic", "bigfile", "busy", "cachespill", "capi3", "cksumvfs", "delete_db", "diskfull",
    "e_uri", "e_vacuum", "e_wal", "exclusive", "external_reader", "fallocate", "filectrl", "format4", "hook", "init",
    "io.", "memdb", "memsubsys", "multiplex", "mutex", "nolock", "notify", "openv2", "oserror", "quota", "rdonly",
    "readonly", "rollback", "shmlock", "snapshot", "superlock", "symlink", "sync", "tempdb", "tempfault",
    "tkt-313723c356", "tkt2854", "trans", "unixexcl", "uri", "writecrash", "zerodamage",
)
# And of all others each so manieth.
GENERAL_EVERY = 12

# The scripts of `make test`: near to what walferry acts on, and fast.
SLICE = (
    "attach", "attach2", "attach4", "autovacuum", "backup", "backup2", "backup4", "backup5", "busy2", "capi3c",
    "delete_db", "e_walauto", "e_walckpt", "e_walhook", "exclusive", "exclusive2", "external_reader", "jrnlmode",
    "jrnlmode2", "jrnlmode3", "lock", "lock2", "lock3", "lock5", "lock6", "lock7", "mmap1", "mmap2", "mmap3",
    "nolock", "notify1", "pager1", "pager2", "pager4", "rdonly", "savepoint", "savepoint2", "savepoint7",
    "shared", "shared2", "shared3", "shared4", "shared6", "shared7", "shared8", "shared9", "sharedA", "sharedlock",
    "shmlock", "snapshot", "superlock", "symlink", "thread1", "thread2", "tkt-313723c356", "trans3", "unixexcl",
    "uri", "vacuum", "vacuum-into", "vacuum2", "vacuum5", "wal", "wal3", "wal4", "wal5", "wal6", "wal7", "wal8",
    "wal9", "walbak", "walblock", "walcksum", "walfault2", "walhook", "walmode", "walnoshm", "waloverwrite",
    "walpersist", "walprotocol2", "walro", "walro2", "walrofault", "walsetlk", "walshared", "walvfs", "zerodamage",
)
# Those that take longest begin first, where no earlier campaign has told how long each takes.
LONG = ("walsetlk", "wal3", "wal5", "walvfs", "walro2", "superlock", "pager1", "busy2")
# Scripts that run others, measure speed, or need what is not there.
NEVER = (
    "all", "alltest", "extraquick", "fts4growth*", "full", "fulltest", "mallocAll", "memleak", "permutations", "quick",
    "rbu", "releasetest*", "soak", "speed*", "testrunner", "valgrind", "veryquick", "wapptest", "backcompat", "bc_common",
    "misuse", "rtree", "session", "sidedelete", "tkt3838_", "walslow", "savepoint6", "thread_common",
)

SUMMARY = re.compile(r"^(\d+) errors out of (\d+) tests", re.M)
FAILED = re.compile(r"^!Failures on these tests: ?(.*)$", re.M)
WRONG = re.compile(r"^! (\S.*?) expected: \[", re.M)
# SQLite's test program prints the name of a case before it runs it.
RAISED = re.compile(r"^(\S+?)\.\.\.\s*\n?(?:\1\.\.\.)?\s*\nError: (.*)$", re.M)


@dataclasses.dataclass
class Result:
    """What one run of a script said: the failed cases, or that it could not go on."""

    failed: set
    tests: int = 0
    seconds: float = 0.0
    timeout: bool = False
    output: str = ""


def parse(output, code, timeout):
    failed = set(WRONG.findall(output)) | {match[0] for match in RAISED.findall(output)}
    for names in FAILED.findall(output):
        failed |= set(names.split())
    summary = SUMMARY.search(output)
    if timeout:
        failed.add("(time-out)")
    elif code < 0:
        failed.add("(signal %s)" % signal.Signals(-code).name)
    elif not summary and code != 0:
        failed.add("(ended early)")
    for what in ("files were left open", "Unfreed memory"):
        if re.search(r"^.*%s" % what, output, re.M):
            failed.add("(%s)" % what.lower())
    if "autoload: the extension was not loaded" in output:
        failed.add("(extension not loaded)")
    return Result(failed, int(summary[2]) if summary else 0, timeout=timeout, output=output)


class Version:
    def __init__(self, name):
        self.name = name
        self.fixture = CACHE / name / "build" / "testfixture"
        self.tests = CACHE / name / "src" / "test"
        if not self.fixture.exists():
            sys.exit("%s is missing: run tests/scripts/sqlite-tests.sh" % self.fixture)

    def scripts(self):
        names = sorted(path.stem for path in self.tests.glob("*.test"))
        return [name for name in names if not any(fnmatch.fnmatchcase(name, never) for never in NEVER)]


def environment(folder, mode, with_walferry):
    env = {name: value for name, value in os.environ.items()
           if not name.startswith(("WALFERRY_", "AWS_", "LITESTREAM_", "SQLITE_"))}
    if mode == "wal":
        env["SQLITE_TESTS_WAL"] = "1"
    if with_walferry:
        env.update(SQLITE_TESTS_EXTENSION=str(EXTENSION), WALFERRY_JOURNAL_MODE="keep",
                   WALFERRY_REPLICA="file://%s/replica/{name}" % folder, WALFERRY_LOG_FILE=str(folder / "log"))
    return env


RUNNING = set()


def end(signum, _frame):
    """Scripts have sessions of their own, and would outlive this program."""
    for process in list(RUNNING):
        kill(process)
    os._exit(128 + signum)


def kill(process):
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def run(version, script, mode, with_walferry, limit, scratch):
    folder = Path(tempfile.mkdtemp(prefix="%s-" % script, dir=scratch))
    work = folder / "work"
    work.mkdir()
    began, timeout = time.monotonic(), False
    with open(folder / "output", "wb") as output:
        process = subprocess.Popen(
            ["nice", "-n", "5", version.fixture, SCRIPT, version.tests / (script + ".test"), *OPTIONS], cwd=work,
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            env=environment(folder, mode, with_walferry))
        RUNNING.add(process)
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            timeout = True
        # Scripts leave helpers behind.
        kill(process)
        process.wait()
        RUNNING.discard(process)
    text = (folder / "output").read_text(errors="replace")
    result = parse(text, process.returncode, timeout)
    result.seconds = time.monotonic() - began
    return result, folder


@dataclasses.dataclass(frozen=True)
class Listed:
    """An entry of the list of differences."""

    line: int
    script: str
    case: str
    modes: str
    versions: str
    how: str
    reason: str

    def covers(self, version, mode):
        return all(any(fnmatch.fnmatchcase(value, one) for one in wanted.split(","))
                   for value, wanted in ((version, self.versions), (mode, self.modes)))

    def fits(self, script, case, version, mode):
        return (self.covers(version, mode) and fnmatch.fnmatchcase(script, self.script)
                and fnmatch.fnmatchcase(case, self.case))


def read_listed():
    """The entries. Those that follow each other directly share the reason below them."""
    rows, reason, entries = [], [], []

    def complete():
        if rows and not reason:
            sys.exit("%s:%d: no reason is given" % (DIFFERENCES, rows[0][0]))
        entries.extend(Listed(*row, " ".join(reason)) for row in rows)
        rows.clear()
        reason.clear()

    for number, line in enumerate(DIFFERENCES.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if line[0].isspace():
            if not rows:
                sys.exit("%s:%d: a reason without an entry" % (DIFFERENCES, number))
            reason.append(line.strip())
            continue
        if reason:
            complete()
        words = line.split("\t") if "\t" in line else re.split(r" {2,}", line.strip())
        if len(words) not in (4, 5) or (len(words) == 5 and words[4] != "sometimes"):
            sys.exit("%s:%d: not 'script  case  modes  versions  [sometimes]', with two spaces between" %
                     (DIFFERENCES, number))
        rows.append((number, *words[:4], words[4] if len(words) == 5 else ""))
    complete()
    return entries


@dataclasses.dataclass
class Suspect:
    """A pair of runs with cases that failed with walferry alone, and that no entry explains."""

    version: Version
    script: str
    mode: str
    limit: float
    folders: dict  # by case, that of the run in which it failed first

    def names(self):
        return self.version.name, self.mode, self.script


class Campaign:
    def __init__(self, options, scratch):
        self.options, self.scratch, self.listed = options, scratch, read_listed()
        self.lock = threading.Lock()
        self.suspects = []
        self.unexplained, self.passing = [], []  # (version, mode, script, case, how often, folder)
        self.explained = collections.defaultdict(set)  # by entry: (script, case, version, mode)
        self.too_long, self.ran, self.left_out = [], set(), []
        self.cases = collections.Counter()

    def compare(self, version, script, mode):
        """Runs both sides once. What differs is in the list, or makes the pair a suspect."""
        options = self.options
        alone, folder = self.alone(version, script, mode)
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
        if alone.timeout:
            with self.lock:
                self.too_long.append((version.name, mode, script))
            return
        limit = PATIENCE * alone.seconds + GRACE
        result, folder = run(version, script, mode, True, limit, self.scratch)
        suspect = Suspect(version, script, mode, limit, {})
        with self.lock:
            self.ran.add(suspect.names())
            self.cases[version.name, mode] += result.tests
            for case in result.failed - alone.failed:
                entry = self.entry(version, script, mode, case)
                if entry:
                    self.explained[entry].add((script, case, version.name, mode))
                else:
                    suspect.folders[case] = folder
            if suspect.folders:
                self.suspects.append(suspect)
        if not suspect.folders and not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
        if options.verbose:
            print("%s %s %s: %d cases, %.1f s, alone %.1f s" % (
                *suspect.names(), result.tests, result.seconds, alone.seconds), flush=True)

    def settle(self, suspect):
        """Repeats both sides while nothing else runs. A case counts if it fails with walferry each time, and
        without walferry never; a crash counts once and for all, unless the other side crashes too."""
        version, script, mode = suspect.version, suspect.script, suspect.mode
        left, repeats = set(suspect.folders), 0
        while left and repeats < REPEATS:
            repeats += 1
            result, folder = run(version, script, mode, True, suspect.limit, self.scratch)
            left = {case for case in left if case in result.failed or is_crash(case)}
            if not self.options.keep:
                shutil.rmtree(folder, ignore_errors=True)
            if left:
                alone, folder = run(version, script, mode, False, suspect.limit, self.scratch)
                left -= alone.failed
                shutil.rmtree(folder, ignore_errors=True)
        for case, folder in sorted(suspect.folders.items()):
            row = (*suspect.names(), case, "%d repetitions" % repeats, folder)
            (self.unexplained if case in left else self.passing).append(row)
            print("  %s %s %s: %s  %s" % (*suspect.names(), case,
                                          "unexplained" if case in left else "not again"), flush=True)

    def alone(self, version, script, mode):
        """The run without walferry; with --reuse that of an earlier campaign."""
        path = CACHE / version.name / "alone" / ("%s-%s.json" % (script, mode))
        if self.options.reuse and path.exists():
            known = json.loads(path.read_text())
            return Result(set(known["failed"]), known["tests"], known["seconds"], known["timeout"]), None
        result, folder = run(version, script, mode, False, self.options.limit, self.scratch)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"failed": sorted(result.failed), "tests": result.tests,
                                    "seconds": result.seconds, "timeout": result.timeout}))
        return result, folder

    def entry(self, version, script, mode, case):
        # No pattern stands for a crash.
        return next((entry for entry in self.listed if entry.fits(script, case, version.name, mode)
                     and is_crash(case) in (False, is_crash(entry.case))), None)

    def report(self, seconds):
        options = self.options
        ran = sorted({script for _, _, script in self.ran})
        print("\n%d scripts: %s" % (len(ran), " ".join(ran)))
        print("\n%d pairs of runs, %d cases, in %d s; repeated beside nothing: %d" % (
            len(self.ran), sum(self.cases.values()), seconds, len(self.suspects)))
        self.report_explained()
        for title, rows in (("differ, not again", self.passing), ("unexplained", self.unexplained)):
            if rows:
                print("\n%s:" % title)
                for row in sorted(rows, key=lambda row: row[:4]):
                    print("  %s %s %s: %s  (%s; %s)" % row)
        if self.too_long:
            print("\nlonger than %d s without walferry, left out: %s" % (options.limit, listing(self.too_long)))
        if self.left_out:
            print("\n%d minutes were over, %d pairs left out: %s" % (
                options.minutes, len(self.left_out), listing(self.left_out)))
        for entry in self.listed:
            if entry not in self.explained and not entry.how and any(
                    entry.covers(version, mode) and fnmatch.fnmatchcase(script, entry.script)
                    for version, mode, script in self.ran):
                print("%s:%d: %s %s does not differ any more" % (
                    DIFFERENCES.name, entry.line, entry.script, entry.case))
        print("\n%s" % ("RED: %d differences are unexplained" % len(self.unexplained)
                        if self.unexplained else "no difference is unexplained"))

    def report_explained(self):
        reasons = collections.defaultdict(lambda: collections.defaultdict(set))
        for entry, found in self.explained.items():
            for script, case, version, mode in found:
                reasons[entry.reason][script, version, mode].add(case)
        if reasons:
            print("\nlisted differences, and why:")
        for reason, scripts in reasons.items():
            for (script, version, mode), cases in sorted(scripts.items()):
                more = len(cases) - SHOWN
                print("  %s %s %s: %s%s" % (version, mode, script, " ".join(sorted(cases)[:SHOWN]),
                                            " and %d more" % more if more > 0 else ""))
            print(textwrap.fill(reason, 110, initial_indent="      ", subsequent_indent="      "))


def is_crash(case):
    return case.startswith("(signal ")


def listing(pairs):
    return ", ".join("%s (%s, %s)" % (script, version, mode) for version, mode, script in sorted(pairs))


def probe(version, scratch):
    """The program has the extension as its default VFS, at the start and after a shutdown."""
    folder = Path(tempfile.mkdtemp(prefix="probe-", dir=scratch))
    script = folder / "probe.tcl"
    script.write_text("""
        proc look {} { sqlite3 db probe.db; puts "[db one {SELECT walferry_version()}] [file_control_vfsname db]"; db close }
        look; sqlite3_shutdown; sqlite3_initialize; look
    """)
    told = subprocess.run([version.fixture, script], cwd=folder, env=environment(folder, "keep", True), timeout=60,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
    if len(re.findall(r"^\d+\.\d+\.\d+\S* .*\S$", told, re.M)) != 2:
        sys.exit("walferry does not take part in %s:\n%s" % (version.fixture, told))
    shutil.rmtree(folder, ignore_errors=True)


def chosen(options, version):
    names = version.scripts()
    if options.only:
        return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in options.only)]
    if options.slice:
        return [name for name in names if name in SLICE]
    if options.all:
        return names
    near = [name for name in names if any((name + ".").startswith(group) for group in GROUPS)]
    return near + [name for name in names if name not in set(near)][::GENERAL_EVERY]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--versions", default="")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--slice", action="store_true", help="what `make test` runs")
    parser.add_argument("--all", action="store_true", help="all scripts, not only the groups")
    parser.add_argument("--only", nargs="+", metavar="PATTERN", help="these scripts")
    parser.add_argument("--jobs", type=int, default=2 * (os.cpu_count() or 1))
    parser.add_argument("--limit", type=int, help="seconds for a script without walferry: 150, or 60 with --slice")
    parser.add_argument("--minutes", type=float, help="begin no pair of runs later than this")
    parser.add_argument("--reuse", action="store_true", help="take runs without walferry from an earlier campaign")
    parser.add_argument("--keep", action="store_true", help="keep all folders")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    options.limit = options.limit or (60 if options.slice else 150)
    if not EXTENSION.exists():
        sys.exit("%s is missing: run make build" % EXTENSION)
    names = options.versions.split(",") if options.versions else sorted(
        path.parent.parent.name for path in CACHE.glob("*/build/testfixture"))
    versions = [Version(name) for name in names]
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, end)
    CACHE.joinpath("runs").mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=time.strftime("%m%d-%H%M%S-"), dir=CACHE / "runs"))
    campaign, began = Campaign(options, scratch), time.monotonic()
    for version in versions:
        probe(version, scratch)
    jobs = [(version, script, mode) for version in versions for mode in options.modes.split(",")
            for script in chosen(options, version)]
    # The longest of the last run first.
    durations = json.loads(text) if (text := read(CACHE / "seconds.json")) else {}
    key = "{0.name} {2} {1}".format
    jobs.sort(key=lambda job: -durations.get(key(*job), 60 if job[1] in LONG else 10))
    print("%d pairs of runs, %d at a time; folders of differences are in %s" % (
        len(jobs), options.jobs, scratch), flush=True)

    def one(job):
        started = time.monotonic()
        if options.minutes and started - began > 60 * options.minutes:
            version, script, mode = job
            campaign.left_out.append((version.name, mode, script))
            return
        campaign.compare(*job)
        durations[key(*job)] = round(time.monotonic() - started, 1)

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for done in concurrent.futures.as_completed([pool.submit(one, job) for job in jobs]):
            done.result()
    if campaign.suspects:
        print("repeated beside nothing, up to %d times:" % REPEATS, flush=True)
    for suspect in campaign.suspects:
        campaign.settle(suspect)
    (CACHE / "seconds.json").write_text(json.dumps(durations, indent=0, sort_keys=True))
    campaign.report(time.monotonic() - began)
    if not (campaign.suspects or options.keep):
        shutil.rmtree(scratch, ignore_errors=True)
    return 1 if campaign.unexplained else 0


def read(path):
    try:
        return path.read_text()
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
