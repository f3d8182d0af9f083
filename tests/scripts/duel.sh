#!/usr/bin/env bash
# Two writers on one replica, on a folder and on S3: duel.sh ROUNDS
. "$(dirname "$0")/common.sh"

test_packages
for scheme in file s3; do
    "$VENV/bin/python" -m pytest -q -s python-tests/test_two_writers.py -k test_duel \
        --duel-rounds "${1:-100}" --duel-scheme "$scheme"
done
