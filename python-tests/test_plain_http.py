"""Plain http: requests and secrets that may not go out without TLS."""

import contextlib
import http.server
import threading

import pytest

from harness import CORRUPT, USAGE, walferry
from test_config import TABLE, write  # noqa: F401  (a fixture)


@contextlib.contextmanager
def listener():
    """A server that notes the headers of each request, and answers to none."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self):
            seen.append({name.lower(): value for name, value in self.headers.items()})
            self.send_response(404)
            self.send_header("content-length", "0")
            self.end_headers()

        do_GET = do_PUT = do_POST = do_HEAD = answer

        def log_message(self, *_arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1], seen
    finally:
        server.shutdown()
        server.server_close()


KEYS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_REGION": "x",
        "AWS_EC2_METADATA_DISABLED": "true"}
# It leads to this machine, and is no address of it that is known to.
NOT_LOOPBACK = "http://0.0.0.0:%d"


@pytest.mark.parametrize("named", ["url", "variable", "profile"])
def test_plain_http_to_another_machine_is_refused(named, tmp_path):
    with listener() as (port, seen):
        endpoint = NOT_LOOPBACK % port
        env, url = dict(KEYS), "s3://bucket/app"
        if named == "url":
            url += "?endpoint=" + endpoint
        elif named == "variable":
            env["AWS_ENDPOINT_URL_S3"] = endpoint
        else:
            (tmp_path / "aws").write_text("[default]\nendpoint_url = %s\ns3 =\n  addressing_style = path\n" % endpoint)
            env["AWS_CONFIG_FILE"] = str(tmp_path / "aws")
        done = walferry("ltx", url, env=env, code=USAGE)
        assert "plain http" in done.stderr and "WALFERRY_ALLOW_PLAIN_HTTP" in done.stderr, done.stderr
        assert seen == []
        if named == "profile":  # whose bucket is in the name of the host
            return
        env["WALFERRY_ALLOW_PLAIN_HTTP"] = "1"
        walferry("ltx", url, env=env, code=CORRUPT)
        assert seen and "authorization" in seen[0]


@pytest.mark.parametrize("how", ["variable", "file"])
def test_session_token_is_never_sent_over_plain_http(how, tmp_path, write):
    with listener() as (port, seen):
        url = "s3://bucket/app?endpoint=" + NOT_LOOPBACK % port
        env = dict(KEYS, AWS_SESSION_TOKEN="planted-token", WALFERRY_ALLOW_PLAIN_HTTP="1")
        target = [url]
        if how == "file":
            del env["AWS_SESSION_TOKEN"]
            path = write("dbs:\n- path: /a\n  replica:\n    url: %s\n    access-key-id: id\n"
                         "    secret-access-key: key\n    session-token: planted-token\n" % url)
            target = ["--config", path, "/a"]
        done = walferry("ltx", *target, env=env, code=USAGE)
        assert "session token" in done.stderr and "planted" not in done.stderr, done.stderr
        assert seen == []
        # To this machine it may go.
        here = "s3://bucket/app?endpoint=http://127.0.0.1:%d" % port
        walferry("ltx", here, env=dict(KEYS, AWS_SESSION_TOKEN="planted-token"), code=CORRUPT)
        assert seen[0]["x-amz-security-token"] == "planted-token"


def test_url_cannot_allow_plain_http():
    done = walferry("ltx", "s3://b/p?endpoint=http://h&allow-plain-http=true", env=KEYS, code=USAGE)
    assert "cannot be given in a URL" in done.stderr and "WALFERRY_ALLOW_PLAIN_HTTP" in done.stderr


def test_extension_ships_nothing_over_plain_http(new_host, tmp_path):
    with listener() as (port, seen):
        host = new_host(env=KEYS)
        url = "s3://bucket/app?endpoint=" + NOT_LOOPBACK % port
        host.open(tmp_path / "app.db", replica=url).sql("PRAGMA journal_mode=WAL", TABLE)
        (why,) = [one["last_error"] for one in host.status()]
        assert "plain http" in why and "allow-plain-http" in why
        host.finish()
        assert seen == []
