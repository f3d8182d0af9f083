#!/usr/bin/env bash
# Manual pages and shell completions into dist/, as the program itself writes them.
. "$(dirname "$0")/common.sh"

dist/walferry man dist/man
mkdir -p dist/completions
for shell in bash zsh fish; do
    dist/walferry completions "$shell" >"dist/completions/.walferry.$shell"
    mv -f "dist/completions/.walferry.$shell" "dist/completions/walferry.$shell"
done
ls dist/completions
