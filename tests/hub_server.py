"""A hub on this machine: the few routes that huggingface_hub asks for, served from memory.

What the routes and headers mean: https://huggingface.co/docs/hub/api, and huggingface_hub's own
`file_download.py`. Both of its lines are served: 0.x lists files by `/api/models/ID/revision/R`,
1.x by `/api/models/ID/tree/COMMIT`.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_somebody_who_was_let_in"


@dataclass(kw_only=True)
class Hub:
    """What the server has, and what it was asked for.

    Attributes:
        files: Of the one repository, by name.
        id: Of the repository.
        gated: Whether files are given to those alone who send `TOKEN`.
        private: Whether the repository is shown to those alone.
        cuts: Bytes of a body after which the connection is lost, by file, once for each.
        status: What every request is answered with, if not 200.
        asked: Method, file, and first byte of every request for a file, in order.
        url: Where it listens.
    """

    files: Mapping[str, bytes]
    id: str = "someone/tiny"
    gated: bool = False
    private: bool = False
    cuts: Mapping[str, list[int]] = field(default_factory=dict)
    status: int = 200
    asked: list[tuple[str, str, int]] = field(default_factory=list)
    url: str = ""

    def fetched(self) -> set[str]:
        """The files of which bytes were asked for."""
        return {name for method, name, _ in self.asked if method == "GET"}


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve a hub on the loopback until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, hub))
    thread = Thread(target=server.serve_forever)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *arguments: object) -> None:
        self.hub = hub
        super().__init__(*arguments)  # type: ignore[arg-type]

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        file = re.fullmatch(r"/([\w-]+/[\w-]+)/resolve/([^/]+)/(.+)", path)
        listing = re.fullmatch(r"/api/models/([\w-]+/[\w-]+)/(revision|tree)/([^/]+)", path)
        found = file or listing
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if self.hub.status != 200:
            self._refuse(self.hub.status, "")
        elif not found or found[1] != self.hub.id or (self.hub.private and not known):
            self._refuse(401 if known is False else 404, "RepoNotFound")
        elif (file[2] if file else found[3]) not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound")
        elif not file:
            self._list(tree=found[2] == "tree")
        elif self.hub.gated and not known:
            self._refuse(401, "GatedRepo")
        elif file[3] not in self.hub.files:
            self._refuse(404, "EntryNotFound")
        else:
            self._give(file[3])

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()

    def _list(self, *, tree: bool) -> None:
        files = self.hub.files.items()
        listed = [
            {"type": "file", "path": name, "size": len(raw), "oid": _etag(raw)}
            for name, raw in files
        ]
        described = {
            "id": self.hub.id,
            "sha": COMMIT,
            "siblings": [{"rfilename": name} for name, _ in files],
        }
        body = json.dumps(listed if tree else described).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _give(self, name: str) -> None:
        raw = self.hub.files[name]
        first = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(first[1]) if first else 0
        self.hub.asked.append((self.command, name, start))
        self.send_response(206 if first else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{_etag(raw)}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(raw) - start))
        if first:
            self.send_header("Content-Range", f"bytes {start}-{len(raw) - 1}/{len(raw)}")
        self.end_headers()
        if self.command == "GET":
            self._send(raw[start:], name)

    def _send(self, body: bytes, name: str) -> None:
        cuts = self.hub.cuts.get(name)
        if cuts:
            body = body[: cuts.pop(0)]
            self.close_connection = True
        self.wfile.write(body)


def _etag(raw: bytes) -> str:
    return hashlib.sha1(raw).hexdigest()
