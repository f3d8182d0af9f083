#!/usr/bin/env bash
# Writes at full speed while the store fails half of the time: soak.sh MINUTES
. "$(dirname "$0")/common.sh"

test_packages
exec "$VENV/bin/python" python-tests/soak.py "${1:-60}"
