#!/usr/bin/env bash
# All tests: format, lints, nextest with S3 servers, then pytest on what `make build` makes.
. "$(dirname "$0")/common.sh"

need_disk 20 . "$CACHE" "${TMPDIR:-/tmp}"
need_cargo
need "systemd-analyze" systemd command -v systemd-analyze
test_packages
host_env
node_env
if ! cargo nextest --version >/dev/null 2>&1; then
    PATH="$CACHE/nextest/bin:$PATH"
    if ! cargo nextest --version >/dev/null 2>&1; then
        say "installing cargo-nextest $NEXTEST_VERSION"
        cargo install --locked --quiet --root "$CACHE/nextest" "cargo-nextest@$NEXTEST_VERSION"
    fi
fi

workspaces=(Cargo.toml sqlite-ext/Cargo.toml)

say "format"
for manifest in "${workspaces[@]}" tests/fuzz/Cargo.toml; do
    cargo fmt --manifest-path "$manifest" --check
done

say "lints"
for manifest in "${workspaces[@]}"; do
    cargo clippy --release --locked --all-targets --manifest-path "$manifest" -- -D warnings
done

scratch=$(mktemp -d)
cleanup() {
    stop_server s3.py "$scratch/s3" || true
    stop_server s3_second.py "$scratch/second" || true
    rm -rf "$scratch"
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

say "servers"
start_server s3.py "$scratch/s3"
start_server s3_second.py "$scratch/second"

say "unit and integration tests"
(
    # Whatever the user has set for S3 stays out of the tests.
    unset AWS_PROFILE AWS_SESSION_TOKEN AWS_ENDPOINT_URL AWS_ENDPOINT_URL_S3 AWS_CA_BUNDLE
    export AWS_EC2_METADATA_DISABLED=true
    for name in AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_REGION; do
        declare -x "$name=$(setting "$scratch/s3" "$name")"
    done
    WALFERRY_TEST_S3_ENDPOINT=$(setting "$scratch/s3" S3_ENDPOINT)
    WALFERRY_TEST_S3_BUCKET=$(setting "$scratch/s3" S3_BUCKET)
    WALFERRY_TEST_S3_SECOND_ENDPOINT=$(setting "$scratch/second" S3_ENDPOINT)
    WALFERRY_TEST_S3_SECOND_BUCKET=$(setting "$scratch/second" S3_BUCKET)
    WALFERRY_TEST_S3_SECOND_ACCESS_KEY_ID=$(setting "$scratch/second" AWS_ACCESS_KEY_ID)
    WALFERRY_TEST_S3_SECOND_SECRET_ACCESS_KEY=$(setting "$scratch/second" AWS_SECRET_ACCESS_KEY)
    export "${!WALFERRY_TEST_@}"
    for manifest in "${workspaces[@]}"; do
        cargo nextest run --release --locked --no-tests pass --manifest-path "$manifest"
    done
)

say "build"
tests/scripts/build.sh

say "the extension in its hosts"
# Two at a time: most of a test's time is waiting.
"$VENV/bin/python" -m pytest -q -n 2 --dist worksteal python-tests --ignore python-tests/test_torture.py

# Tests what was just built, beside nothing else.
tests/scripts/sqlite-tests.sh --slice --minutes "${WALFERRY_SQLITE_TESTS_MINUTES:-4}"

say "torture"
tests/scripts/hosts.sh
"$VENV/bin/python" -m pytest -q python-tests/test_torture.py \
    --torture-minutes "${WALFERRY_TORTURE_MINUTES:-10}"
