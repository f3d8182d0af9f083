"""Random work of real SQLite in many versions: no commit is lost. `make torture` runs it longer."""

import subprocess

import torture
from harness import ROOT, SEED


def test_torture(request):
    subprocess.run([str(ROOT / "tests" / "scripts" / "hosts.sh")], check=True)
    # Outside of pytest's folders, so that a red round stays.
    folder = torture.CACHE / "torture" / "tests"
    minutes = request.config.getoption("--torture-minutes")
    work = torture.campaign(minutes, SEED, torture.find_hosts(), folder, stop_at=3)
    print(work.summary())
    assert not work.red, "\n".join("round %d: %s" % red for red in work.red) + "\nin %s" % folder
