#!/usr/bin/env bash
# SQLite in many versions, each with the program tests/torture/host.c: .cache/hosts/VERSION/host
#
#   hosts.sh [VERSION...]      all of them, or only these
#
# The crate libsqlite3-sys brings the amalgamation; which of its versions has which SQLite is below.
# 3.40.1 is that of Debian 12, and is linked as the system has it: most programs there use that one.
. "$(dirname "$0")/common.sh"

declare -A CRATES=([3.35.4]=0.22.2 [3.41.2]=0.26.0 [3.46.0]=0.30.1 [3.50.2]=0.35.0 [3.51.3]=0.37.0
    [3.53.2]=0.38.2 [3.54.1]=0.40.0)
FLAGS=(-O1 -g -DSQLITE_THREADSAFE=1 -DSQLITE_ENABLE_DESERIALIZE)
PROGRAM=tests/torture/host.c
HOSTS=$CACHE/hosts

need_cargo
need "the header of SQLite" libsqlite3-dev test -e /usr/include/sqlite3.h

# The amalgamation of one version, once. cargo puts the sources of a crate into a folder.
fetch() {
    local version=$1 crate=${CRATES[$1]} folder=$HOSTS/$1 work
    work=$(mktemp -d)
    mkdir "$work/src"
    touch "$work/src/lib.rs"
    cat >"$work/Cargo.toml" <<TOML
[package]
name = "amalgamation"
version = "0.0.0"
edition = "2021"

[workspace]

[dependencies]
libsqlite3-sys = { version = "=$crate", default-features = false }
TOML
    cargo vendor --quiet --versioned-dirs --manifest-path "$work/Cargo.toml" "$work/out" >/dev/null
    cp "$work/out/libsqlite3-sys-$crate/sqlite3/"{sqlite3.c,sqlite3.h} "$folder"
    rm -rf "$work"
    grep -q "define SQLITE_VERSION  *\"$version\"" "$folder/sqlite3.h" ||
        die "libsqlite3-sys $crate does not have SQLite $version"
}

build() {
    local version=$1 folder=$HOSTS/$1
    if [ "$version" = system ]; then
        cc "${FLAGS[@]}" -Wall -Wextra -o "$folder/host.new" "$PROGRAM" -lsqlite3 -lpthread -ldl -lm
    else
        if [ ! -e "$folder/sqlite3.o" ]; then
            say "SQLite $version"
            [ -e "$folder/sqlite3.h" ] || fetch "$version"
            # Under its name only when it is whole.
            nice -n 5 cc "${FLAGS[@]}" -w -c -o "$folder/sqlite3.new" "$folder/sqlite3.c"
            mv "$folder/sqlite3.new" "$folder/sqlite3.o"
        fi
        cc "${FLAGS[@]}" -Wall -Wextra -I"$folder" -o "$folder/host.new" "$PROGRAM" "$folder/sqlite3.o" \
            -lpthread -ldl -lm
    fi
    mv "$folder/host.new" "$folder/host"
}

mkdir -p "$HOSTS"
exec 9>"$HOSTS/lock"
flock 9 # one at a time
[ $# -gt 0 ] || set -- system "${!CRATES[@]}"
for version; do
    [ "$version" = system ] || [ -n "${CRATES[$version]:-}" ] || die "no crate is known for SQLite $version"
    mkdir -p "$HOSTS/$version"
    if [ ! "$HOSTS/$version/host" -nt "$PROGRAM" ]; then
        build "$version"
    fi
done
