"""The documentation against the product: its lists are complete, its links lead somewhere, and the examples of the
README run as they stand."""

import json
import os
import re
import shutil
import subprocess

import pytest

from harness import EXTENSION, PROGRAM, ROOT, clean_environment, rows

README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
WORDS_MAX = {"README.md": 900, "docs/architecture.md": 1500}
# Settings whose default is more than a value: the page has the words, the program the value.
DEFAULTS_IN_WORDS = {"spool-cap": "10 GiB, or twice the database"}
LINK = re.compile(r"\]\(([^)\s]+)\)")


def page(name):
    return (ROOT / "docs" / name).read_text()


def without_code(text):
    """The text without blocks of code, fenced or indented by four spaces."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    return re.sub(r"^    .*$", "", text, flags=re.M)


def anchors(path):
    """The anchors of a page's headings, as repositories show them."""
    headings = re.findall(r"^#+ (.*)$", without_code(path.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def first_cells(text, heading):
    """The names in code of the first column of the first table after the heading."""
    part = text.split(heading + "\n", 1)[1]
    table = re.search(r"(?:^\|.*\n)+", part, re.M)[0].splitlines()[2:]
    return [re.findall(r"`([^`]+)`", line.split("|")[1]) for line in table]


@pytest.mark.parametrize("path", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_links_lead_somewhere(path):
    for target in LINK.findall(without_code(path.read_text())):
        if target.startswith(("http:", "https:")):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), "%s leads to %s" % (path.name, target)
        if anchor:
            assert anchor in anchors(found), "%s leads to %s" % (path.name, target)


def test_readme_and_map_lead_to_each_page():
    linked = {(ROOT / target.partition("#")[0]).resolve() for target in LINK.findall(README.read_text())}
    assert {path for path in PAGES if path.parent.name != "internals"} - linked == {README}
    architecture = LINK.findall((ROOT / "docs" / "architecture.md").read_text())
    assert {path.name for path in (ROOT / "docs" / "internals").glob("*.md")} <= {
        os.path.basename(target) for target in architecture}


@pytest.mark.parametrize("name", WORDS_MAX)
def test_page_is_short(name):
    assert len((ROOT / name).read_text().split()) <= WORDS_MAX[name]


def test_readme_examples_run_as_they_stand(tmp_path):
    """In an empty directory with the two built files. Each example writes a row to its own database and replica."""
    work = tmp_path / "work"
    work.mkdir()
    for built in EXTENSION, PROGRAM:
        shutil.copy(built, work)
    shell, python = (re.search(r"^```%s\n(.*?)^```$" % language, README.read_text(), re.M | re.S)[1]
                     for language in ("sh", "python"))
    done = subprocess.run(["bash", "-e", "-c", shell], cwd=work, env=clean_environment(), text=True,
                          capture_output=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "tea"
    assert rows(work / "restored.db", "SELECT * FROM orders") == [("tea",)]
    done = subprocess.run(["/usr/bin/python3", "-c", python], cwd=work, env=clean_environment(), text=True,
                          capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\('[0-9a-f]{16}',\)\n", done.stdout), done.stdout
    subprocess.run([PROGRAM, "restore", "-q", "-o", work / "second.db", "file://%s/replica/python.db" % work],
                   env=clean_environment(), check=True, timeout=120)
    assert rows(work / "second.db", "SELECT * FROM orders") == [("tea",)]


def help_of(*arguments):
    return subprocess.run([PROGRAM, *arguments, "--help"], env=clean_environment(), text=True, check=True,
                          capture_output=True, timeout=60).stdout


def commands():
    listed = help_of().split("Commands:\n")[1].split("\n\n")[0]
    return set(re.findall(r"^  (\w+)", listed, re.M))


def test_commands_are_listed():
    listed = {name for cells in first_cells(page("commands.md"), "# Commands") for name in cells}
    # "wal" is another name of "ltx", which the help does not list.
    assert listed - {"wal"} == commands()
    assert help_of("wal") == help_of("ltx")


def options(text):
    """The options of a help text, long and short."""
    found = re.findall(r"^ +(?:(-\w), )?(--[a-z][a-z0-9-]*)", text.split("Options:\n")[1].split("\n\n")[0], re.M)
    return {name for pair in found for name in pair if name}


def test_options_are_listed():
    """The table of options has exactly the options of each command. Prose above it has those of all commands."""
    text = page("commands.md").split("## Options\n")[1]
    everywhere, listed = {"--help", "-h"}, {}
    for line in re.search(r"(?:^\|.*\n)+", text, re.M)[0].splitlines()[2:]:
        option, names = line.split("|")[1:3]
        for name in re.findall(r"`(\w+)`", names):
            listed.setdefault(name, set()).update(re.findall(r"`(--?[a-z][a-z0-9-]*)", option))
    known = {name: options(help_of(name)) - everywhere for name in commands() - {"help"}}
    assert listed == {name: found for name, found in known.items() if found}
    above = re.findall(r"`(?:walferry )?(--?[a-zA-Z][a-z-]*)`", text.split("\n|")[0])
    assert set(above) == everywhere | options(help_of())


def test_options_in_the_documentation_exist():
    names = commands() - {"help"}
    known = {option for name in names for option in re.findall(r"(--[a-z][a-z0-9-]+)", help_of(name))}
    for path in PAGES:
        for line in path.read_text().splitlines():
            used = re.search(r"\bwalferry (?:%s)\b(.*)" % "|".join(names), line)
            # Behind two dashes or a quote are the words of another program.
            words = re.split(r"--exec '[^']*'| # |` ", used[1])[0] if used else ""
            for option in re.findall(r"(?<![\w-])(--[a-z][a-z0-9-]+)", words):
                assert option in known, "%s: %s" % (path.name, line)


def test_exit_codes_are_listed():
    codes = re.findall(r"^  (\d)  ", help_of().split("Exit status:\n")[1], re.M)
    assert codes == re.findall(r"^\| (\d) \|", page("commands.md"), re.M)


def test_functions_are_listed(new_host, tmp_path):
    host = new_host("system").open(tmp_path / "app.db")
    names = host.sql("SELECT DISTINCT name FROM pragma_function_list WHERE name LIKE 'walferry%'")
    listed = {re.match(r"\w+", cells[0])[0] for cells in first_cells(page("sql.md"), "## Functions")}
    assert listed == {name for [name] in names}


def names_of_settings():
    text = (ROOT / "src" / "settings.rs").read_text()
    return re.findall(r'"([a-z0-9-]+)"', re.search(r"pub const NAMES[^=]*= \[(.*?)\];", text, re.S)[1])


def test_settings_are_listed():
    text = page("settings.md")
    listed = re.findall(r"^\| `([a-z0-9-]+)` \| `(WALFERRY_\w+)`", text, re.M)
    assert sorted(name for name, _ in listed) == sorted(["replica", *names_of_settings()])
    for name, variable in listed:
        assert variable == "WALFERRY_" + name.upper().replace("-", "_")


def test_defaults_of_settings_are_those_of_the_program(tmp_path):
    config = tmp_path / "walferry.yml"
    config.write_text("dbs:\n  - path: %s/app.db\n    replica:\n      url: file:///replica\n" % tmp_path)
    done = subprocess.run([PROGRAM, "databases", "--json", "--config", config], env=clean_environment(), text=True,
                          check=True, capture_output=True, timeout=60)
    settings = json.loads(done.stdout)["databases"][0]["replicas"][0]["settings"]
    assert {setting["from"] for setting in settings.values()} == {"default"}
    known = {name: DEFAULTS_IN_WORDS.get(name, setting["value"]) for name, setting in settings.items()}
    rows_of = re.findall(r"^\| `([a-z0-9-]+)` \| `WALFERRY_\w+` \| ([^|]+) \|", page("settings.md"), re.M)
    assert {name: default.strip("`") for name, default in rows_of} == {"replica": "none", **known}


def test_variables_are_documented():
    sources = [path for folder in ("src", "sqlite-ext/src") for path in (ROOT / folder).rglob("*.rs")]
    used = {name for path in sources for name in re.findall(r'"(WALFERRY_[A-Z0-9_]+)"', path.read_text())}
    text = page("settings.md")
    assert {name for name in used if "`%s`" % name not in text} == set()


def keys_of(column):
    """The keys of the status that the function (1) or the command (2) has, by the page."""
    table = re.search(r"(?:^\|.*\n)+", page("operations.md").split("## Status\n", 1)[1], re.M)[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    return {name for row in cells if row[column] == "yes" for name in re.findall(r"`(\w+)`", row[0])}


def test_keys_of_the_status_are_listed(new_host, new_replica, tmp_path):
    database = tmp_path / "app.db"
    host = new_host("system", new_replica()).open(database)
    host.sql("CREATE TABLE t (x)")
    host.sync()
    assert keys_of(1) - {"schema"} == set(host.status(database))
    done = subprocess.run([PROGRAM, "status", "--json", database], env=clean_environment(), text=True, check=True,
                          capture_output=True, timeout=60)
    assert keys_of(2) == set(json.loads(done.stdout)[0])


def test_states_are_listed():
    text = (ROOT / "src" / "status.rs").read_text()
    states = re.findall(r'"([a-z-]+)"', re.search(r"pub const STATES[^=]*= \[(.*?)\];", text, re.S)[1])
    listed = [name for cells in first_cells(page("operations.md"), "### States") for name in cells]
    assert set(listed) == {*states, "not-replicated", "following", "none"}


def test_notices_have_each_crate():
    """A crate under a licence that nobody has looked at is an error."""
    notices = subprocess.run(["/usr/bin/python3", "tests/scripts/notices.py", "Cargo.toml", "sqlite-ext/Cargo.toml"],
                             cwd=ROOT, text=True, check=True, capture_output=True, timeout=120).stdout
    for crate in "aws-sdk-s3", "crossbeam-channel", "libsqlite3-sys", "lz4_flex", "parking_lot":
        assert re.search(r"^%s \d+\.\d+" % crate, notices, re.M), crate


def test_licences_are_those_of_the_package():
    assert 'license = "MIT OR Apache-2.0"' in (ROOT / "Cargo.toml").read_text()
    assert all(os.path.getsize(ROOT / name) for name in ("LICENSE-MIT", "LICENSE-APACHE"))
