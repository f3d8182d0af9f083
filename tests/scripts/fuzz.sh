#!/usr/bin/env bash
# Fuzzes: fuzz.sh SECONDS [TARGET...] runs each target for so long, from its committed corpus and
# from what earlier runs found, which stays in .cache/fuzz. Fails with the first input that breaks
# a target, and says where it is.
#
# libFuzzer comes as source with the crate libfuzzer-sys, so cargo and a C++ compiler are all that
# is needed. The layout is cargo-fuzz's, for those who have it and a nightly toolchain.
. "$(dirname "$0")/common.sh"

seconds=${1:-60}
[[ $seconds =~ ^[1-9][0-9]*$ ]] || die "SECONDS is a number from 1, not '$seconds'"
shift || true

need_cargo
need "a C++ compiler" g++ command -v c++

manifest=tests/fuzz/Cargo.toml
all=$(sed -n '/^\[\[bin\]\]/,/^$/s/^name = "\(.*\)"$/\1/p' "$manifest")
read -ra targets <<<"${*:-${all//$'\n'/ }}"

say "building"
export CARGO_TARGET_DIR="$PWD/target/fuzz" RUSTC_WRAPPER="$PWD/tests/fuzz/rustc.sh"
cargo build --release --locked --quiet --bins --manifest-path "$manifest"

# Longest input in bytes: longer ones find nothing more and are slower.
length() {
    case $1 in
    ltx_header) echo 120 ;;
    names) echo 300 ;;
    ltx_index) echo 512 ;;
    local) echo 1500 ;;
    wal) echo 8192 ;;
    *) echo 4096 ;;
    esac
}

for target in "${targets[@]}"; do
    [ -d "tests/fuzz/corpus/$target" ] || die "there is no target $target; there are: ${all//$'\n'/ }"
    found="$CACHE/fuzz/$target"
    mkdir -p "$found" "$CACHE/fuzz/failed"
    log="$CACHE/fuzz/$target.log"
    printf '%-12s' "$target"
    # The limits catch what the targets' own bounds do not: a single allocation, and time.
    if ! "$CARGO_TARGET_DIR/release/$target" -max_total_time="$seconds" \
        -max_len="$(length "$target")" -malloc_limit_mb=256 -rss_limit_mb=1024 -timeout=20 \
        -artifact_prefix="$CACHE/fuzz/failed/$target-" \
        "$found" "tests/fuzz/corpus/$target" >"$log" 2>&1; then
        printf 'failed\n'
        grep -E -A2 'panicked at|ERROR: libFuzzer|Test unit written' "$log" >&2 || tail -20 "$log" >&2
        die "$target fails; once it is fixed, put the file into tests/fuzz/corpus/$target"
    fi
    sed -n 's/^Done \([0-9]*\) runs.*/\1 inputs/p' "$log"
done
