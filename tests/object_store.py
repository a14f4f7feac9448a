"""A bucket of Google's object store, on this machine: the server, not the clients.

TensorFlow's client (behind `etils.epath`) and TensorStore's (behind Orbax) are the real
ones and speak HTTP with it. As in the store itself an object appears whole, by the last
byte of one upload, and nothing is locked or appended to; here nothing is renamed, too.
"""

import contextlib
import http.server
import importlib.util
import itertools
import json
import os
import pathlib
import re
import ssl
import subprocess
import sys
import threading
import time
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest

# Orbax asks Google's own client whether a bucket has folders. Where it is not installed
# this stands for it: a bucket that has none.
CLIENT = """
class Client:
    def get_bucket(self, name):
        return name
"""


class Bucket:
    """Objects by name; `path` is gs://NAME, `on_upload(name)` is called of each."""

    def __init__(self, name):
        self.path, self.objects = f"gs://{name}", {}
        self.on_upload = lambda name: None
        self._sessions, self._numbers = {}, itertools.count(1)

    def upload(self, name, data, query):
        if query.get("ifGenerationMatch") == "0" and name in self.objects:
            return 412, {}
        now = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        self.objects[name] = data, str(next(self._numbers)), now
        self.on_upload(name)
        return 200, self.describe(name)

    def describe(self, name):
        data, generation, now = self.objects[name]
        which = {"name": name, "generation": generation, "metageneration": "1"}
        return which | {"size": str(len(data)), "updated": now}

    def answer(self, verb, path, query, headers, body):
        """Status, body, and headers."""
        if path.startswith("/upload/"):
            if query["uploadType"] == "media":
                return self.upload(query["name"], body, query)
            session = f"/session/{next(self._numbers)}"
            self._sessions[session] = query
            return 200, b"", {"Location": f"https://www.googleapis.com{session}"}
        if path.startswith("/session/"):
            query = self._sessions[path]
            return self.upload(query["name"], body, query)
        api = re.fullmatch("/storage/v1/b/([^/]+)(/o)?(/[^/]+)?", path)
        if not api and path.startswith("/storage"):
            return 501, {}  # renames, copies
        if api and not api[3]:
            return 200, self.list(**query) if api[2] else {"name": api[1]}
        name = unquote(api[3][1:] if api else path.split("/", 2)[2])
        if name not in self.objects:
            return 404, {}
        if verb == "DELETE":
            del self.objects[name]
            return 204, b""
        if api and query.get("alt") != "media":
            return 200, self.describe(name)
        return self.read(name, headers.get("Range"))

    def read(self, name, span):
        data, generation, _ = self.objects[name]
        more = {"x-goog-generation": generation}
        if not span:
            return 200, data, more
        first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", span).groups()
        if not first:
            first, last = len(data) - int(last), ""
        first, last = int(first), min(int(last or len(data)), len(data) - 1)
        if first >= len(data):
            return 416, b"", more
        more["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return 206, data[first : last + 1], more

    def list(self, prefix="", delimiter="", startOffset="", endOffset="~", **_):
        items, folders = [], {}
        for name in sorted(self.objects):
            if name.startswith(prefix) and startOffset <= name < endOffset:
                below, cut, _ = name[len(prefix) :].partition(delimiter or "\n")
                if cut:
                    folders[prefix + below + cut] = None
                else:
                    items.append(self.describe(name))
        return {"items": items, "prefixes": list(folders)}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version, wbufsize, disable_nagle_algorithm = "HTTP/1.1", -1, True

    def log_message(self, *args):
        pass

    def handle_expect_100(self):
        super().handle_expect_100()
        self.wfile.flush()
        return True

    def do_CONNECT(self):
        """Stands for *.googleapis.com, as a proxy of this process."""
        self.send_response(200)
        self.end_headers()
        self.wfile.flush()
        with self.server.tls.wrap_socket(self.connection, server_side=True) as inside:
            Handler(inside, self.client_address, self.server)
        self.close_connection = True

    def do_GET(self):
        url, body = urlsplit(self.path), b""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        query = dict(parse_qsl(url.query))
        status, answer, *more = self.server.bucket.answer(
            self.command, url.path, query, self.headers, body
        )
        if not isinstance(answer, bytes):
            answer = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in dict(*more).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_PUT = do_POST = do_DELETE = do_GET


@contextlib.contextmanager
def serve(folder: pathlib.Path):
    """A bucket that this process and those it starts find at its `path`."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = [
        *("openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=here"),
        *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
        *("-addext", "subjectAltName=DNS:*.googleapis.com"),
        *("-keyout", key, "-out", certificate),
    ]
    subprocess.run(command, check=True, capture_output=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.tls.load_cert_chain(certificate, key)
    here = f"http://127.0.0.1:{server.server_port}"
    server.bucket = Bucket(f"bucket-{server.server_port}")
    variables = {
        "https_proxy": here,
        "no_proxy": "127.0.0.1",
        "CURL_CA_BUNDLE": str(certificate),
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "anyone",
        "TENSORSTORE_GCS_HTTP_URL": here,
        "STORAGE_EMULATOR_HOST": here,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        if importlib.util.find_spec("google.cloud.storage") is None:
            (folder / "google/cloud").mkdir(parents=True)
            (folder / "google/cloud/storage.py").write_text(CLIENT)
            patch.syspath_prepend(folder)
            patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.bucket
        server.shutdown()
        server.server_close()
        sys.modules.pop("google.cloud.storage", None)
