#!/usr/bin/env bash
# SQLite's own TCL tests with walferry and without: sqlite-tests.sh [OPTION...], options are those of
# tests/sqlite/run.py
#
# Debian's source package of SQLite is built once a release, into .cache/sqlite-tests/VERSION: that of this
# system, and the newest that Debian has. apt gets both, with lists of its own inside the cache.
# WALFERRY_CACHE names another cache than .cache.
. "$(dirname "$0")/common.sh"

FOLDER=$CACHE/sqlite-tests
AUTOLOAD=tests/sqlite/autoload.c
FLAGS=-DSQLITE_EXTRA_INIT=sqlite_tests_init
SUITES=("$(. /etc/os-release && echo "${VERSION_CODENAME:-stable}")" sid)

KEYS=/usr/share/keyrings/debian-archive-keyring.gpg

has_tcl_headers() { [ -e /usr/include/tcl.h ] || [ -e /usr/include/tcl8.6/tcl.h ]; }

need "/usr/bin/python3" python3 test -x /usr/bin/python3
need "a C compiler" gcc command -v cc
need make make command -v make
need tclsh tcl command -v tclsh
need "Tcl's headers" tcl-dev has_tcl_headers
need dpkg-source dpkg-dev command -v dpkg-source

# apt with the sources of one suite, from where the system's packages come from.
private_apt() {
    local suite=$1 apt=$FOLDER/apt/$1 uri
    shift
    mkdir -p "$apt"/{lists/partial,archives/partial}
    if [ ! -e "$apt/sources.list" ]; then
        uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' |
            grep -v security | sed -n 1p)
        [ -n "$uri" ] || die "apt knows no archive of Debian"
        echo "deb-src [signed-by=$KEYS] $uri $suite main" >"$apt/sources.list"
    fi
    "$1" -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::State::lists="$apt/lists" -o Dir::Cache="$apt" -o APT::Sandbox::User="$(id -un)" "${@:2}"
}

# The version of the source package in a suite, which is unpacked; once.
fetch() {
    local suite=$1 noted=$FOLDER/suite-$1 work version
    if [ ! -e "$noted" ]; then
        say "SQLite's source from $suite"
        private_apt "$suite" apt-get update -qq || return 1
        work=$(mktemp -d "$FOLDER/fetch-XXXXXX")
        (cd "$work" && private_apt "$suite" apt-get source -qq sqlite3 >/dev/null) || return 1
        version=$(cat "$work"/sqlite3-*/VERSION)
        if [ ! -e "$FOLDER/$version/src" ]; then
            mkdir -p "$FOLDER/$version"
            mv "$work/sqlite3-$version" "$FOLDER/$version/src"
        fi
        rm -rf "$work"
        echo "$version" >"$noted"
    fi
    cat "$noted"
}

# What a test program is made from, but for the sources of its version.
recipe() { echo "$FLAGS" && cat "$AUTOLOAD"; }

build() {
    local folder=$FOLDER/$1 test=src/test_tclsh.c
    [ -x "$folder/build/testfixture" ] && recipe | cmp -s - "$folder/recipe" && return
    say "testfixture $1"
    rm -f "$folder/build/testfixture"
    cp "$AUTOLOAD" "$folder/src/src/autoload.c"
    grep -q autoload "$folder/src/$test" || echo '#include "autoload.c"' >>"$folder/src/$test"
    mkdir -p "$folder/build"
    (
        cd "$folder/build"
        [ -e Makefile ] || ../src/configure --with-tcl="$(dirname "$(find /usr/lib -name tclConfig.sh | head -n 1)")" \
            --enable-fts3 --enable-fts4 --enable-fts5 --enable-rtree --enable-session CFLAGS="-O1 -g"
        nice -n 5 make testfixture OPTS="$FLAGS"
    ) >"$folder/build.log" 2>&1 || die "testfixture was not built: $folder/build.log"
    recipe >"$folder/recipe"
}

mkdir -p "$FOLDER"
FOLDER=$(realpath "$FOLDER")
exec 9>"$FOLDER/lock"
flock 9 # one at a time
versions=()
for suite in "${SUITES[@]}"; do
    if ! version=$(fetch "$suite"); then
        [ "$suite" = sid ] || die "SQLite's source is not to be had from $suite"
        say "SQLite's source is not to be had from $suite: only SQLite ${versions[*]} is tested"
        continue
    fi
    case " ${versions[*]} " in *" $version "*) continue ;; esac
    versions+=("$version")
done
# Beside each other: the compiler takes one file after the other.
builds=()
for version in "${versions[@]}"; do
    build "$version" &
    builds+=($!)
done
for one in "${builds[@]}"; do
    wait "$one" || exit 1
done
exec 9>&-

say "SQLite's tests: ${versions[*]}"
exec /usr/bin/python3 tests/sqlite/run.py --versions "$(IFS=,; echo "${versions[*]}")" "$@"
