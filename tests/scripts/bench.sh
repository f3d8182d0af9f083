#!/usr/bin/env bash
# All measurements but that of a database of many gigabytes (bench/large.py); WALFERRY_BENCH_GB and WALFERRY_BENCH_ROUNDS change their size.
. "$(dirname "$0")/common.sh"

need "the SQLite headers" libsqlite3-dev test -e /usr/include/sqlite3.h
test_packages
/usr/bin/python3 bench/commits.py
/usr/bin/python3 bench/sidecar.py
/usr/bin/python3 bench/memory.py
"$VENV/bin/python" bench/restore.py
