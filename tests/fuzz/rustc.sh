#!/bin/sh
# Stands between cargo and rustc: adds libFuzzer's coverage to the code that reads bytes from
# outside, and to nothing else. The flags are those of cargo-fuzz; a stable toolchain takes them.
case " $* " in
*" --crate-name walferry "* | *" --crate-name walferry_fuzz "* | *" --crate-name lz4_flex "* | \
    *" --crate-name serde_json "*)
    set -- "$@" --cfg fuzzing -Cpasses=sancov-module \
        -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
        -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares
    ;;
esac
exec "$@"
