# Runs a script of SQLite's tests: testfixture script.tcl SCRIPT [OPTION...]
#
# At its end a script counts the open files and the memory of the whole process. A thread of walferry may be
# reading the database just then. So this waits before the count, until no file is open and nothing changes.

set argv0 [lindex $argv 0]
set argv [lrange $argv 1 end]

# So long nothing may change, and so long this waits at the most; in milliseconds.
set settle(quiet) 100
set settle(most) 5000

proc settle {} {
  global settle sqlite_open_file_count
  foreach db {db db2 db3} {catch {$db close}}
  set since [set began [clock milliseconds]]
  set last {}
  while 1 {
    set seen [list $sqlite_open_file_count [sqlite3_memory_used]]
    set now [clock milliseconds]
    if {$seen ne $last} {set last $seen; set since $now}
    if {$now - $began >= $settle(most)} return
    if {$sqlite_open_file_count == 0 && $now - $since >= $settle(quiet)} return
    after 5
  }
}

# tester.tcl defines the procedure that counts; some scripts source it twice.
proc sourced {command args} {
  if {![string match */tester.tcl [lindex $command end]]} return
  if {[string match *settle* [info body finalize_testing]]} return
  proc finalize_testing {} "settle\n[info body finalize_testing]"
}
if {[info exists env(SQLITE_TESTS_EXTENSION)]} {
  trace add execution source leave sourced
}

source $argv0
