#!/usr/bin/env python3
"""Prints the notices of all crates that the given workspaces compile in, by cargo's own graph of dependencies."""

import json
import re
import subprocess
import sys
from pathlib import Path

# Licences under which the program may be given away, if their texts go with it. Another one is an error.
KNOWN = {"MIT", "Apache-2.0", "ISC", "Zlib", "BSD-3-Clause", "BSL-1.0", "Unicode-3.0", "Unlicense",
         "Apache-2.0 WITH LLVM-exception"}
TEXTS = ("LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE")


def output_of(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def metadata(manifest):
    """The graph of this machine's platform."""
    host = re.search(r"^host: (\S+)$", output_of("rustc", "-vV"), re.M)[1]
    return json.loads(output_of("cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", host,
                                "--manifest-path", manifest))


def compiled_in(graph):
    """The packages that the members need to run, not to build or to be tested."""
    nodes = {node["id"]: node for node in graph["resolve"]["nodes"]}
    wanted, found = list(graph["workspace_members"]), set()
    while wanted:
        package = wanted.pop()
        if package in found:
            continue
        found.add(package)
        for dependency in nodes[package]["deps"]:
            if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                wanted.append(dependency["pkg"])
    return [package for package in graph["packages"] if package["id"] in found and package["source"]]


def alternatives(licence):
    """The licences that an SPDX expression names."""
    for word in ("(", ")"):
        licence = licence.replace(word, " ")
    return {name.strip() for part in licence.replace("/", " OR ").split(" OR ") for name in part.split(" AND ")}


def texts(package):
    folder = Path(package["manifest_path"]).parent
    named = [folder / package["license_file"]] if package["license_file"] else []
    return sorted({*named, *(path for path in folder.iterdir() if path.is_file() and
                             path.name.upper().startswith(TEXTS))})


def main(manifests):
    packages = {(package["name"], package["version"]): package
                for manifest in manifests for package in compiled_in(metadata(manifest))}
    unknown = {key: package["license"] for key, package in packages.items()
               if not alternatives(package["license"] or "none") & KNOWN}
    if unknown:
        sys.exit("these licences have to be looked at: %s" % unknown)
    printed = {}
    print("walferry contains the crates below. Each is used under the licence that is named with it. The program also\n"
          "contains SQLite, which is in the public domain.")
    for (name, version), package in sorted(packages.items()):
        print("\n%s\n%s %s\n%s\n%s" % ("=" * 78, name, version, package["license"], package["repository"] or ""))
        for path in texts(package):
            text = path.read_text(errors="replace").strip()
            # Most crates have the same texts.
            where = printed.setdefault(text, "%s %s, %s" % (name, version, path.name))
            known = where != "%s %s, %s" % (name, version, path.name)
            print("\n--- %s%s" % (path.name, ": the same as %s" % where if known else "\n\n" + text))


if __name__ == "__main__":
    main(sys.argv[1:])
