//! Every key that Litestream knows, 0.3.13 and 0.5.17, is supported, or has no effect for a reason
//! that is told, or is refused with a sentence. None is unknown.

use super::parse;

/// Of the top of the file: key, a value, and whether it is refused.
const GLOBAL: &[(&str, bool)] = &[
    ("addr: ':9090'", false),
    ("mcp-addr: ':3001'", true),
    ("exec: run me", false),
    ("socket: {enabled: false, path: /var/run/litestream.sock, permissions: 0600}", false),
    ("socket: {enabled: true}", true),
    ("levels: [{interval: 30s}, {interval: 5m}, {interval: 1h}]", false),
    ("snapshot: {interval: 24h, retention: 24h}", false),
    ("validation: {interval: 1h}", false),
    ("verify-compaction: false", false),
    ("retention: {enabled: true}", false),
    ("l0-retention: 5m", false),
    ("l0-retention-check-interval: 15s", false),
    ("shutdown-sync-timeout: 30s", false),
    ("shutdown-sync-interval: 500ms", false),
    ("heartbeat-url: 'https://h/x'", true),
    ("heartbeat-interval: 5m", false),
    ("logging: {level: info, type: text, stderr: true, source: false}", false),
];

const DATABASE: &[(&str, bool)] = &[
    ("snapshot: {interval: 1h, retention: 2h}", false),
    ("meta-path: /x", true),
    ("meta-dir: /x", true),
    ("monitor-interval: 1s", false),
    ("checkpoint-interval: 1m", false),
    ("busy-timeout: 1s", false),
    ("min-checkpoint-page-count: 1000", false),
    ("max-checkpoint-page-count: 10000", false),
    ("truncate-page-n: 121359", false),
    ("max-sync-wal-bytes: 67108864", false),
    ("restore-if-db-not-exists: false", false),
    ("restore-if-db-not-exists: true", false),
];

/// Of any replica, and as a default of all at the top of the file.
const ANY_REPLICA: &[(&str, bool)] = &[
    ("sync-interval: 1s", false),
    ("validation-interval: 6h", false),
    ("max-sync-ltx-files: 256", false),
    ("auto-recover: false", false),
    ("age: {identities: [a], recipients: [b]}", true),
];

/// Of one replica.
const REPLICA: &[(&str, bool)] = &[
    ("name: x", false),
    ("retention: 720h", false),
    ("retention-check-interval: 1h", false),
    ("snapshot-interval: 1h", false),
    ("validation-interval: 6h", false),
];

/// Of types: keys with values, all of which stand in a replica of it, and at the top of the file.
const TYPES: &[(&str, &[&str], bool)] = &[
    (
        "s3",
        &[
            "region: r",
            "endpoint: 'http://h'",
            "access-key-id: a",
            "secret-access-key: s",
            "force-path-style: true",
            "skip-verify: false",
            "sign-payload: true",
            "require-content-md5: true",
            "storage-class: STANDARD_IA",
            "part-size: 5MB",
            "concurrency: 5",
        ],
        false,
    ),
    ("s3", &["sse-customer-algorithm: AES256", "sse-customer-key-path: /k"], false),
    ("s3", &["sse-customer-key: 'AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA='"], false),
    ("s3", &["sse-kms-key-id: k"], false),
    ("s3", &["skip-verify: true"], true),
    ("gs", &["bucket: b"], true),
    ("gcs", &["bucket: b"], true),
    (
        "abs",
        &["account-name: a", "account-key: k", "sas-token: t", "bucket: b", "endpoint: e"],
        true,
    ),
    (
        "sftp",
        &[
            "host: h",
            "user: u",
            "password: p",
            "key-path: /k",
            "host-key: k",
            "concurrent-writes: true",
        ],
        true,
    ),
    (
        "nats",
        &[
            "bucket: b",
            "jwt: j",
            "seed: s",
            "creds: c",
            "nkey: n",
            "username: u",
            "password: p",
            "token: t",
            "tls: true",
            "root-cas: [a]",
            "client-cert: /c",
            "client-key: /k",
            "max-reconnects: 5",
            "reconnect-wait: 2s",
            "timeout: 10s",
        ],
        true,
    ),
    ("webdav", &["webdav-url: u", "webdav-username: n", "webdav-password: p"], true),
    (
        "oss",
        &[
            "access-key-id: a",
            "secret-access-key: s",
            "bucket: b",
            "region: cn-hangzhou",
            "part-size: 5MB",
            "concurrency: 3",
        ],
        true,
    ),
];

const DBS: &str = "dbs:\n- path: /a\n  replica: {url: 's3://b/p'}\n";

/// A file is believed, or refused with sentences that say why and what to use.
fn check(text: &str, refused: bool) {
    match parse(text) {
        Ok(_) => assert!(!refused, "{text}\nis not refused"),
        Err(broken) => {
            assert!(refused, "{text}\n{broken}");
            for mistake in &broken.mistakes {
                assert!(mistake.line > 0 && !mistake.key.is_empty(), "{broken}");
                let said = &mistake.what;
                assert!(said.contains("cannot be had") || said.contains("can only be"), "{broken}");
                assert!(said.contains("use ") && said.len() > 60, "{broken}");
            }
        }
    }
}

#[test]
fn every_key_of_litestream_is_known() {
    for (line, refused) in GLOBAL.iter().chain(ANY_REPLICA) {
        check(&format!("{line}\n{DBS}"), *refused);
    }
    for (line, refused) in DATABASE {
        check(&format!("{DBS}  {line}\n"), *refused);
    }
    for (line, refused) in ANY_REPLICA.iter().chain(REPLICA) {
        for place in ["url: 's3://b/p'", "type: file\n    path: /r"] {
            check(&format!("dbs:\n- path: /a\n  replica:\n    {place}\n    {line}\n"), *refused);
            check(&format!("dbs:\n- path: /a\n  replicas:\n  - {place}\n    {line}\n"), *refused);
        }
    }
    for (kind, lines, refused) in TYPES {
        let bucket = if *kind == "s3" { "    bucket: b\n" } else { "" };
        let mut text =
            format!("dbs:\n- path: /a\n  replica:\n    type: {kind}\n    path: p\n{bucket}");
        for line in *lines {
            text += &["    ", line, "\n"].concat();
        }
        check(&text, *refused);
        // As a default of all replicas.
        if *kind == "s3" {
            check(&format!("{}\n{DBS}", lines.join("\n")), *refused);
        }
    }
    check(
        "dbs:\n- dir: /a\n  pattern: '*.db'\n  recursive: true\n  watch: true\n  replica: {path: /r}\n",
        false,
    );
}
