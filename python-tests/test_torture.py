"""Random work of real SQLite in many versions: no commit is lost. `make torture` runs it longer."""

import subprocess

import pytest

import torture
from harness import EXTENSION, ROOT, SEED, clean_environment

# Exclusive sessions, one after the other, of one process, while images and comparisons are made.
EXCLUSIVE = {"tx": 12, "spill": 3, "read": 6, "ckpt": 5, "close": 36, "sync": 4, "vacuum": 0, "mode": 0, "excl": 6,
             "sleep": 20, "pause": 6, "ddl": 3, "seconds": 0.12, "rows": 150, "threads": 1, "end": "close",
             "seed": 782115661020, "writer": 2}
# A process that forks all the time, whose children work beside it.
FORKS = {"tx": 12, "spill": 12, "read": 2, "ckpt": 5, "close": 6, "sync": 4, "vacuum": 0, "mode": 0, "excl": 0,
         "sleep": 60, "pause": 1, "ddl": 1, "seconds": 0.7, "rows": 400, "threads": 1, "end": "close", "fork": 0.05,
         "seed": 263740946640, "writer": 2}
SETUP = {"rows": 150, "wal": 0, "page_size": 0, "auto_vacuum": 1, "seed": 92860248028, "writer": 1}


@pytest.fixture(scope="module")
def hosts():
    subprocess.run([str(ROOT / "tests" / "scripts" / "hosts.sh")], check=True)
    return torture.find_hosts()


@pytest.mark.parametrize("version", ["3.35.4", "3.41.2"])
def test_sqlite_without_pread_reads_and_writes_where_it_means_to(version, hosts, tmp_path):
    """These are built without it, as before 3.42 from the amalgamation: who uses an application's file
    from another thread sends its reads and writes to another place."""
    host = dict(hosts)[version]
    for round_ in range(40):
        folder = tmp_path / str(round_)
        folder.mkdir()
        env = dict(clean_environment(), WALFERRY_REPLICA="file://%s/replica" % folder,
                   WALFERRY_LOG_FILE=str(folder / "log"), WALFERRY_SYNC_INTERVAL="1ms")
        for what, settings in ("setup", SETUP), ("run", dict(EXCLUSIVE, extension=EXTENSION.with_suffix(""))):
            command = [host, what, folder / "app.db", folder / (what + ".journal"),
                       *("%s=%s" % item for item in settings.items())]
            subprocess.run(command, check=True, timeout=60, env=env if what == "run" else None)
        said = (folder / "run.journal").read_text()
        assert "malformed" not in said, "round %d: %s" % (round_, said)


@pytest.mark.parametrize("version", ["3.35.4", "3.41.2"])
def test_sqlite_without_pread_shares_no_position_with_a_child(version, hosts, tmp_path):
    """SQLite gives the descriptor of a closed connection to the next one, and the child of a fork has it
    too: where both used it, each would read and write where the other has moved to."""
    host, setup = dict(hosts)[version], dict(SETUP, rows=400, page_size=8192, auto_vacuum=0)
    for round_ in range(8):
        folder = tmp_path / str(round_)
        folder.mkdir()
        env = dict(clean_environment(), WALFERRY_REPLICA="file://%s/replica" % folder, WALFERRY_SYNC_INTERVAL="5ms",
                   WALFERRY_LOG_FILE=str(folder / "log"), WALFERRY_AUDIT_INTERVAL="1ms", WALFERRY_AUDIT_RATE="1GB")
        for what, settings in ("setup", setup), ("run", dict(FORKS, extension=EXTENSION.with_suffix(""))):
            command = [host, what, folder / "app.db", folder / (what + ".journal"),
                       *("%s=%s" % item for item in settings.items())]
            subprocess.run(command, check=True, timeout=60, env=env if what == "run" else None)
        journals = [path.read_text() for path in folder.glob("run.journal*")]
        assert len(journals) > 1, "it has not forked"
        # Pages of elsewhere are malformed, or hold rows of another commit: "x" of the journal.
        broken = [line for text in journals for line in text.splitlines() if line[0] == "x" or "malformed" in line]
        assert not broken, "round %d: %s" % (round_, broken)
        assert "not as captured" not in (folder / "log").read_text(), "round %d" % round_


def test_torture(request, hosts):
    # Outside of pytest's folders, so that a red round stays.
    folder = torture.CACHE / "torture" / "tests"
    minutes = request.config.getoption("--torture-minutes")
    work = torture.campaign(minutes, SEED, hosts, folder, stop_at=3)
    print(work.summary())
    assert not work.red, "\n".join("round %d: %s" % red for red in work.red) + "\nin %s" % folder
