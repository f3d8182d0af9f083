#!/usr/bin/env python3
"""A second S3 server, by other hands: MiniStack, in memory.

Lists in byte order and answers lost races at once. Its root key is taken unchecked, so the tests
get the key of a user made here, whose signatures it does verify.
"""

import json
import re
import urllib.parse

import common

ROOT = ("walferryroot", "walferry-tests-root-secret")


def install(cache):
    return common.venv(cache, "ministack", ["ministack==1.5.33"])


def start(server, programs, options):
    port, = common.take_ports(1)
    endpoint = "http://127.0.0.1:%d" % port
    server.launch([programs + "/ministack"], {
        "BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "SERVICES": "s3,iam,sts", "AUTH": "true",
        "AWS_ACCESS_KEY_ID": ROOT[0], "AWS_SECRET_ACCESS_KEY": ROOT[1], "AWS_SESSION_TOKEN": "",
        "LOG_LEVEL": "WARNING", "DOCKER_HOST": "", "TMPDIR": server.folder,
        "STATE_DIR": server.path("state"), "S3_DATA_DIR": server.path("data"),
    })
    server.await_ready(lambda: common.request("GET", endpoint + "/_ministack/health")[0] == 200)
    allow = {"Version": "2012-10-17",
             "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
    iam(server, endpoint, "CreateUser")
    iam(server, endpoint, "PutUserPolicy", PolicyName="s3", PolicyDocument=json.dumps(allow))
    made = iam(server, endpoint, "CreateAccessKey")
    key, secret = (re.search("<%s>([^<]+)" % field, made).group(1)
                   for field in ("AccessKeyId", "SecretAccessKey"))
    status, body = common.signed("PUT", "%s/%s" % (endpoint, options.bucket), key, secret)
    if status != 200:
        server.stop()
        raise common.StartFailed("no bucket: %s %r" % (status, body[:300]))
    server.publish({"S3_ENDPOINT": endpoint, "S3_BUCKET": options.bucket, "AWS_REGION": "us-east-1",
                    "AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret})


def iam(server, endpoint, action, **fields):
    form = urllib.parse.urlencode(dict(fields, Action=action, UserName="tests", Version="2010-05-08"))
    status, body = common.signed("POST", endpoint + "/", *ROOT, body=form.encode(), service="iam",
                                 headers={"content-type": "application/x-www-form-urlencoded"})
    if status != 200:
        server.stop()
        raise common.StartFailed("%s: %s %r" % (action, status, body[:300]))
    return body.decode()


if __name__ == "__main__":
    common.main(__doc__, install, start, [("--bucket", {"default": "walferry"})])
