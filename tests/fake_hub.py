"""A hub on loopback: the few requests by which huggingface_hub reads and writes a repository, and a log of them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest


class FakeHub:
    """Repositories by name: of each revision its files.

    Attributes:
        repositories: {"owner/name": {"main": {"config.json": bytes}}}
        gated: names of repositories that are given to nobody.
        writers: tokens that may write.
        asked: "METHOD path" of every request.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.gated: set[str] = set()
        self.writers = {"secret"}
        self.asked: list[str] = []
        self.url = ""


def hash_of(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def commit_of(files: dict[str, bytes]) -> str:
    return hash_of(b"".join(name.encode() + content for name, content in sorted(files.items())))


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, status: int, content: bytes | object = b"", **headers: str) -> None:
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), {"Content-Type": "application/json", **headers}
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def files(self, name: str, revision: str) -> dict[str, bytes] | None:
        if name in self.hub.gated:
            self.answer(403, X_Error_Code="GatedRepo", X_Error_Message="gated")
        elif name not in self.hub.repositories:
            self.answer(404, X_Error_Code="RepoNotFound")
        else:
            revisions = self.hub.repositories[name]
            found = {commit_of(files): files for files in revisions.values()} | revisions
            if revision in found:
                return found[revision]
            self.answer(404, X_Error_Code="RevisionNotFound")
        return None

    def do_GET(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?/?", path):
            name, kind, revision = match[1], match[2], match[3] or "main"
            files = self.files(name, revision)
            if files is not None and kind == "tree":
                self.answer(200, [{"type": "file", "path": path, "size": len(content), "oid": hash_of(content)}
                                  for path, content in files.items()])  # fmt: skip
            elif files is not None:
                siblings = [{"rfilename": path} for path in files]
                facts = {"id": name, "sha": commit_of(files), "private": False, "tags": [], "siblings": siblings}
                self.answer(200, facts)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            files = self.files(match[1], match[2])
            if files is not None and match[3] in files:
                content = files[match[3]]
                self.answer(200, content, X_Repo_Commit=commit_of(files), ETag=f'"{hash_of(content)}"')
            elif files is not None:
                self.answer(404, X_Error_Code="EntryNotFound")
        else:
            self.answer(404)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization", "").removeprefix("Bearer ") not in self.hub.writers:
            self.answer(401)
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            status = 409 if name in self.hub.repositories else 200
            self.hub.repositories.setdefault(name, {"main": {}})
            self.answer(status, {"url": f"{self.hub.url}/{name}", "id": name})
        elif match := re.match(r"/api/models/([^/]+/[^/]+)/(branch|preupload|commit)/([^/?]+)", self.path):
            self.change(match[1], match[2], match[3], body)
        else:
            self.answer(200, {})

    def change(self, name: str, what: str, revision: str, body: bytes) -> None:
        revisions = self.hub.repositories[name]
        if what == "branch":
            status = 409 if revision in revisions else 200
            revisions.setdefault(revision, dict(revisions["main"]))
            self.answer(status, {})
        elif what == "preupload":
            plan = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            self.answer(200, {"files": [{"path": file["path"], **plan} for file in json.loads(body)["files"]]})
        else:
            for row in map(json.loads, body.splitlines()):
                if row["key"] == "file":
                    revisions[revision][row["value"]["path"]] = base64.b64decode(row["value"]["content"])
            commit = commit_of(revisions[revision])
            self.answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit})


def point_at(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it the hub of huggingface_hub, which read its constants when it was imported; with an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.url)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
