#!/usr/bin/env bash
# The SIGKILL campaign: crash.sh ROUNDS
. "$(dirname "$0")/common.sh"

test_packages
exec "$VENV/bin/python" -m pytest -q python-tests/test_crash.py -k sigkill --crash-rounds "${1:-200}"
