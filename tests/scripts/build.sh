#!/usr/bin/env bash
# Builds the program and the extension into dist/.
. "$(dirname "$0")/common.sh"

need_cargo
cargo build --release --locked
cargo build --release --locked --manifest-path sqlite-ext/Cargo.toml

# Each under another name first: a running process may have the old one mapped.
place() {
    strip -o "dist/.$2" "target/release/$1"
    chmod 755 "dist/.$2"
    mv -f "dist/.$2" "dist/$2"
}
mkdir -p dist
place libwalferry_ext.so walferry.so
place walferry walferry
