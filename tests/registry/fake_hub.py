"""A model hub on the loopback interface that knows what `push` asks of one; nothing more."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_may_write"
LARGE = (".safetensors", ".gguf", ".data")


@dataclass
class Repository:
    """Branches, each a list of commits, each the files by their paths."""

    private: bool = False
    branches: dict[str, list[dict[str, bytes]]] = field(default_factory=lambda: {"main": [{}]})


class FakeHub(ThreadingHTTPServer):
    """Attributes:
    fail: path's part -> status, for requests that are to go wrong.
    asked: method and path of every request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}
        self.fail: dict[str, int] = {}
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        """What a branch holds now."""
        return self.repositories[repo].branches[branch][-1]

    def answer(self, method: str, path: str, body: bytes, token: str) -> tuple[int, Any]:
        self.asked.append(f"{method} {path}")
        if status := next((status for part, status in self.fail.items() if part in path), None):
            return status, {"error": "as the test wants it"}
        if path.startswith("/objects/"):
            self.stored[path.rpartition("/")[2]] = body
            return 200, {}
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        for pattern, reply in _ROUTES.items():
            if (found := re.fullmatch(pattern, f"{method} {path.partition('?')[0]}")) is not None:
                return reply(self, *found.groups(), body)
        return 404, {"error": f"no such page: {method} {path}"}

    def create(self, body: bytes) -> tuple[int, Any]:
        asked = json.loads(body)
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if repo in self.repositories:
            return 409, {"error": "You already created this model repo", "url": f"{self.address}/{repo}"}
        self.repositories[repo] = Repository(asked.get("private") is True or asked.get("visibility") == "private")
        return 200, {"url": f"{self.address}/{repo}", "name": repo}

    def info(self, repo: str, body: bytes) -> tuple[int, Any]:
        if repo not in self.repositories:
            return 404, {"error": "Repository not found"}
        names = [{"rfilename": name} for name in self.files(repo)]
        return 200, {"id": repo, "private": self.repositories[repo].private, "tags": [], "siblings": names}

    def branch(self, repo: str, branch: str, body: bytes) -> tuple[int, Any]:
        branches = self.repositories[repo].branches
        if branch in branches:
            return 409, {"error": "Reference already exists"}
        branches[branch] = [dict(self.files(repo))]
        return 200, {}

    def tree(self, repo: str, branch: str, body: bytes) -> tuple[int, Any]:
        files = self.files(repo, branch)
        return 200, [{"type": "file", "path": name, "size": len(text), "oid": "0"} for name, text in files.items()]

    def preupload(self, repo: str, branch: str, body: bytes) -> tuple[int, Any]:
        modes = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if one["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
            }
            for one in json.loads(body)["files"]
        ]
        return 200, {"files": modes}

    def batch(self, repo: str, body: bytes) -> tuple[int, Any]:
        wanted = json.loads(body)["objects"]
        put = [{**one, "actions": {"upload": {"href": f"{self.address}/objects/{one['oid']}"}}} for one in wanted]
        return 200, {"transfer": "basic", "objects": put}

    def commit(self, repo: str, branch: str, body: bytes) -> tuple[int, Any]:
        files = dict(self.files(repo, branch))
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.stored[value["oid"]]
                assert hashlib.sha256(files[value["path"]]).hexdigest() == value["oid"]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.repositories[repo].branches[branch].append(files)
        return 200, {"success": True, "commitOid": "a" * 40, "commitUrl": f"{self.address}/{repo}/commit/{'a' * 40}"}


_REPO = r"([\w.-]+/[\w.-]+)"
_ROUTES: dict[str, Any] = {
    r"POST /api/repos/create": FakeHub.create,
    r"POST /api/validate-yaml": lambda hub, body: (200, {"warnings": [], "errors": []}),
    rf"GET /api/models/{_REPO}": FakeHub.info,
    rf"POST /api/models/{_REPO}/branch/(\w+)": FakeHub.branch,
    rf"GET /api/models/{_REPO}/tree/(\w+)": FakeHub.tree,
    rf"POST /api/models/{_REPO}/preupload/(\w+)": FakeHub.preupload,
    rf"POST /{_REPO}\.git/info/lfs/objects/batch": FakeHub.batch,
    rf"POST /api/models/{_REPO}/commit/(\w+)": FakeHub.commit,
}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _respond(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else self._chunks()
        status, said = self.server.answer(self.command, self.path, body, self.headers.get("Authorization", ""))  # type: ignore[attr-defined]
        text = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _chunks(self) -> bytes:
        """A body of a length that was not told before."""
        found = b""
        while self.headers.get("Transfer-Encoding") == "chunked":
            size = int(self.rfile.readline(), 16)
            found += self.rfile.read(size)
            self.rfile.readline()
            if not size:
                break
        return found

    do_GET = do_POST = do_PUT = _respond

    def log_message(self, *_: Any) -> None:
        """Not on the tests' output."""
