"""Two writers meet on one replica: one wins, nobody's commits are lost, and both are told."""

import contextlib
import json
import os
import random
import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from harness import (LOG_TABLE, SEED, HostError, S3Replica, assert_log_state, assert_restores, journal,
                     live_image, restore, rows, sha256, txids, walferry)

DECLINED = 7


def machine(tmp_path, name):
    """A folder that stands for a machine; the path of its database."""
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    return folder / "app.db"


def start(new_host, replica, database, **env):
    host = new_host("system", replica, env=env)
    host.open(database)
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE IF NOT EXISTS t (x)")
    return host


def fence(host, database):
    """Commits until the host is told that it lost its place; its status."""
    host.sql("INSERT INTO t VALUES ('too late')")
    with pytest.raises(HostError, match="another writer"):
        host.value("SELECT walferry_sync(60000)")
    state = host.status(database)
    assert state["state"] == "fenced", state
    return state


def writer_of(header):
    return header[72:80].hex()


def writers(replica):
    """Who wrote each file of level 0, by TXID."""
    return {first: writer_of(replica.read(level, first, last)[:100])
            for level, first, last in replica.keys() if level == 0}


def own_id(database):
    state = json.loads(Path("%s-walferry/state" % database).read_text())
    return "%016x" % json.loads(state["body"])["writer"]


def spooled(database):
    return sorted(p.name for p in Path("%s-walferry/spool" % database).glob("*.ltx"))


def kept(database):
    return sorted(str(p) for p in Path("%s-walferry" % database).glob("kept-*/*.ltx"))


def promote(replica, database, *arguments, code=0):
    """The command's report, or its message when it refuses."""
    url = ["--replica", replica.url] if replica.scheme == "s3" else []
    done = walferry("promote", database, "--json", *url, *arguments, env=replica.reading, code=code)
    return json.loads(done.stdout) if code == 0 else done.stderr


@pytest.mark.parametrize("scheme", ["file", "s3"])
def test_a_restored_copy_takes_over_and_is_turned_back(scheme, new_host, new_replica, tmp_path):
    replica = new_replica(scheme)
    first, second = machine(tmp_path, "one"), machine(tmp_path, "two")
    one = start(new_host, replica, first)
    one.sql("INSERT INTO t VALUES ('one')")
    shared = int(one.sync(), 16)
    restore(replica, second)
    two = start(new_host, replica, second)
    two.sql("INSERT INTO t VALUES ('two')")
    assert int(two.sync(), 16) > shared

    # The older writer finds a stranger's file at its TXID, and says so everywhere.
    state = fence(one, first)
    assert state["lag_ms"] > 0 and state["pending_bytes"] > 0 and own_id(second) in state["last_error"]
    assert "/spool" in state["last_error"]
    assert "another writer (%s)" % own_id(second) in (tmp_path / "walferry.log").read_text()
    asked = state["requests"]
    for n in range(50):
        one.sql("INSERT INTO t VALUES (%d)" % n)
    with pytest.raises(HostError, match="another writer"):
        one.value("SELECT walferry_wait(60000)")
    state = one.status(first)
    assert state["requests"] == asked and state["lag_ms"] > 0, "a fenced writer asks for nothing more"
    assert one.value("SELECT count(*) FROM t") == 52 and spooled(first)

    # The other goes on, and the log is its own from its first file on.
    two.sql("INSERT INTO t VALUES ('two again')")
    last_of_two = int(two.sync(), 16)
    assert_restores(replica, second, tmp_path)
    assert {own for txid, own in writers(replica).items() if txid > shared} == {own_id(second)}

    # A restart changes nothing: what was not shipped is still there, and it is still fenced.
    before = spooled(first)
    assert "process %d" % one.process.pid in promote(replica, first, code=DECLINED)
    one.close()
    one.finish()
    one = start(new_host, replica, first)
    with pytest.raises(HostError, match="another writer"):
        one.value("SELECT walferry_sync(60000)")
    assert set(before) <= set(spooled(first))
    one.close()
    one.finish()

    # A person decides otherwise. A dry run says how things stand and changes nothing.
    looked = promote(replica, first, "--dry-run")
    assert looked["fenced"] and not looked["promoted"] and looked["claimed"] is None
    assert looked["head"]["txid"] == "%016x" % last_of_two and looked["head"]["writer"] == own_id(second)
    assert looked["ours"]["unshipped_bytes"] > 0 and set(before) <= set(spooled(first))
    done = promote(replica, first)
    assert done["promoted"] and int(done["claimed"], 16) == last_of_two + 1
    # Until the next start the replica holds what the other made.
    assert_restores(replica, second, tmp_path)
    state = fence(two, second)
    assert done["writer"] in state["last_error"]
    one = start(new_host, replica, first)
    one.sql("INSERT INTO t VALUES ('back')")
    one.sync()
    assert one.status(first)["state"] == "streaming" and own_id(first) == done["writer"]
    assert_restores(replica, first, tmp_path)
    restore(replica, tmp_path / "theirs.db", last_of_two)
    assert rows(tmp_path / "theirs.db", "SELECT x FROM t") == [("one",), ("two",), ("two again",)]
    assert {own for txid, own in writers(replica).items() if txid > last_of_two} == {done["writer"]}
    assert two.value("SELECT count(*) FROM t") == 4


@pytest.mark.parametrize("scheme", ["file", "s3"])
def test_a_folder_that_was_copied(scheme, new_host, new_replica, tmp_path):
    """Both copies have the same writer id: one of them gets another, and the other stops."""
    replica = new_replica(scheme)
    first, second = machine(tmp_path, "one"), machine(tmp_path, "two")
    one = start(new_host, replica, first)
    shared = int(one.sync(), 16)
    one.close()
    one.finish()
    shutil.rmtree(tmp_path / "two")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    hosts = {first: start(new_host, replica, first), second: start(new_host, replica, second)}
    states = []
    for n in range(20):
        for database, host in hosts.items():
            host.sql("INSERT INTO t VALUES ('%s %d')" % (database.parent.name, n))
            try:
                host.value("SELECT walferry_sync(60000)")
            except HostError as error:
                assert "another writer" in str(error)
        states = [host.status(database)["state"] for database, host in hosts.items()]
        if "fenced" in states:
            break
    assert sorted(states) == ["fenced", "streaming"], states
    winner = [database for database, host in hosts.items()
              if host.status(database)["state"] == "streaming"][0]
    hosts[winner].sync()
    assert_restores(replica, winner, tmp_path)
    ids = writers(replica)
    assert ids[max(ids)] == own_id(winner)
    assert max(ids) - shared < 8, "the two went on taking turns: %s" % ids


@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("scheme", ["file", "s3"])
def test_a_file_of_another_database_at_the_logs_end_is_not_gone_on_from(scheme, files, new_host, new_replica,
                                                                        tmp_path):
    """Somebody empties the replica, and another database has as many files there when we come back."""
    replica = new_replica(scheme)
    first, second = machine(tmp_path, "one"), machine(tmp_path, "two")

    def begin(database):
        with contextlib.closing(sqlite3.connect(database)) as made:
            # All of it: a start that commits something has one file or two.
            made.executescript("PRAGMA journal_mode=WAL; CREATE TABLE t (x); INSERT INTO t VALUES ('made %s')"
                               % database.parent.name)
        host = start(new_host, replica, database)
        host.sync()
        while txids(replica)[-1] < files:
            host.sql("INSERT INTO t VALUES ('%s')" % database.parent.name)
            host.sync()
        assert txids(replica)[-1] == files
        return host

    one = begin(first)
    one.close()
    one.finish()
    replica.remove_all()
    two = begin(second)
    one = start(new_host, replica, first)
    state = fence(one, first)
    assert own_id(second) in state["last_error"]
    two.sql("INSERT INTO t VALUES ('goes on')")
    two.sync()
    assert_restores(replica, second, tmp_path)


def test_promote_refuses_where_there_is_nothing_to_promote(new_host, new_replica, tmp_path):
    replica, other = new_replica(), new_replica()
    database = machine(tmp_path, "one")
    assert "no database" in walferry("promote", database, code=2).stderr
    host = start(new_host, replica, database)
    last = int(host.sync(), 16)
    host.close()
    host.finish()
    before = sha256(database)
    said = promote(replica, database, code=DECLINED)
    assert "has not lost its place" in said and "--force" in said
    assert "not to" in walferry("promote", database, "--replica", other.url, code=2).stderr
    assert txids(replica)[-1] == last and sha256(database) == before
    # By force it claims all the same, as a new writer with an image.
    old = own_id(database)
    done = promote(replica, database, "--force")
    assert not done["fenced"] and done["promoted"] and done["writer"] != old
    host = start(new_host, replica, database)
    host.sync()
    assert own_id(database) == done["writer"]
    assert_restores(replica, database, tmp_path)
    # Without any state there is nothing that could have been lost.
    host.close()
    host.finish()
    shutil.rmtree("%s-walferry" % database)
    assert "takes the replica by itself" in promote(replica, database, code=DECLINED)


def test_promote_does_not_wait_for_a_pause_of_the_other(new_host, new_replica, tmp_path):
    """The other writes as fast as it can; the decision takes effect all the same."""
    replica = new_replica()
    first, second = machine(tmp_path, "one"), machine(tmp_path, "two")
    one = start(new_host, replica, first)
    one.sync()
    restore(replica, second)
    two = start(new_host, replica, second, WALFERRY_SYNC_INTERVAL="0")
    two.sql(LOG_TABLE)
    two.sync()
    fence(one, first)
    one.finish()
    writing = two.ask("writer", args=["two", str(tmp_path / "notes"), 0])
    while len(txids(replica)) < 20:
        assert not writing.done()
        time.sleep(0.001)
    done = promote(replica, first)
    one = start(new_host, replica, first)
    one.sync()
    assert_restores(replica, first, tmp_path)
    two.call("stop")
    writing.result()
    fence(two, second)
    ids = writers(replica)
    claimed = int(done["claimed"], 16)
    assert {own for txid, own in ids.items() if txid >= claimed} == {own_id(first)}
    assert own_id(first) not in {own for txid, own in ids.items() if txid < claimed}
    # What the other had on the replica by then restores as it was.
    assert assert_log_state(restore(replica, tmp_path / "theirs.db", claimed - 1), "two") > 0


@pytest.mark.parametrize("lost", ["nothing", "the end of the WAL", "the database"])
def test_reset(lost, new_host, s3, proxy, tmp_path):
    replica = S3Replica(s3, "reset/%s" % tmp_path.name, proxy.endpoint)
    database = machine(tmp_path, "one")
    assert "no database" in walferry("reset", database, code=2).stderr
    host = start(new_host, replica, database)
    host.sync()
    said = walferry("reset", database, code=DECLINED).stderr
    assert "process %d" % host.process.pid in said
    rule = proxy.rule("blackhole")
    host.sql("INSERT INTO t VALUES ('not shipped')")
    proxy.wait(rule)
    host.kill()
    wal = Path("%s-wal" % database)
    if lost == "the end of the WAL":
        os.truncate(wal, wal.stat().st_size - 5)
    elif lost == "the database":
        database.unlink()
    before = {path: sha256(path) for path in (database, wal) if path.exists()}
    looked = json.loads(walferry("reset", database, "--dry-run", "--json").stdout)
    assert not looked["reset"] and looked["in_database"] == (lost == "nothing")
    assert [file["txid"] for file in looked["unshipped"]] == ["%016x" % (txids(replica)[-1] + 1)]
    assert len(spooled(database)) == 1 and not kept(database)
    unshipped = Path("%s-walferry/spool/%s" % (database, spooled(database)[0])).read_bytes()
    text = walferry("reset", database).stdout
    assert "TXID %016x" % (txids(replica)[-1] + 1) in text and "full image" in text
    assert {path: sha256(path) for path in before} == before, "the database was touched"
    # Only what the database is known to hold goes.
    if lost == "nothing":
        assert not kept(database) and "kept-" not in text
    else:
        assert [Path(path).read_bytes() for path in kept(database)] == [unshipped]
        assert "kept-1" in text
    assert not spooled(database)
    again = json.loads(walferry("reset", database, "--json").stdout)
    assert again == {"database": str(database), "reset": False, "reason": "no local state"}, "a second time"
    if lost != "the database":
        proxy.heal()
        host = start(new_host, replica, database)
        host.sync()
        assert host.status(database)["images"] == 1
        assert_restores(replica, database, tmp_path)
        assert len(kept(database)) == (0 if lost == "nothing" else 1), "a start leaves them alone"


@pytest.mark.parametrize("scheme", ["file", "s3"])
def test_a_sync_with_nothing_to_send_asks_whose_the_replica_is(scheme, new_host, new_replica, tmp_path):
    replica = new_replica(scheme)
    first, second = machine(tmp_path, "one"), machine(tmp_path, "two")

    def asked(database, code):
        """What the commands say that are there to be run now and then."""
        done = [walferry("sync", database, "--replica", replica.url, env=replica.env, code=code),
                walferry("replicate", "--once", database, replica.url, env=replica.env, code=code)]
        for one in done:
            assert ("synced" in one.stdout) == (code == 0), one
        return [one.stderr for one in done]

    one = start(new_host, replica, first)
    one.sync()
    asked(first, code=0)
    one.close()
    assert one.finish() == 0
    asked(first, code=0)
    restore(replica, second)
    two = start(new_host, replica, second)
    two.sql("INSERT INTO t VALUES ('two')")
    two.sync()
    asked(second, code=0)
    for said in asked(first, code=1):
        assert "another writer (%s)" % own_id(second) in said and "promote" in said, said
    two.close()
    assert two.finish() == 0
    replica.remove_all()
    for said in asked(second, code=4):
        assert "does not hold transaction" in said, said


def test_reset_of_a_database_without_state(new_host, tmp_path):
    plain = new_host(load=False)
    plain.open(tmp_path / "plain.db")
    plain.sql("CREATE TABLE t (x)")
    assert "nothing to reset" in walferry("reset", tmp_path / "plain.db").stdout
    assert sorted(p.name for p in tmp_path.glob("plain.db*")) == ["plain.db"]


@pytest.mark.parametrize("successor", ["the same disk", "another writer"])
@pytest.mark.parametrize("what", ["a file", "the first image", "parts"])
def test_a_late_put_changes_nothing(what, successor, new_host, s3, proxy, tmp_path):
    """A request of a dead process reaches the store after a successor has gone on."""
    replica = S3Replica(s3, "late/%s" % tmp_path.name, proxy.endpoint)
    first, second = machine(tmp_path, "one"), machine(tmp_path, "two")
    one = new_host("system", replica, env={"WALFERRY_SHUTDOWN_TIMEOUT": "0"})
    one.open(first)
    if what == "a file":
        one.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
        one.sync()
        if successor == "another writer":
            restore(replica, second)
        held = proxy.rule("hold", method="PUT", path=proxy.LOG, count=1)
    elif what == "the first image":
        held = proxy.rule("hold", method="PUT", count=1)
        one.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
    else:  # an image in parts becomes visible by the POST that completes it
        held = proxy.rule("hold", method="POST", path="uploadId=", count=1)
        one.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)",
                "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 40)"
                " INSERT INTO t SELECT randomblob(1000000) FROM n")
    one.sql("INSERT INTO t VALUES ('held')")
    proxy.wait(held, seconds=60)
    one.kill()
    # The successor goes to the store by another way, past the request that is held.
    direct = S3Replica(s3, replica.prefix)
    database = first if successor == "the same disk" else second
    two = start(new_host, direct, database, WALFERRY_LEVELS="off",
                WALFERRY_SNAPSHOT_INTERVAL="off")
    for n in range(3):
        two.sql("INSERT INTO t VALUES (%d)" % n)
        two.sync()
    before = {key: replica.read(*key) for key in replica.keys()}
    answered = len([entry for entry in proxy.log() if "status" in entry])
    proxy.ask("POST", "/release")
    deadline = time.monotonic() + 60
    while True:
        late = [entry for entry in proxy.log() if "hold" in entry["faults"] and "status" in entry]
        if late:
            break
        assert time.monotonic() < deadline, proxy.log()[answered:]
        time.sleep(0.01)
    assert late[0]["status"] in (409, 412, 404), "the late request took effect: %s" % late
    assert {key: replica.read(*key) for key in replica.keys()} == before
    two.sql("INSERT INTO t VALUES ('after')")
    two.sync()
    assert two.status(database)["state"] == "streaming"
    assert_restores(replica, database, tmp_path)


def test_a_late_put_that_comes_first_is_recognised(new_host, s3, proxy, tmp_path):
    """It lands before the successor has looked: its bytes are those that the spool still has."""
    replica = S3Replica(s3, "late/%s" % tmp_path.name, proxy.endpoint)
    database = machine(tmp_path, "one")
    one = start(new_host, replica, database)
    one.sync()
    held = proxy.rule("hold", method="PUT", path=proxy.LOG, count=1)
    one.sql("INSERT INTO t VALUES ('held')")
    proxy.wait(held)
    one.kill()
    proxy.ask("POST", "/release")
    while not [entry for entry in proxy.log() if "hold" in entry["faults"] and "status" in entry]:
        time.sleep(0.01)
    before = {key: replica.read(*key) for key in replica.keys()}
    two = start(new_host, replica, database)
    two.sql("INSERT INTO t VALUES ('after')")
    two.sync()
    assert {key: replica.read(*key) for key in before} == before
    state = two.status(database)
    assert (state["state"], state["images"], state["resyncs"]) == ("streaming", 0, 0), state
    assert_restores(replica, database, tmp_path)


@pytest.mark.parametrize("held", ["a part", "its completion"])
def test_an_image_does_not_complete_in_the_log_that_another_began_meanwhile(held, new_host, s3, proxy, tmp_path):
    """A replica was emptied; while a long image begins it again, another database begins there too."""
    replica = S3Replica(s3, "meanwhile/%s" % tmp_path.name, proxy.endpoint)
    first, second = machine(tmp_path, "one"), machine(tmp_path, "two")
    one = start(new_host, replica, first)
    one.sql("WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 40)"
            " INSERT INTO t SELECT randomblob(1000000) FROM n")
    one.sync()
    one.close()
    one.finish()
    replica.remove_all()
    method, path = {"a part": ("PUT", "partNumber="), "its completion": ("POST", "uploadId=")}[held]
    rule = proxy.rule("hold", method=method, path=path, count=1)
    one = start(new_host, replica, first)
    one.sql("INSERT INTO t VALUES ('after the loss')")
    waiting = one.ask("exec", sql=["SELECT walferry_sync(60000)"], **{"with": []})
    proxy.wait(rule, seconds=60)
    direct = S3Replica(s3, replica.prefix)
    two = start(new_host, direct, second)
    two.sync()
    proxy.ask("POST", "/release")
    with pytest.raises(HostError, match="another writer"):
        waiting.result()
    for n in range(5):
        two.sql("INSERT INTO t VALUES (%d)" % n)
        two.sync()
    assert_restores(direct, second, tmp_path)


# ---- the campaign ----------------------------------------------------------------------------


class Duellist:
    """One machine with a database of its own, which writes a numbered log."""

    def __init__(self, tmp_path, name, new_host, replica, rng):
        self.database, self.seed = machine(tmp_path, name), "%d %s" % (SEED, name)
        self.notes, self.new_host, self.replica, self.rng = tmp_path / name / "notes", new_host, replica, rng
        self.notes.touch()
        self.host = self.writing = None
        self.ids = set()

    def begin(self):
        self.host = self.new_host("system", self.replica, env={
            "WALFERRY_SYNC_INTERVAL": self.rng.choice(("0", "5ms", "50ms")),
            "WALFERRY_SHUTDOWN_TIMEOUT": self.rng.choice(("0", "1s"))})
        self.host.open(self.database)
        self.host.sql("PRAGMA journal_mode=WAL", LOG_TABLE.replace("TABLE", "TABLE IF NOT EXISTS"),
                      "PRAGMA wal_autocheckpoint=%d" % self.rng.choice((5, 100, 1000)))
        start_at = (self.host.value("SELECT max(n) FROM log") or 0) + 1
        assert journal(self.notes)[0] <= start_at - 1 <= journal(self.notes)[0] + 1, "a commit is lost"
        # A wait of a fenced writer ends with an error, so it waits for nothing: see `confirm`.
        self.writing = self.host.ask("writer", args=[self.seed, str(self.notes), 0, start_at])
        self.note_id()

    def note_id(self):
        if Path("%s-walferry/state" % self.database).exists():
            self.ids.add(own_id(self.database))

    def confirm(self):
        """Notes what the replica is said to have, and answers whether we own it."""
        number = self.host.value("SELECT max(n) FROM log", conn="other") or 0
        try:
            self.host.value("SELECT walferry_sync(60000)", conn="other")
        except HostError as error:
            assert "another writer" in str(error), error
            return False
        finally:
            self.note_id()
        with open(self.notes, "a") as notes:
            notes.write("acked %d\n" % number)
        return True

    def end(self):
        """By a kill, or in order."""
        self.note_id()
        if self.rng.random() < 0.5:
            self.host.kill()
        else:
            self.host.call("stop")
            self.writing.result()
            if self.rng.random() < 0.5:
                self.host.close()
                self.host.close("other")
            self.host.finish()
        self.note_id()


def test_duel(request, new_host, new_replica, tmp_path):
    """`make duel ROUNDS=100` runs it longer. Two databases fight over one replica; now and then
    a person decides for one of them, or its state is given up, or a request is late."""
    rounds, rng = request.config.getoption("--duel-rounds"), random.Random("%d duel" % SEED)
    replica = new_replica(request.config.getoption("--duel-scheme") or rng.choice(("file", "s3")))
    both = [Duellist(tmp_path, name, new_host, replica, rng) for name in ("one", "two")]
    written, claims, decided, owners = {}, set(), 0, []
    for round_ in range(rounds):
        order = rng.sample(both, 2)
        for duellist in order:
            duellist.begin()
        for duellist in both:
            duellist.host.open(duellist.database, conn="other")
        time.sleep(rng.random() * 0.4)  # the random moment
        own = [duellist.confirm() for duellist in both]
        # An image may still be on its way when the other is asked; then nobody is fenced yet.
        if own == [True, True]:
            own = [duellist.confirm() for duellist in both]
        assert own.count(True) == 1 or own == [True, True] and round_ == 0, "round %d: %s" % (round_, own)
        for duellist in order:
            duellist.end()
        owners.append(own.index(True))
        check(round_, replica, both, written, claims, tmp_path)
        loser = both[1 - owners[-1]]
        what = rng.choice(("promote", "promote", "reset", "nothing"))
        if what == "promote":
            done = promote(replica, loser.database, "--force")
            claims.add(int(done["claimed"], 16))
            loser.ids.add(done["writer"])
            decided += 1
        elif what == "reset":
            walferry("reset", loser.database)
            decided += 1
    assert rounds < 10 or len(set(owners)) == 2, "nobody ever took over: %s" % owners
    print("%d rounds on %s, %d files, %d decisions, %d changes of owner" % (
        rounds, replica.scheme, len(written), decided,
        sum(a != b for a, b in zip(owners, owners[1:]))))


def check(round_, replica, both, written, claims, tmp_path):
    """After each round: no file ever changed, each has one writer, and what was confirmed is there."""
    newest = {}
    for key in replica.keys():
        if key not in written:
            body = replica.read(*key)
            whose = [d for d in both if writer_of(body) in d.ids]
            assert len(whose) == 1, "round %d: nobody knows writer %s of %s" % (round_, writer_of(body), key)
            written[key] = (hash(body), whose[0])
        newest[key[2]] = written[key][1]
    sample = sorted(written)[-20:]
    assert {key: hash(replica.read(*key)) for key in sample} == {key: written[key][0] for key in sample}
    every = sorted(newest)
    assert every == list(range(1, every[-1] + 1)), "round %d: a hole" % round_
    for duellist in both:
        own = [txid for txid in every if newest[txid] is duellist and txid not in claims]
        done, acked = journal(duellist.notes)
        if own:
            got = assert_log_state(restore(replica, tmp_path / "at.db", own[-1]), duellist.seed)
            (tmp_path / "at.db").unlink()
            assert acked <= got <= done + 1, "round %d: %d acked, %d restored, %d committed" % (
                round_, acked, got, done)
        else:
            assert acked == 0
        # Whatever became of the replica, the database has it all.
        image = tmp_path / "live.db"
        image.write_bytes(as_file(live_copy(duellist, tmp_path)))
        assert done <= assert_log_state(image, duellist.seed) <= done + 1
        image.unlink()


def live_copy(duellist, tmp_path):
    """The pages of a database that nobody has open, its WAL left as it is."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for ending in ("", "-wal"):
        if Path(str(duellist.database) + ending).exists():
            shutil.copy(str(duellist.database) + ending, folder / ("app.db" + ending))
    image = live_image(folder / "app.db")
    shutil.rmtree(folder)
    return image


def as_file(image):
    """An image that opens without a WAL beside it."""
    return image[:18] + b"\1\1" + image[20:]
