#!/usr/bin/env bash
# The main job, shown: the shell writes through walferry, is killed with SIGKILL in mid-work, and
# `walferry restore` brings the database back. Fails if what it brings back is not the same.
. "$(dirname "$0")/common.sh"

need "the sqlite3 shell" sqlite3 command -v sqlite3
SYNCED=600

scratch=$(mktemp -d)
shell=
cleanup() {
    exec 3>&- || true
    [ -z "$shell" ] || kill -9 "$shell" 2>/dev/null || true
    rm -rf "$scratch"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

database=$scratch/app.db
replica=file://$scratch/replica
url="file:$database?vfs=walferry&replica=$replica"
errors=$scratch/errors

step() { printf '\n%s\n' "$*"; }

open_with_walferry() {
    printf '%s\n' '.bail on' '.timeout 10000' '.load dist/walferry' ".open '$url'"
}

step "1. The sqlite3 shell loads the extension and opens a database; its replica is a folder."
open_with_walferry | sed "s,$scratch,...,g; s/^/     /"

# A row a commit, for ever; every 200 rows it waits for the replica and says how far it was behind.
write_rows() {
    open_with_walferry
    printf '%s\n' 'PRAGMA journal_mode = WAL;' \
        'CREATE TABLE orders (id INTEGER PRIMARY KEY, item TEXT, price REAL, note BLOB);'
    local n=0
    while n=$((n + 1)); do
        echo "INSERT INTO orders VALUES ($n, 'item $((n % 97))', $((n % 50)).95, randomblob(400));"
        [ $((n % 200)) != 0 ] || printf '%s\n' \
            "SELECT 'written $n, lag ' || walferry_lag() || ' ms';" \
            "SELECT 'synced $n, TXID ' || walferry_sync(10000);"
    done
}

step "2. It writes rows, a commit each, and waits for the replica now and then."
mkfifo "$scratch/statements"
sqlite3 <"$scratch/statements" >"$scratch/said" 2>"$errors" &
shell=$!
write_rows 2>/dev/null >"$scratch/statements" &
writer=$!
until grep -q "^synced $SYNCED," "$scratch/said"; do
    kill -0 "$shell" 2>/dev/null || { cat "$errors" >&2; die "the shell ended by itself"; }
    sleep 0.02
done
sleep 0.1 # it goes on with rows that it does not wait for
step "3. Its process is killed with SIGKILL, in the middle of its work."
kill -9 "$shell"
wait "$shell" 2>/dev/null || true
kill "$writer" 2>/dev/null || true
wait "$writer" 2>/dev/null || true
shell=
[ ! -s "$errors" ] || { cat "$errors" >&2; die "the shell met an error"; }
grep -E '^(written|synced)' "$scratch/said" | sed 's/^/     /'

step "4. What the replica holds at this moment, without any help from the database:"
dist/walferry restore -o "$scratch/at-once.db" "$replica" >/dev/null
at_once=$(sqlite3 -readonly "file:$scratch/at-once.db?immutable=1" 'SELECT count(*) FROM orders')
echo "     rows restored   $at_once"
[ "$at_once" -ge "$SYNCED" ] || die "row $SYNCED was synced and is not on the replica"

step "5. The next open finds what was left in the WAL and ships it; nothing is sent twice."
{
    open_with_walferry
    printf '%s\n' "SELECT count(*) FROM orders;" "SELECT walferry_lag();" \
        "SELECT walferry_sync(10000);" "SELECT walferry_lag();"
} | sqlite3 >"$scratch/said" 2>"$errors" || { cat "$errors" >&2; die "the database did not open"; }
{ read -r rows && read -r lag && read -r txid && read -r lag_after; } <"$scratch/said" ||
    { cat "$scratch/said" "$errors" >&2; die "the shell said too little"; }
echo "     rows written    $rows"
echo "     lag             $lag ms at open, $lag_after ms after the sync to TXID $txid"

step "6. The database is lost, and restored from the replica."
written_sum=$(sha256sum <"$database" | cut -d ' ' -f 1)
rm -rf "$database" "$database-wal" "$database-shm" "$database-walferry"
dist/walferry restore -o "$database" "$replica" >/dev/null
restored=$(sqlite3 -readonly "file:$database?immutable=1" 'SELECT count(*) FROM orders')
restored_sum=$(sha256sum <"$database" | cut -d ' ' -f 1)
echo "     rows restored   $restored"
echo "     sha256 before   $written_sum"
echo "     sha256 after    $restored_sum"
check=$(sqlite3 -readonly "file:$database?immutable=1" 'PRAGMA integrity_check')
[ "$check" = ok ] || die "integrity_check: $check"
[ "$rows" = "$restored" ] || die "rows differ"
[ "$written_sum" = "$restored_sum" ] || die "checksums differ"
step "The restored database is the one that was lost, byte for byte."
