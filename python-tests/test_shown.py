"""What a server, a name or a file says reaches no terminal, log or status as it is."""

import contextlib
import http.server
import json
import os
import subprocess
import threading
import unicodedata

import pytest

from harness import EXTENSION, PROGRAM, DirectoryReplica, clean_environment, walferry
from test_config import TABLE, database_of, write  # noqa: F401  (a fixture)

# Clears a terminal, renames its window, rings, goes back over what is there; the same in one character
# each; and text that is read from the other side.
NASTY = "a\x1b[2J\x1b]0;gone\x07\rb\x7f\x9b31m\x85\u2028\u2029\u202e\u2066c"
ESCAPED = "a\\u001b[2J\\u001b]0;gone\\u0007\\rb\\u007f\\u009b31m\\u0085\\u2028\\u2029\\u202e\\u2066c"


def harmless(*texts):
    """No character with which a terminal does anything but show it, or end a line."""
    for text in texts:
        for line in text.split("\n"):
            wrong = [c for c in line if unicodedata.category(c) in ("Cc", "Zl", "Zp")
                     or 0x202a <= ord(c) <= 0x202e or 0x2066 <= ord(c) <= 0x2069]
            assert not wrong, "%a in %a" % (wrong, line)


def texts(value):
    """All texts in what was JSON."""
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    return [value] if isinstance(value, str) else sum(map(texts, value), []) if isinstance(value, list) else []


def run(*arguments, env=None):
    done = subprocess.run([str(PROGRAM), *map(str, arguments)], capture_output=True, timeout=120,
                          env=dict(clean_environment(), **(env or {})), stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture
def nasty(new_host, tmp_path):
    """A database with such a name, in a folder with such a name, and its replica in another."""
    folder = tmp_path / NASTY
    folder.mkdir()
    database, replica = folder / (NASTY + ".db"), DirectoryReplica(tmp_path / (NASTY + " replica"))
    host = new_host(env={"WALFERRY_REPLICA": str(replica.folder)})
    host.open(database).sql("PRAGMA journal_mode=WAL", TABLE, "INSERT INTO t (x) VALUES (1)")
    host.sync()
    yield database, replica, host
    host.finish()


def test_names_in_status_and_log_of_extension_are_escaped(nasty, tmp_path):
    database, _replica, host = nasty
    text = host.value("SELECT walferry_status()")
    harmless(text)
    (one,) = json.loads(text)
    assert one["database"] == str(database), "JSON says the name as it is"
    os.rename(database, str(database) + ".away")
    with pytest.raises(Exception, match="renamed") as error:
        host.sync()
    harmless(str(error.value))
    log = (tmp_path / "walferry.log").read_text()
    harmless(log)
    assert ESCAPED in log


@pytest.mark.parametrize("form", ["text", "json"])
def test_names_in_log_are_escaped_and_lines_stay_lines(form, new_host, tmp_path):
    database = tmp_path / (NASTY + "\n2026-01-01T00:00:00.000Z walferry ERROR: forged.db")
    host = new_host(env={"WALFERRY_REPLICA": "%s" % (tmp_path / "replica"), "WALFERRY_LOG_FORMAT": form})
    host.open(database).sql("PRAGMA journal_mode=WAL", TABLE)
    host.sync()
    host.finish()
    log = (tmp_path / "walferry.log").read_text()
    harmless(log)
    assert not [line for line in log.split("\n") if line.startswith("2026-01-01")]
    if form == "json":
        lines = [json.loads(line) for line in log.splitlines()]
        assert any(str(database) in line["msg"] for line in lines)


def test_names_in_host_log_are_escaped(tmp_path):
    database = tmp_path / (NASTY + ".db")
    done = subprocess.run(
        ["sqlite3", ":memory:", ".log stderr", ".load %s" % EXTENSION, "ATTACH '%s' AS a" % database,
         "PRAGMA a.journal_mode=WAL", "CREATE TABLE a.t (x)", "SELECT walferry_sync(20000)"], text=True,
        env=dict(clean_environment(), WALFERRY_REPLICA=str(tmp_path / "replica"), WALFERRY_LOG="what\x1bever"),
        capture_output=True, timeout=60)
    harmless(done.stderr)
    assert "what\\u001bever" in done.stderr and ESCAPED in done.stderr, done.stderr


def test_names_in_output_of_program_are_escaped(nasty, tmp_path, write):
    database, replica, host = nasty
    host.finish()
    for arguments in (["status", database], ["ltx", replica.folder], ["verify", replica.folder],
                      ["restore", "-o", tmp_path / (NASTY + "\nout.db"), replica.folder],
                      ["restore", "-o", tmp_path / (NASTY + "\nout.db"), replica.folder],
                      ["sync", database, "--replica", replica.folder],
                      ["reset", "--dry-run", database], ["ltx", str(replica.folder) + "-none"],
                      ["ltx", "--level", NASTY, replica.folder], ["compact", replica.folder]):
        code, said, errors = run(*arguments)
        harmless(said, errors)
        assert "panicked" not in errors, errors
        assert ESCAPED in said + errors or arguments[0] in ("ltx", "verify", "compact"), (arguments, said, errors)
        assert not [line for line in (said + errors).split("\n") if line.startswith("out.db")]
    _code, said, _errors = run("status", "--json", database)
    harmless(said)
    assert json.loads(said)[0]["database"] == str(database)


def test_names_in_folder_are_escaped(tmp_path, write):
    """Somebody else may make a database in a folder that is replicated as a whole."""
    folder = tmp_path / "data"
    folder.mkdir()
    name = NASTY + "\nok      forged: all is well.db"
    database_of(folder / name, "x")
    path = write("dbs:\n- dir: %s\n  pattern: '*.db'\n  replica:\n    path: %s\n" % (folder, tmp_path / "r"))
    for command in ("databases", "check"):
        _code, said, errors = run(command, "--config", path)
        harmless(said, errors)
        assert ESCAPED in said and not [line for line in said.split("\n") if line.startswith("ok      forged")]
        _code, said, _errors = run(command, "--json", "--config", path)
        harmless(said)
        assert any(str(folder / name) in text for text in texts(json.loads(said)))
    done = subprocess.run([str(PROGRAM), "replicate", "--once", "--config", str(path)], capture_output=True,
                          env=clean_environment(), timeout=60)
    harmless(done.stdout.decode(), done.stderr.decode())
    assert done.returncode == 0, done.stderr


# What XML cannot hold at all, a server may still send; the rest is allowed in it.
ANSWER = """<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>Strange&#x9b;2J</Code><Message>no&#x9b;31m\u202e &#xd;&#xa;walferry: all is well</Message>
<RequestId>r&#x85;</RequestId></Error>"""


@contextlib.contextmanager
def server_that_says(answer):
    class Handler(http.server.BaseHTTPRequestHandler):
        def say(self):
            self.rfile.read(int(self.headers.get("content-length") or 0))
            self.send_response(400)
            self.send_header("content-length", str(len(answer.encode())))
            self.end_headers()
            self.wfile.write(answer.encode())

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = say

        def log_message(self, *_arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield "http://127.0.0.1:%d" % server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def test_words_of_server_are_escaped(new_host, tmp_path):
    with server_that_says(ANSWER) as endpoint:
        env = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "i", "AWS_SECRET_ACCESS_KEY": "s",
               "AWS_REGION": "x", "AWS_EC2_METADATA_DISABLED": "true"}
        for arguments in (["ltx"], ["verify"], ["restore", "-o", tmp_path / "out.db"],
                          ["restore", "--json", "-o", tmp_path / "out.db"]):
            code, said, errors = run(*arguments, "s3://bucket/app", env=env)
            harmless(said, errors)
            assert code != 0 and "\\u009b31m" in errors, errors
            assert not [line for line in errors.split("\n") if line.startswith("walferry: all is well")]
        host = new_host(env=dict(env, WALFERRY_REPLICA="s3://bucket/app"))
        host.open(tmp_path / "app.db").sql("PRAGMA journal_mode=WAL", TABLE)
        with pytest.raises(Exception, match="31m") as error:
            host.value("SELECT walferry_sync(3000)")
        text = host.value("SELECT walferry_status()")
        harmless(text, str(error.value))
        assert "\x9b31m" in json.loads(text)[0]["last_error"]
        # What another process says of itself stands in a file that any may have written.
        _code, said, errors = run("status", tmp_path / "app.db")
        harmless(said, errors)
        host.finish()
    harmless((tmp_path / "walferry.log").read_text())


def test_names_of_files_in_replica_are_escaped(nasty, tmp_path):
    """One that is of no level and no generation is not shown at all; nor does it end anything."""
    _database, replica, host = nasty
    host.finish()
    for name in (NASTY, "generations/" + NASTY + "/snapshots/" + NASTY, "ltx/0/" + NASTY + ".ltx"):
        (replica.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (replica.folder / name).write_bytes(b"x")
    for command in (["ltx"], ["verify"], ["restore", "--list"], ["restore", "-o", tmp_path / "out.db"]):
        _code, said, errors = run(*command, replica.folder)
        harmless(said, errors)


def test_ordinary_names_are_exact(new_host, tmp_path, write):
    name = "räume und 数据 \U0001f600 \\u001b.db"
    database_of(tmp_path / name, "x")
    path = write("dbs:\n- path: '%s'\n  replica: {path: /r}\n" % (tmp_path / name))
    assert str(tmp_path / name) in walferry("databases", "--config", path).stdout.split("\n")
    said = walferry("databases", "--config", path, "--json").stdout
    assert json.loads(said)["databases"][0]["path"] == str(tmp_path / name)
