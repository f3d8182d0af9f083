#!/usr/bin/env python3
"""An HTTP proxy on loopback that misbehaves on demand, between the code under test and a server.

    python3 fault_proxy.py start --dir DIR --upstream HOST:PORT
    PROXY_ENDPOINT=http://127.0.0.1:P     what clients talk to
    PROXY_ADMIN=http://127.0.0.1:A        what tests talk to

Admin requests (answers are JSON):
    POST /rules {..}      add a rule, answer {"rule": N}      DELETE /rules   heal everything
    GET  /rules/N         the rule and its "hits"             GET /wait?rule=N&hits=K&timeout=S
    POST /release         let held requests go on             GET /health
    GET  /log             every request so far                DELETE /log     forget them

A rule: {"kind": K, ...}. Any rule may narrow itself with "method" and "path" (a regular expression
searched in the target), skip its first "skip" matches, act at most "count" times, and act with
probability "rate", drawn from a generator seeded with "seed".

    skew           answer 403 RequestTimeTooSkewed if the request's date is off by more "seconds";
                   with "dateless", no answer of any kind says what the server's own time is
    latency        wait "ms" before the request goes on
    status         answer "code" with the S3 error "s3_code"; the server never sees the request;
                   with "retry_after", the answer asks to be left alone for so many seconds
    token          answer 400 ExpiredToken unless the request carries the session "token"; one that
                   does is signed anew with the server's "key" and "secret", which knows no tokens
    lost_response  the server does its work, the client's connection is reset instead of an answer
    reset          the connection is reset; the server never sees the request
    refuse         as reset, for every connection at once when it is made
    blackhole      "where": "request" (default) swallow it, "response" apply it; never answer
    hold           "where" as above: wait for POST /release, then go on; a request is held whole,
                   and goes on even if its client is gone by then
    cut            the connection is reset after "bytes" of the body: "where": "request" (default),
                   the server never sees it, or "response"
"""

import calendar
import http.client
import http.server
import json
import os
import random
import re
import socket
import socketserver
import struct
import sys
import threading
import time
import urllib.parse

import common

KINDS = {
    "latency": {"ms"}, "status": {"code", "s3_code", "retry_after"}, "lost_response": set(), "reset": set(),
    "refuse": set(), "blackhole": {"where"}, "hold": {"where"}, "cut": {"where", "bytes"},
    "token": {"token", "key", "secret"}, "skew": {"seconds", "dateless"},
}
NARROWING = {"kind", "method", "path", "skip", "count", "rate", "seed"}
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "proxy-connection"}


class Dropped(Exception):
    """This connection is to be reset, without another word."""


class Rule:
    def __init__(self, number, spec):
        allowed = NARROWING | KINDS[spec["kind"]]
        unknown = set(spec) - allowed
        if unknown:
            raise ValueError("unknown in a %s rule: %s" % (spec["kind"], ", ".join(sorted(unknown))))
        self.number, self.spec, self.kind = number, spec, spec["kind"]
        self.path = re.compile(spec.get("path", ""))
        self.random = random.Random(spec.get("seed", 0))
        self.matched = self.hits = 0

    def applies(self, method, target):
        """Whether the rule acts on this request; counts it if so. Call with the lock held."""
        if self.spec.get("method", method) != method or not self.path.search(target):
            return False
        self.matched += 1
        if self.matched <= self.spec.get("skip", 0) or self.hits >= self.spec.get("count", 1 << 60):
            return False
        if self.random.random() >= self.spec.get("rate", 1):
            return False
        self.hits += 1
        return True

    def shown(self):
        return dict(self.spec, rule=self.number, hits=self.hits, matched=self.matched)


class Faults:
    """Rules, log and waiting, shared by all connections."""

    def __init__(self):
        self.changed = threading.Condition()
        self.rules, self.log, self.made = [], [], 0
        self.releases = self.heals = 0

    def add(self, spec):
        with self.changed:
            self.made += 1
            self.rules.append(Rule(self.made, spec))
            return self.made

    def heal(self):
        """Drops all rules: what is held goes on, what is in a black hole is reset."""
        with self.changed:
            self.rules = []
            self.heals += 1
            self.changed.notify_all()

    def release(self):
        with self.changed:
            self.releases += 1
            self.changed.notify_all()

    def refusing(self):
        with self.changed:
            for rule in self.rules:
                if rule.kind == "refuse":
                    rule.hits += 1
                    self.changed.notify_all()
                    return True
        return False

    def pick(self, method, target, entry):
        """The rules that act on a request, which is logged."""
        with self.changed:
            acting = [rule for rule in self.rules if rule.applies(method, target)]
            entry.update(n=len(self.log) + 1, t=round(time.time(), 3), method=method, target=target,
                         faults=[rule.kind for rule in acting])
            self.log.append(entry)
            self.changed.notify_all()
            return acting

    def now(self):
        """Before the rules for a request are looked up: a heal that comes after that ends them."""
        with self.changed:
            return self.releases, self.heals

    def hold(self, since):
        with self.changed:
            self.changed.wait_for(lambda: (self.releases, self.heals) != since)

    def swallow(self, since):
        with self.changed:
            self.changed.wait_for(lambda: self.heals != since[1])
        raise Dropped

    def wait_hits(self, number, hits, seconds):
        def rule():
            return next((r for r in self.rules if r.number == number), None)
        with self.changed:
            done = self.changed.wait_for(lambda: rule() and rule().hits >= hits, seconds)
            return bool(done), rule() and rule().shown()


class Proxy(http.server.BaseHTTPRequestHandler):
    """One client connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    faults = upstream = None

    def setup(self):
        super().setup()
        self.server_side = None

    def handle(self):
        try:
            if self.faults.refusing():
                raise Dropped
            super().handle()
        except (Dropped, OSError, http.client.HTTPException):
            # Linger of zero seconds: close() then sends RST, not FIN.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        finally:
            if self.server_side:
                self.server_side.close()

    def relay(self):
        if self.faults.refusing():
            raise Dropped
        entry, since = {}, self.faults.now()
        acting = {rule.kind: rule.spec for rule in self.faults.pick(self.command, self.path, entry)}

        def at(kind, place):
            return kind in acting and acting[kind].get("where", "request") == place

        if at("cut", "request"):
            self.rfile.read(acting["cut"]["bytes"])
            raise Dropped
        body = self.read_body()
        entry["bytes"] = len(body)
        if "latency" in acting:
            time.sleep(acting["latency"]["ms"] / 1000)
        if "reset" in acting:
            raise Dropped
        if at("hold", "request"):
            self.faults.hold(since)
        if at("blackhole", "request"):
            self.faults.swallow(since)
        if "status" in acting:
            entry["status"] = acting["status"].get("code", 503)
            self.answer_error(acting["status"])
            return
        if "skew" in acting and abs(self.date() - time.time()) > acting["skew"]["seconds"]:
            entry["status"] = 403
            self.answer_error({"code": 403, "s3_code": "RequestTimeTooSkewed",
                               "date": not acting["skew"].get("dateless")})
            return
        if "token" in acting:
            if self.headers.get("x-amz-security-token") != acting["token"]["token"]:
                entry["status"] = 400
                self.answer_error({"code": 400, "s3_code": "ExpiredToken"})
                return
            self.sign_anew(acting["token"])
        status, reason, headers, data = self.ask_upstream(body)
        entry["status"] = status
        if at("hold", "response"):
            self.faults.hold(since)
        if at("blackhole", "response"):
            self.faults.swallow(since)
        if "lost_response" in acting:
            raise Dropped
        withheld = HOP_BY_HOP | {"content-length"}
        if acting.get("skew", {}).get("dateless"):
            withheld = withheld | {"date"}
        self.send_response_only(status, reason)
        for name, value in headers:
            if name.lower() not in withheld:
                self.send_header(name, value)
        length = dict((n.lower(), v) for n, v in headers).get("content-length")
        if self.command == "HEAD" and length:
            self.send_header("Content-Length", length)
        elif status not in (204, 304):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if at("cut", "response"):
            self.wfile.write(data[:acting["cut"]["bytes"]])
            self.wfile.flush()
            raise Dropped
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = relay

    def read_body(self):
        if "chunked" not in self.headers.get("transfer-encoding", "").lower():
            wanted = int(self.headers.get("content-length") or 0)
            data = self.rfile.read(wanted)
            if len(data) < wanted:
                raise Dropped
            return data
        pieces = []
        while True:
            size = int(self.rfile.readline().split(b";")[0], 16)
            if size == 0:
                while self.rfile.readline().strip():
                    pass
                return b"".join(pieces)
            pieces.append(self.rfile.read(size))
            self.rfile.readline()

    def ask_upstream(self, body):
        """The server's answer. Host and all signed headers pass unchanged."""
        for fresh in (False, True):
            if self.server_side is None or fresh:
                self.server_side = http.client.HTTPConnection(*self.upstream, timeout=300)
            try:
                self.server_side.putrequest(self.command, self.path, skip_host=True,
                                            skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in HOP_BY_HOP | {"content-length"}:
                        self.server_side.putheader(name, value)
                if body or self.command in ("PUT", "POST"):
                    self.server_side.putheader("Content-Length", str(len(body)))
                self.server_side.endheaders(body or None)
                answer = self.server_side.getresponse()
                return answer.status, answer.reason, answer.getheaders(), answer.read()
            except (OSError, http.client.HTTPException):
                # A kept connection may have gone away while idle; a new one decides.
                self.server_side.close()
                if fresh:
                    raise
        raise Dropped

    def date(self):
        stamp = time.strptime(self.headers.get("x-amz-date", ""), "%Y%m%dT%H%M%SZ")
        return calendar.timegm(stamp)

    def sign_anew(self, spec):
        """As if the server's own key had made the request: the body's digest stays as it is sent."""
        del self.headers["x-amz-security-token"]
        given = self.headers["authorization"]
        names = re.search("SignedHeaders=([^,]+)", given).group(1).split(";")
        names = [name for name in names if name != "x-amz-security-token"]
        scope = re.search("Credential=[^/]+/([^,]+)", given).group(1)
        path, _, query = self.path.partition("?")
        fields = sorted(part if "=" in part else part + "=" for part in query.split("&") if part)
        canonical = [self.command, path, "&".join(fields)]
        canonical += ["%s:%s" % (name, " ".join(self.headers[name].split())) for name in names]
        canonical += ["", ";".join(names), self.headers["x-amz-content-sha256"]]
        signature = common.signature("\n".join(canonical), scope, self.headers["x-amz-date"],
                                     spec["secret"])
        del self.headers["authorization"]
        self.headers["authorization"] = (
            "AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%s, Signature=%s" % (
                spec["key"], scope, ";".join(names), signature))

    def answer_error(self, spec):
        code = spec.get("code", 503)
        name = spec.get("s3_code", "SlowDown" if code == 503 else "InternalError")
        text = ('<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code>'
                "<Message>injected</Message><RequestId>0</RequestId></Error>" % name).encode()
        self.send_response_only(code, "Injected")
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        if "retry_after" in spec:
            self.send_header("Retry-After", str(spec["retry_after"]))
        if spec.get("date"):
            self.send_header("Date", self.date_time_string())
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def log_message(self, format, *arguments):
        pass


class Admin(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faults = None

    def serve(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        url = urllib.parse.urlsplit(self.path)
        try:
            code, answer = self.act(url.path, dict(urllib.parse.parse_qsl(url.query)), body)
        except (ValueError, KeyError, TypeError, re.error) as error:
            code, answer = 400, {"error": repr(error)}
        text = json.dumps(answer).encode()
        self.send_response_only(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_DELETE = serve

    def act(self, path, query, body):
        faults, what = self.faults, (self.command, path)
        if what == ("POST", "/rules"):
            return 200, {"rule": faults.add(json.loads(body))}
        if what == ("DELETE", "/rules"):
            faults.heal()
            return 200, {}
        if what == ("POST", "/release"):
            faults.release()
            return 200, {}
        if what == ("GET", "/log"):
            return 200, list(faults.log)
        if what == ("DELETE", "/log"):
            with faults.changed:
                faults.log.clear()
            return 200, {}
        if what == ("GET", "/wait"):
            done, rule = faults.wait_hits(int(query["rule"]), int(query.get("hits", 1)),
                                          float(query.get("timeout", 30)))
            return (200 if done else 408), rule
        if self.command == "GET" and path.startswith("/rules/"):
            return 200, next(r.shown() for r in faults.rules if r.number == int(path[7:]))
        if what == ("GET", "/health"):
            return 200, {"rules": len(faults.rules), "requests": len(faults.log)}
        return 404, {"error": "no such request"}

    def log_message(self, format, *arguments):
        pass


class Listener(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request, client_address):
        print("connection of %s: %r" % (client_address, sys.exc_info()[1]), file=sys.stderr)


def serve(port, admin_port, upstream):
    host, _, number = upstream.rpartition(":")
    Proxy.faults = Admin.faults = Faults()
    Proxy.upstream = (host, int(number))
    admin = Listener(("127.0.0.1", admin_port), Admin)
    threading.Thread(target=admin.serve_forever, daemon=True).start()
    Listener(("127.0.0.1", port), Proxy).serve_forever()


def start(server, _installed, options):
    if not options.upstream:
        raise SystemExit("--upstream HOST:PORT is needed")
    port, admin_port = common.take_ports(2)
    server.launch([sys.executable, os.path.abspath(__file__), "serve", str(port), str(admin_port),
                   options.upstream], {})
    admin = "http://127.0.0.1:%d" % admin_port
    server.await_ready(lambda: common.request("GET", admin + "/health")[0] == 200)
    server.publish({"PROXY_ENDPOINT": "http://127.0.0.1:%d" % port, "PROXY_ADMIN": admin})


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    else:
        common.main(__doc__, lambda _cache: None, start, [("--upstream", {"help": "HOST:PORT"})])
