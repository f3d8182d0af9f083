"""The units in contrib/systemd, by systemd's own words."""

import re
import shutil
import subprocess

import pytest

from harness import PROGRAM, ROOT

UNITS = sorted((ROOT / "contrib" / "systemd").iterdir())


def analyze(*arguments):
    assert shutil.which("systemd-analyze"), "it is in Debian's package systemd"
    return subprocess.run(["systemd-analyze", *map(str, arguments)], text=True, capture_output=True)


@pytest.fixture
def units(tmp_path):
    for unit in UNITS:
        text = unit.read_text().replace("/usr/bin/walferry", str(PROGRAM))
        (tmp_path / unit.name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("name", [unit.name for unit in UNITS])
def test_systemd_takes_it_without_a_word(name, units):
    done = analyze("verify", "--man=no", "--recursive-errors=no", units / name)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    # And it would say something.
    broken = (units / name).read_text() + "\n[Unit]\nAftre=x\n"
    (units / name).write_text(broken)
    assert "Aftre" in analyze("verify", "--man=no", "--recursive-errors=no", units / name).stderr


@pytest.mark.parametrize("name", ["walferry.service", "walferry-verify.service"])
def test_it_has_few_rights(name, units):
    done = analyze("security", "--offline=yes", "--threshold=25", "--no-pager", units / name)
    assert done.returncode == 0, done.stdout + done.stderr
    exposure = float(re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)[1])
    assert exposure <= 2.5


def test_a_stop_tells_the_sidecar_alone():
    """The program of `exec:` gets the signal from the sidecar, and from systemd it would get a second one."""
    unit = (ROOT / "contrib" / "systemd" / "walferry.service").read_text().splitlines()
    assert "KillMode=mixed" in unit


def test_a_restore_before_the_start_may_take_long():
    unit = (ROOT / "contrib" / "systemd" / "walferry.service").read_text().splitlines()
    assert "Type=notify" in unit and "TimeoutStartSec=infinity" in unit
