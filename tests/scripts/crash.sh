#!/usr/bin/env bash
# The SIGKILL campaigns, of one process and of several: crash.sh ROUNDS
. "$(dirname "$0")/common.sh"

test_packages
exec "$VENV/bin/python" -m pytest -q python-tests/test_crash.py -rP \
    -k "sigkill or campaign" --crash-rounds "${1:-200}"
