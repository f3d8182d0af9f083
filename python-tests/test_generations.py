"""What Litestream 0.3 wrote is restored as Litestream 0.5 restores it, from a folder and from S3."""

import json
import os
import shutil
import struct
import time
from datetime import datetime, timezone

import pytest

from harness import (CORRUPT, NO_REPLICA, ROOT, assert_same_pages, check_integrity,
                     litestream_restore, restore, walferry)

GOLDEN = ROOT / "tests" / "golden"
OLD, NEW = GOLDEN / "litestream-0.3.13", GOLDEN / "litestream-0.5.17"
GENERATION = "generations/ebcc5c9659d4a37f"
BEGIN = 1_700_000_000  # when the first object was made, in seconds after the epoch


def objects():
    """The golden objects in the order in which they were made: a snapshot when its WAL begins."""
    paths = [path.relative_to(OLD) for path in (OLD / "generations").rglob("*.lz4")]
    return sorted(paths, key=lambda path: (path.name[:8], path.parent.name == "wal", path.name))


def moment(seconds):
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def put_in_folder(replica, begin=BEGIN):
    """One second apart; the time of the last."""
    for second, path in enumerate(objects(), begin):
        copy = replica.folder / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(OLD / path, copy)
        os.utime(copy, (second, second))
    return second


def put_on_s3(replica, paths):
    for path in paths:
        replica.client.put_object(Bucket=replica.bucket, Key="%s/%s" % (replica.prefix, path),
                                  Body=(OLD / path).read_bytes())


def last_modified(replica):
    pages = replica.client.get_paginator("list_objects_v2").paginate(
        Bucket=replica.bucket, Prefix=replica.prefix + "/")
    return max(item["LastModified"] for page in pages for item in page["Contents"])


def await_later(replica, than):
    """Until what is put to the server is newer; it may count in seconds."""
    deadline = time.monotonic() + 30
    while last_modified(replica) <= than:
        assert time.monotonic() < deadline, "the server's clock stands still"
        time.sleep(0.05)
        replica.client.put_object(Bucket=replica.bucket, Key=replica.prefix + "/probe", Body=b"x")


def assert_as_litestream(replica, folder, timestamp=None):
    ours = restore(replica, folder / "ours.db", timestamp=timestamp)
    theirs = litestream_restore(folder, replica, folder / "theirs.db", timestamp=timestamp)
    assert_same_pages(theirs.read_bytes(), ours.read_bytes(), timestamp)
    check_integrity(ours)
    restored = ours.read_bytes()
    for path in (ours, theirs):
        path.unlink()
    shutil.rmtree(folder / "ours.db-walferry", ignore_errors=True)
    return restored


def test_every_moment_from_a_folder(new_replica, tmp_path):
    replica = new_replica()
    last = put_in_folder(replica)
    states = {assert_as_litestream(replica, tmp_path, moment(second))
              for second in range(BEGIN, last + 1)}
    assert len(states) > 15
    assert assert_as_litestream(replica, tmp_path) in states
    restore(replica, tmp_path / "none.db", timestamp=moment(BEGIN - 1), code=NO_REPLICA)


@pytest.mark.parametrize("scheme", ["s3", "s3-second"])
def test_from_s3(scheme, new_replica, tmp_path):
    replica = new_replica(scheme)
    paths = objects()
    put_on_s3(replica, paths[:9])
    between = last_modified(replica)
    await_later(replica, between)
    put_on_s3(replica, paths[9:])
    expected = (OLD / "restored" / "latest.db").read_bytes()
    assert_same_pages(expected, assert_as_litestream(replica, tmp_path), "latest")
    older = assert_as_litestream(replica, tmp_path, between.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
    assert older != expected
    restore(replica, tmp_path / "none.db", timestamp=moment(BEGIN), code=NO_REPLICA)
    listed = json.loads(walferry("ltx", "--json", replica.url, env=replica.reading).stdout)
    [generation] = listed["generations"]
    assert (len(generation["snapshots"]), len(generation["wals"])) == (4, 9)
    assert listed["problem"] is None

    key = "%s/%s/snapshots/00000008.snapshot.lz4" % (replica.prefix, GENERATION)
    body = replica.client.get_object(Bucket=replica.bucket, Key=key)["Body"].read()
    for bad in (body[:-8], body + b"\0", b""):
        replica.client.put_object(Bucket=replica.bucket, Key=key, Body=bad)
        done = walferry("restore", "-o", tmp_path / "bad.db", replica.url, env=replica.reading,
                        code=CORRUPT)
        assert "00000008.snapshot.lz4 of the replica cannot be used" in done.stderr
    assert not list(tmp_path.glob("bad.db*"))


@pytest.mark.parametrize("upgraded", [True, False])
def test_both_formats_in_one_replica(upgraded, new_replica, tmp_path):
    replica = new_replica()
    times = []
    for path in (NEW / "ltx").rglob("*.ltx"):
        copy = replica.folder / path.relative_to(NEW)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
        (millis,) = struct.unpack_from(">q", copy.read_bytes(), 32)
        times.append(millis / 1000)
        os.utime(copy, (times[-1], times[-1]))  # where Litestream looks for it
    begin = BEGIN if upgraded else int(max(times)) + 100
    last = put_in_folder(replica, begin)
    new = (NEW / "restored" / "0000000000000008.db").read_bytes()
    latest = assert_as_litestream(replica, tmp_path)
    assert (latest == new) is upgraded
    for second, newer in ((begin + 7, False), (last + 5, False), (int(max(times)) + 5, True)):
        got = assert_as_litestream(replica, tmp_path, moment(second))
        assert (got == new) is newer, moment(second)
