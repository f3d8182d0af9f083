#!/usr/bin/env bash
# Random work of SQLite in many versions, and what must be left of it: torture.sh MINUTES
# SEED=N repeats the choices of a run, ROUND=N one round of it until it is red, HOSTS=3.40.1,3.54.1 takes these versions.
. "$(dirname "$0")/common.sh"

need "/usr/bin/python3" python3 test -x /usr/bin/python3
tests/scripts/hosts.sh
exec nice -n 5 /usr/bin/python3 python-tests/torture.py --minutes "${1:-60}" ${SEED:+--seed "$SEED"} \
    ${ROUND:+--round "$ROUND"} ${HOSTS:+--hosts "$HOSTS"}
