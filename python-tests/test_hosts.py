"""Runs the recipes of docs/hosts.md as they stand there, and restores their replicas."""

import os
import re
import shutil
import subprocess
from collections import namedtuple

import pytest

from harness import CACHE, EXTENSION, OK, PROGRAM, ROOT, DirectoryReplica, clean_environment, restore, rows

PAGE = ROOT / "docs" / "hosts.md"
FENCE = re.compile(r"(?:^`(?P<file>[^`\n]+)`:\n\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S)
OPTIONAL = re.compile(r"^(?P<indent>[ \t]*)[^\n]*(#|//|--) optional\n", re.M)
HOSTS = {"Shell", "C", "Python", "PHP", "Ruby", "Perl", "Node", "Java", "Go", "Lua", "Tcl"}
WITHOUT_RECIPE = {"How to run a recipe"}

Recipe = namedtuple("Recipe", "section files command")


def sections():
    """(name, text) of each heading; a heading of level 3 is "host: heading"."""
    host = None
    for part in re.split(r"^(?=###? )", PAGE.read_text(), flags=re.M)[1:]:
        heading, _, text = part.partition("\n")
        if heading.startswith("## "):
            host = name = heading[3:]
        else:
            name = "%s: %s" % (host, heading[4:])
        yield name, text


def recipe(name, text):
    """The recipe of a section: its files, and the one block of `sh` that runs them; None without blocks."""
    blocks = list(FENCE.finditer(text))
    if not blocks:
        return None
    *files, command = blocks
    assert command["language"] == "sh" and not command["file"], "%s does not end with the command" % name
    assert all(block["file"] for block in files), "a block of %s has no file name" % name
    assert text.count("```") == 2 * len(blocks), "a block of %s is not understood" % name
    return Recipe(name, {block["file"]: block["text"] for block in files}, command["text"])


RECIPES = {name: found for name, text in sections() if (found := recipe(name, text))}
CLOSING = [name for name, found in RECIPES.items() if any(map(OPTIONAL.search, found.files.values()))]


def environment(section, folder):
    """Finds the packages that are installed for the tests and not for the system."""
    tools = {"Python: sqlite3": "/usr/bin", "Python: SQLAlchemy": "/usr/bin", "Python: apsw": CACHE / "venv" / "bin",
             "Node: node:sqlite": CACHE / "node22" / "bin"}
    path = [str(tools[section])] if section in tools else []
    return dict(clean_environment(), PATH=os.pathsep.join([*path, os.environ["PATH"]]),
                NODE_PATH=str(CACHE / "node" / "node_modules"), GOCACHE=str(CACHE / "go"), GOFLAGS="",
                WALFERRY_REPLICA="file://%s/replica" % folder, WALFERRY_LOG_FILE=str(folder / "log"),
                # Only walferry_sync() or the end of the process ships commits after the first file.
                WALFERRY_SYNC_INTERVAL="1h", WALFERRY_SHUTDOWN_TIMEOUT="60s")


def run(section, folder, ending=None, code=0):
    """Runs a recipe in an empty folder. The ending is put in place of the optional lines."""
    work = folder / "work"
    work.mkdir()
    shutil.copy(EXTENSION, work)
    found = RECIPES[section]
    for name, text in found.files.items():
        if ending is not None:
            text = OPTIONAL.sub(lambda line: line["indent"] + ending + "\n", text)
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(text)
    done = subprocess.run(["bash", "-e", "-c", found.command], cwd=work, env=environment(section, folder),
                          text=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=300)
    # A shell may end with 128 and the signal, or replace itself by the program that the signal ends.
    ended = done.returncode if done.returncode >= 0 else 128 - done.returncode
    assert ended == code, "%s: exit code %d\n%s%s" % (section, ended, done.stdout, done.stderr)
    return work / "app.db"


def restored_rows(folder):
    """The rows of the table `notes` on the replica."""
    output = restore(DirectoryReplica(folder / "replica"), folder / "restored.db")
    assert is_wal(output)
    found = rows(output, "SELECT body FROM notes")
    output.unlink()
    return found


def is_wal(database):
    return database.read_bytes()[18:20] == b"\2\2"


@pytest.mark.parametrize("section", RECIPES)
def test_recipe_replicates(section, tmp_path):
    database = run(section, tmp_path)
    assert is_wal(database)
    assert restored_rows(tmp_path) == [("hello",)]


# Programs that load walferry on the connection to their own new database.
ON_ITS_OWN = {
    "Python: sqlite3": ("python3", """
import sqlite3
db = sqlite3.connect("app.db")
db.enable_load_extension(True)
db.load_extension("./walferry")
db.execute("CREATE TABLE notes (body TEXT)")
db.execute("INSERT INTO notes VALUES ('hello')")
db.commit()
"""),
    "Python: SQLAlchemy": ("python3", """
from sqlalchemy import create_engine, event, text

engine = create_engine("sqlite:///app.db")

@event.listens_for(engine, "connect")
def load(connection, _record):
    connection.enable_load_extension(True)
    connection.load_extension("./walferry")

with engine.begin() as db:
    db.execute(text("CREATE TABLE notes (body TEXT)"))
    db.execute(text("INSERT INTO notes VALUES ('hello')"))
"""),
    "Ruby: sqlite3": ("ruby", """
require "sqlite3"
db = SQLite3::Database.new("app.db")
db.enable_load_extension(true)
db.load_extension("./walferry.so")
db.execute("CREATE TABLE notes (body TEXT)")
db.execute("INSERT INTO notes VALUES ('hello')")
"""),
    "Perl": ("perl", """
use DBI;
my $db = DBI->connect("dbi:SQLite:dbname=app.db", "", "", { RaiseError => 1 });
$db->sqlite_enable_load_extension(1);
$db->sqlite_load_extension("./walferry.so");
$db->do("CREATE TABLE notes (body TEXT)");
$db->do("INSERT INTO notes VALUES ('hello')");
"""),
    "Node: better-sqlite3": ("node", """
const db = new (require("better-sqlite3"))("app.db");
db.loadExtension("./walferry.so");
db.exec("CREATE TABLE notes (body TEXT)");
db.exec("INSERT INTO notes VALUES ('hello')");
"""),
}


@pytest.mark.parametrize("section", ON_ITS_OWN)
def test_extension_is_loaded_on_the_databases_own_connection(section, tmp_path):
    """It is new, and in another mode than WAL: the first transaction that writes is followed by the change."""
    program, text = ON_ITS_OWN[section]
    shutil.copy(EXTENSION, tmp_path)
    (tmp_path / "app").write_text(text)
    done = subprocess.run([program, "app"], cwd=tmp_path, env=environment(section, tmp_path), text=True,
                          capture_output=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert is_wal(tmp_path / "app.db")
    assert restored_rows(tmp_path) == [("hello",)]


POOL = """
from sqlalchemy.pool import QueuePool
from threading import Barrier, Thread

engine.dispose()
engine = create_engine("sqlite:///app.db", poolclass=QueuePool, pool_size=4, connect_args={"timeout": 60})
all_have_one = Barrier(4)

def write(n):
    with engine.connect() as db:
        all_have_one.wait()
        for i in range(25):
            with db.begin():
                db.execute(text("INSERT INTO notes VALUES (:body)"), {"body": "%d-%d" % (n, i)})

threads = [Thread(target=write, args=(n,)) for n in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def test_all_connections_of_a_pool_replicate(tmp_path):
    run("Python: SQLAlchemy", tmp_path, POOL)
    found = restored_rows(tmp_path)
    assert sorted(found) == sorted([("hello",), *(("%d-%d" % (n, i),) for n in range(4) for i in range(25))])


# How a recipe runs a statement on its database.
EXECUTE = {
    "C": 'sqlite3_exec(db, "%s", NULL, NULL, NULL);',
    "Python: sqlite3": 'db.execute("%s").fetchall(); db.commit()',
    "Python: apsw": 'list(db.execute("%s"))',
    "Python: SQLAlchemy": "with engine.begin() as db: db.execute(text(\"%s\"))",
    "PHP: SQLite3": '$db->exec("%s");',
    "PHP: PDO": '$db->query("%s")->fetchAll();',
    "Ruby: sqlite3": 'db.execute("%s")',
    "Ruby: ActiveRecord and Rails": 'ActiveRecord::Base.connection.execute("%s")',
    "Perl": '$db->do("%s");',
    "Node: better-sqlite3": 'db.exec("%s");',
    "Node: node:sqlite": 'db.exec("%s");',
    "Java": 'db.createStatement().execute("%s");',
    "Go": 'db.Exec("%s")',
    "Lua: Lua with a module in C": 'db:execute("%s")',
    "Lua: LuaJIT": 'db:execute("%s")',
    "Tcl": "db eval {%s}",
}


def late(section):
    """Inserts a row that only the end of the process ships: the sync interval begins with the file before it."""
    sync = "SELECT walferry_sync()"
    return "\n".join(EXECUTE[section] % sql for sql in (
        sync, "UPDATE notes SET body = 'sent'", sync, "INSERT INTO notes (body) VALUES ('late')"))


@pytest.mark.parametrize("section", CLOSING)
def test_exit_with_an_open_connection_ships(section, tmp_path):
    run(section, tmp_path, late(section))
    # A Go program runs no exit handler.
    assert restored_rows(tmp_path) == [("sent",)] + [("late",)] * (section != "Go")


JAVA_SIGTERM = ('try { new ProcessBuilder("kill", "-TERM", "" + ProcessHandle.current().pid()).start().waitFor();'
                ' Thread.sleep(60000); } catch (Exception error) { throw new RuntimeException(error); }')
NODE_HANDLER = 'process.on("SIGTERM", () => process.exit(0));'
NODE_SIGTERM = 'process.kill(process.pid, "SIGTERM"); setTimeout(() => {}, 60000);'
SIGTERM = 128 + 15

# The table of the page: section, the end of the program, its exit code, whether the last row is on the replica.
ENDS = [
    ("Python: sqlite3", "raise SystemExit(3)", 3, True),
    ("Python: sqlite3", "raise ValueError", 1, True),
    ("Python: sqlite3", "import os; os._exit(0)", 0, False),
    ("Python: sqlite3", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)", SIGTERM, False),
    ("PHP: PDO", "exit(3);", 3, True),
    ("PHP: PDO", "throw new Exception('end');", 255, True),
    ("Ruby: sqlite3", "exit 3", 3, True),
    ("Ruby: sqlite3", 'raise "end"', 1, True),
    ("Ruby: sqlite3", "exit! 0", 0, False),
    ("Ruby: sqlite3", 'Signal.trap("TERM") { exit }; Process.kill("TERM", $$); sleep 60', 0, True),
    ("Perl", "exit 3;", 3, True),
    ("Perl", "$! = 0; die;", 255, True),
    ("Perl", "use POSIX (); POSIX::_exit(0);", 0, False),
    ("Node: better-sqlite3", "process.exit(3);", 3, True),
    ("Node: better-sqlite3", 'throw new Error("end");', 1, True),
    ("Node: better-sqlite3", NODE_SIGTERM, SIGTERM, False),
    ("Node: better-sqlite3", NODE_HANDLER + NODE_SIGTERM, 0, True),
    ("Java", "System.exit(3);", 3, True),
    ("Java", 'throw new RuntimeException("end");', 1, True),
    ("Java", JAVA_SIGTERM, SIGTERM, True),
    ("Tcl", "exit 3", 3, True),
    ("Tcl", "error end", 1, True),
]


@pytest.mark.parametrize("section, ending, code, ships", ENDS, ids=lambda value: str(value)[:24])
def test_end_of_the_process(section, ending, code, ships, tmp_path):
    run(section, tmp_path, "%s\n%s" % (late(section), ending), code)
    assert restored_rows(tmp_path) == [("sent",)] + [("late",)] * ships


def test_commits_before_an_end_without_exit_handler_are_shipped_later(tmp_path):
    database = run("Python: sqlite3", tmp_path, late("Python: sqlite3") + "\nimport os; os._exit(0)")
    assert restored_rows(tmp_path) == [("sent",)]
    done = subprocess.run([PROGRAM, "sync", database], env=environment("Python: sqlite3", tmp_path), text=True,
                          capture_output=True, timeout=120)
    assert done.returncode == OK, done.stderr
    assert restored_rows(tmp_path) == [("sent",), ("late",)]


def test_second_load_changes_nothing(tmp_path, monkeypatch):
    found = RECIPES["PHP: PDO"]
    twice = re.sub(r"(\$loader = .*\n.*\n)", r"\1\1", found.files["app.php"])
    assert twice.count("loadExtension") == 2
    monkeypatch.setitem(RECIPES, "PHP: PDO", found._replace(files={"app.php": twice}))
    run("PHP: PDO", tmp_path)
    assert restored_rows(tmp_path) == [("hello",)]


def test_each_section_has_a_recipe():
    """test_recipe_replicates runs all of RECIPES, so no section may be without one."""
    names = {name for name, _text in sections()} - WITHOUT_RECIPE
    leaves = {name for name in names if not any(other.startswith(name + ": ") for other in names)}
    assert {name for name in leaves if name.partition(": ")[0] not in WITHOUT_RECIPE} == set(RECIPES)
    assert {name.partition(": ")[0] for name in RECIPES} == HOSTS


def test_readme_leads_to_the_page():
    assert "](docs/hosts.md)" in (ROOT / "README.md").read_text()
