# Every target does its work in a script, so that this file is a list of what there is.

ROUNDS ?= 200
MINUTES ?= 60
SEEDS ?= 100000
SECONDS ?= 60
export SEED ROUND HOSTS

.DEFAULT_GOAL := help
.PHONY: help build man notices test demo sim fuzz crash duel soak torture sqlite-tests bench clean

help:  ## this list
	@echo "walferry: SQLite replicated to object storage from inside the process that writes it"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build:  ## dist/walferry.so, the extension, and dist/walferry, the program
	@tests/scripts/build.sh

man: build  ## dist/man and dist/completions: manual pages, and what shells complete
	@tests/scripts/man.sh

notices:  ## dist/THIRD-PARTY-NOTICES: the licences of all crates that are compiled in
	@tests/scripts/notices.sh

test:  ## format, lints, unit tests, and the extension in real hosts against real servers
	@tests/scripts/test.sh

demo: build  ## write, kill, restore, compare: in the shell, with a folder as the replica
	@tests/scripts/demo.sh

sim:  ## SEEDS=100000 simulated histories of crashes, lost answers and two writers
	@WALFERRY_SEEDS=$(SEEDS) cargo test --release --locked --test sim every_history -- --nocapture

fuzz:  ## SECONDS=60 each: any bytes as files of a replica, as WAL, as names, as local state
	@tests/scripts/fuzz.sh $(SECONDS)

crash: build  ## ROUNDS=200 times SIGKILL at random moments and named points, one process and many
	@tests/scripts/crash.sh $(ROUNDS)

soak: build  ## MINUTES=60 of writes at full speed while the store fails half of the time
	@tests/scripts/soak.sh $(MINUTES)

duel: build  ## ROUNDS=100 times two writers on one replica, on a folder and on S3
	@tests/scripts/duel.sh $(ROUNDS)

torture: build  ## MINUTES=60 of random work of SQLite in eight versions; SEED=n ROUND=n repeats a round
	@tests/scripts/torture.sh $(MINUTES)

sqlite-tests: build  ## SQLite's own tests with the extension and without; ONLY="wal pager1" takes these, ALL=1 all
	@tests/scripts/sqlite-tests.sh $(if $(ONLY),--only $(ONLY)) $(if $(ALL),--all)

bench: build  ## what replication costs a writer, in time and memory, and how fast a restore is
	@tests/scripts/bench.sh

clean:  ## remove what was built; downloads in .cache stay
	@cargo clean --quiet
	@rm -rf dist
