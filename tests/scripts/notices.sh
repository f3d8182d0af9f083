#!/usr/bin/env bash
# The licences of all crates that are compiled into the extension and the program, with their texts:
# dist/THIRD-PARTY-NOTICES
. "$(dirname "$0")/common.sh"

need_cargo
need "/usr/bin/python3" python3 test -x /usr/bin/python3
mkdir -p dist
/usr/bin/python3 tests/scripts/notices.py Cargo.toml sqlite-ext/Cargo.toml >dist/.notices
mv -f dist/.notices dist/THIRD-PARTY-NOTICES
wc -l dist/THIRD-PARTY-NOTICES
