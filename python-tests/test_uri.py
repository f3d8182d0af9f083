"""Which parameters of a database's URI count."""

import json

import pytest

from harness import HOSTS, USAGE, HostError, file_uri, walferry
from test_config import TABLE, database_of, plain_file, write  # noqa: F401  (a fixture)


def attach(host, path, name="other", **parameters):
    """What SQL that nobody vouches for can do; a WAL database with something in it."""
    host.sql("ATTACH '%s' AS %s" % (file_uri(path, **parameters), name), "PRAGMA %s.journal_mode=WAL" % name,
             "CREATE TABLE IF NOT EXISTS %s.u (x)" % name, "INSERT INTO %s.u VALUES ('secret')" % name)


def refused(host, path):
    """The error that the status has of a database."""
    return [one["last_error"] for one in host.status()
            if one["database"] == str(path) and one["state"] == "error"]


@pytest.mark.parametrize("how", ["file", "environment"])
@pytest.mark.parametrize("kind", HOSTS)
def test_uri_names_unlisted_replica_nothing_is_shipped(kind, how, new_host, replica, tmp_path, write):
    elsewhere, app, other = tmp_path / "elsewhere", tmp_path / "app.db", tmp_path / "other.db"
    env = ({"WALFERRY_CONFIG": str(write(plain_file(app, replica)))} if how == "file" else
           {"WALFERRY_REPLICA": "%s/{name}" % replica.url})
    host = new_host(kind, env=env)
    host.open(app, vfs="walferry").sql("PRAGMA journal_mode=WAL", TABLE)
    attach(host, other, replica="file://%s" % elsewhere)
    # The attached database is an ordinary one, and the error names the setting.
    assert host.value("SELECT count(*) FROM other.u") == 1
    (why,) = refused(host, other)
    assert "file://%s" % elsewhere in why and "WALFERRY_URI=all" in why and "uri-parameters" in why
    with pytest.raises(HostError, match="WALFERRY_URI=all"):
        host.sync()
    host.sql("DETACH other")
    host.sync()
    host.finish()
    assert not elsewhere.exists() and not (tmp_path / "other.db-walferry").exists()
    assert "WALFERRY_URI=all" in (tmp_path / "walferry.log").read_text()


def test_uri_names_replica_of_another_database_it_is_refused(new_host, replica, tmp_path, write):
    """A second writer would take the replica from its database."""
    host = new_host(env={"WALFERRY_CONFIG": str(write(plain_file(tmp_path / "app.db", replica)))})
    host.open(":memory:")
    attach(host, tmp_path / "other.db", replica=replica.url)
    assert len(refused(host, tmp_path / "other.db")) == 1
    host.finish()
    assert replica.keys() == []


def test_uri_names_listed_replica_it_is_picked(new_host, new_replica, tmp_path, write):
    first, second = new_replica(), new_replica()
    path = write("dbs:\n- path: %s\n  replicas:\n  - path: %s\n  - path: %s\n"
                 % (tmp_path / "app.db", first.folder, second.folder))
    host = new_host(env={"WALFERRY_CONFIG": str(path)})
    host.open(tmp_path / "app.db", replica=second.url, sync_interval="0", retention="720h")
    host.sql("PRAGMA journal_mode=WAL", TABLE)
    host.sync()
    assert [one["replica"] for one in host.status()] == [second.url]
    assert "ignored" not in (tmp_path / "walferry.log").read_text()


def test_uri_shortens_history_parameter_is_ignored_and_told(new_host, replica, tmp_path, write):
    host = new_host(env={"WALFERRY_CONFIG": str(write(plain_file(tmp_path / "app.db", replica)))})
    host.open(tmp_path / "app.db", retention="1s", shutdown_timeout="100h", spool_cap="1MB", tend="on")
    host.sql("PRAGMA journal_mode=WAL", TABLE)
    host.sync()
    log = (tmp_path / "walferry.log").read_text()
    for parameter in ("retention", "shutdown-timeout", "spool-cap", "tend"):
        assert "URI parameter %s is ignored" % parameter in log, log


@pytest.mark.parametrize("where", ["variable", "file"])
def test_uri_parameters_all_names_any_replica(where, new_host, new_replica, tmp_path, write):
    listed, named = new_replica(), new_replica()
    more = "uri-parameters: all\n" if where == "file" else ""
    env = {"WALFERRY_CONFIG": str(write(plain_file(tmp_path / "app.db", listed, more)))}
    host = new_host(env=dict(env, **({} if more else {"WALFERRY_URI": "all"})))
    host.open(tmp_path / "other.db", replica=named.url).sql("PRAGMA journal_mode=WAL", TABLE)
    host.sync()
    assert named.keys()


def test_uri_parameters_off_are_ignored_with_one_warning(new_host, replica, tmp_path):
    host = new_host(env={"WALFERRY_URI": "off"})
    host.open(":memory:")
    for name in "abc":
        attach(host, tmp_path / (name + ".db"), name, replica=replica.url, retention="1s", strict="1")
    assert host.status() == []
    host.finish()
    assert replica.keys() == []
    assert (tmp_path / "walferry.log").read_text().count("is ignored") == 1
    # What the environment names is replicated all the same.
    host = new_host(env={"WALFERRY_URI": "off", "WALFERRY_REPLICA": replica.url})
    host.open(tmp_path / "app.db", replica="").sql("PRAGMA journal_mode=WAL", TABLE)
    host.sync()
    assert replica.keys()


def test_uri_policy_that_means_nothing_is_an_error(new_host, replica, tmp_path):
    host = new_host(env={"WALFERRY_URI": "maybe"})
    host.open(tmp_path / "app.db", replica=replica.url).sql("PRAGMA journal_mode=WAL", TABLE)
    (why,) = refused(host, tmp_path / "app.db")
    assert "WALFERRY_URI" in why and "all, listed, off" in why
    assert replica.keys() == []


def test_uri_with_unlisted_replica_strict_database_is_not_opened(new_host, replica, tmp_path, write):
    path = write(plain_file(tmp_path / "app.db", replica, "strict: true\n"))
    host = new_host(env={"WALFERRY_CONFIG": str(path)})
    with pytest.raises(HostError, match="(?i)unable to open|cantopen"):
        host.open(tmp_path / "app.db", replica="file:///elsewhere", strict="0")
    assert "WALFERRY_URI=all" in (tmp_path / "walferry.log").read_text()


def test_uri_with_broken_file_believes_what_file_says_of_parameters(new_host, replica, tmp_path, write):
    for first, shipped in ("", False), ("uri-parameters: all\n", True):
        path = write("%sdbs:\n  - path: /a\n    replica: {path: /r, retenton: 1h}\n" % first)
        host = new_host(env={"WALFERRY_CONFIG": str(path)})
        database = tmp_path / ("%s.db" % shipped)
        host.open(database, replica=replica.url).sql("PRAGMA journal_mode=WAL", TABLE)
        assert bool(refused(host, database)) != shipped
        host.finish()
        assert bool(replica.keys()) == shipped


def test_arguments_of_program_are_believed(new_replica, tmp_path):
    """The program writes its URIs itself. The program of --exec gets the variable as it was."""
    database, listed, named = tmp_path / "app.db", new_replica(), new_replica()
    database_of(database, "x")
    env = {"WALFERRY_REPLICA": listed.url, "WALFERRY_URI": "off"}
    walferry("replicate", database, named.url, "--set", "retention=1h", "--exec",
             "sh -c 'echo $WALFERRY_URI > %s'" % (tmp_path / "said"), env=env)
    assert named.keys() and not listed.keys()
    assert (tmp_path / "said").read_text() == "off\n"
    walferry("sync", database, "--replica", named.url, env=env)


def test_what_says_which_parameters_count_is_shown(replica, tmp_path, write):
    path = write(plain_file(tmp_path / "app.db", replica))
    shown = json.loads(walferry("databases", "--json", "--config", path).stdout)
    assert shown["uri-parameters"] == {"value": "listed", "from": "default"}
    assert "uri-parameters" in walferry("databases", "--config", path).stdout
    shown = json.loads(walferry("databases", "--json", "--config", path, env={"WALFERRY_URI": "off"}).stdout)
    assert shown["uri-parameters"] == {"value": "off", "from": "WALFERRY_URI"}
    path = write(plain_file(tmp_path / "app.db", replica, "uri-paramters: all\n"))
    said = walferry("databases", "--config", path, code=USAGE).stderr
    assert "the nearest is uri-parameters" in said
