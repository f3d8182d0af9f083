//! Each mistake is named with its line, the path of its key and what to do, all of a file at once.

use super::{parse, parse_with, wrong};

#[test]
fn all_mistakes_of_a_file_at_once() {
    let text = "
retenton: 5h
strict: true
dbs:
  - path: /data/app.db
    replica:
      type: s3
      bucket: b
      path: p
      secret_access_key: hidden
      regoin: x
      sync-interval: soon
  - pth: /data/b.db
    replicas:
      - url: s3://b/q
        retention: 5 parsecs
        bucket: b
  - dir: /data
    replica: {type: sftp, host: h, path: /p}
";
    let broken = parse(text).unwrap_err();
    assert!(broken.strict);
    let said = broken.to_string();
    let lines: Vec<_> = said.lines().collect();
    for (at, expected) in [
        "/etc/x.yml:2: retenton: this key is not known; the nearest is retention",
        "/etc/x.yml:10: dbs[0].replica.secret_access_key: this key is not known; the nearest is secret-access-key",
        "/etc/x.yml:11: dbs[0].replica.regoin: this key is not known; the nearest is region",
        "/etc/x.yml:12: dbs[0].replica.sync-interval: 'soon' is not a length of time",
        "/etc/x.yml:13: dbs[1].pth: this key is not known; the nearest is path",
        "/etc/x.yml:16: dbs[1].replicas[0].retention: '5 parsecs' is not a length of time",
        "/etc/x.yml:17: dbs[1].replicas[0].bucket: it is in the url already",
        "/etc/x.yml:18: dbs[2]: dir: needs pattern:",
        "/etc/x.yml:19: dbs[2].replica.host: this cannot be had",
        "/etc/x.yml:19: dbs[2].replica.type: the type sftp cannot be had",
    ]
    .into_iter()
    .enumerate()
    {
        assert!(lines.get(at).is_some_and(|line| line.starts_with(expected)), "{expected}\n{said}");
    }
    assert_eq!(lines.len(), 10, "{said}");
    assert!(!said.contains("hidden"), "{said}");
}

#[test]
fn one_by_one() {
    let mut failed = Vec::new();
    let replica = |rest: &str| {
        format!("dbs:\n- path: /a\n  replica:\n    type: s3\n    bucket: b\n    path: p\n{rest}")
    };
    for (text, expected) in [
        // What is no YAML, or no file for us.
        ("dbs:\n\t- path: /a\n".into(), "2: line 2 begins with a tab"),
        ("dbs:\n  - path: /a\n\treplica: x\n".into(), "begins with a tab"),
        ("dbs: [".into(), "this is not YAML"),
        (String::new(), "the file is empty"),
        ("# nothing\n".into(), "the file is empty"),
        ("- a\n".into(), "1: the file is a list"),
        ("dbs: []\n---\ndbs: []\n".into(), "2: a second document"),
        ("dbs: *x\n".into(), "not YAML"),
        ("strict: true\nstrict: true\n".into(), "2: strict: the key is there already, in line 1"),
        // Values that are missing or of the wrong kind.
        ("dbs:\n".into(), "1: dbs: there is no value"),
        ("dbs: x\n".into(), "1: dbs: this must be a list"),
        ("dbs: [x]\n".into(), "1: dbs[0]: a database is keys with values"),
        ("snapshot: 5m\n".into(), "1: snapshot: this must be a group of keys (interval, retention)"),
        ("snapshot:\n".into(), "1: snapshot: there is no value"),
        ("snapshot:\n  intervall: 5m\n".into(), "2: snapshot.intervall: this key is not known; the nearest is interval"),
        ("deletes: maybe\n".into(), "'maybe' is not true or false"),
        ("deletes: [1]\n".into(), "this must be true or false; it is a list"),
        ("spool-cap: big\n".into(), "'big' is not a size"),
        ("sync-interval: 30\n".into(), "'30' is not a length of time"),
        ("levels: [5m, 30s]\n".into(), "each longer than the one before"),
        ("levels: [{intervall: 5m}]\n".into(), "levels[0].intervall"),
        ("journal-mode: delete\n".into(), "one of wal, keep"),
        ("logging: {level: loud}\n".into(), "one of off, error"),
        (replica("    access-key-id:\n"), "7: dbs[0].replica.access-key-id: there is no value"),
        (replica("    access-key-id: ''\n"), "there is no value"),
        // Variables.
        (replica("    region: ${NOT_SET}\n"), "7: dbs[0].replica.region: the variable NOT_SET is not set"),
        (replica("    region: a${b\n"), "a variable is written ${NAME}"),
        (replica("    region: $EMPTY\n"), "'$EMPTY' is set, and empty"),
        // What does not go together.
        ("retention: 1h\nsnapshot: {retention: 2h}\n".into(), "says the same as retention in line 1"),
        ("dbs:\n- path: /a\n  dir: /b\n  replica: {url: 'file:///r'}\n".into(), "there are path and dir"),
        ("dbs:\n- path: /a\n".into(), "2: dbs[0]: it has no replica"),
        ("dbs:\n- replica: {url: 'file:///r'}\n".into(), "the database is missing"),
        ("dbs:\n- path: /a\n  pattern: x\n  replica: {url: 'file:///r'}\n".into(), "it goes with dir: only"),
        ("dbs:\n- dir: /a\n  pattern: '['\n  replica: {url: 'file:///r'}\n".into(), "the pattern is malformed"),
        ("dbs:\n- path: /a\n  replica: {url: 'file:///r'}\n  replicas: [{url: 'file:///q'}]\n".into(), "use one of them"),
        ("dbs:\n- path: /a\n  replica: {url: 'file:///r'}\n- path: /b\n  replica: {url: 'file:///r/'}\n".into(), "5: dbs[1].replica.url: another replica is in the same place, in line 3"),
        ("dbs:\n- path: /a\n  replica: {url: 'file:///r'}\n- path: //./a\n  replica: {url: 'file:///q'}\n".into(), "4: dbs[1]: this database is there already, in line 2"),
        (replica("    secret-access-key: x\n"), "access-key-id is missing: credentials are a pair"),
        (replica("    access-key-id: x\n    secret-access-key:\n"), "8: dbs[0].replica.secret-access-key: there is no value"),
        (replica("    account-name: x\n"), "this cannot be had: this version has stores"),
        (replica("    force-path-style: perhaps\n"), "7: dbs[0].replica.force-path-style: force-path-style is true or false"),
        (replica("    skip-verify: true\n"), "it can only be false: without checking the certificate"),
        (replica("    sse-customer-key: short\n"), "must be a key of 32 bytes"),
        (replica("    endpoint: http://u:hidden@h\n"), "a user and password cannot be given in a URL"),
        ("dbs:\n- path: /a\n  replica: {type: file, path: /r, bucket: b}\n".into(), "this replica is of type file, and bucket goes with s3"),
        ("dbs:\n- path: /a\n  replica: {type: s3, url: 'file:///r'}\n".into(), "the type is s3, and the url is of file"),
        ("dbs:\n- path: /a\n  replica: {path: 's3://b/p'}\n".into(), "write url: instead of path:"),
        ("dbs:\n- path: /a\n  replica: {url: 'gs://b/p'}\n".into(), "the type gs cannot be had"),
        ("dbs:\n- path: /a\n  replica: {url: 'http://h/p'}\n".into(), "this URL is of no known type"),
        ("dbs:\n- path: /a\n  replica: {url: 's3://b'}\n".into(), "the path is missing"),
        ("dbs:\n- path: /a\n  replica: {url: 's3://b/p?region=x', region: y}\n".into(), "has another value for it"),
        ("dbs:\n- path: /a\n  replica: {url: 's3://b/p?secret-access-key=hidden'}\n".into(), "cannot be given in a URL"),
        ("dbs:\n- path: /a\n  bucket: b\n  replica: {path: p}\n".into(), "dbs[0].bucket: this key does not belong here: it stands"),
    ] {
        let said = match parse_with(&text, &[("EMPTY", "")]) {
            Ok(_) => "it is believed".to_string(),
            Err(broken) => broken.to_string(),
        };
        if !said.contains(expected) || said.contains("hidden") || said.lines().count() != 1 {
            failed.push(format!("{text}\nexpected: {expected}\nsaid: {said}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}

#[test]
fn a_file_cannot_make_itself_large() {
    let mut text = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_string();
    for level in 1..9 {
        let inner = vec![format!("*a{}", level - 1); 10].join(",");
        let line = format!("a{level}: &a{level} [{inner}]\n");
        text.push_str(&line);
    }
    assert!(wrong(&text).contains("more than 100000 values"));
    let deep = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    assert!(wrong(&deep(100)).contains("nested deeper"));
    wrong(&deep(100_000));
}

#[test]
fn what_is_quoted_is_what_is_written() {
    let text = "dbs:\n- path: /a\n  replica: {url: 'file:///r', retention: $SECRET}\n";
    let said = parse_with(text, &[("SECRET", "hidden")]).unwrap_err().to_string();
    assert!(said.contains("'$SECRET' is not a length of time"), "{said}");
}
