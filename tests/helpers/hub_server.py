"""A Hugging Face Hub on loopback: the calls that up- and downloads need, and the ways in which they can go wrong."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest


@dataclass
class Repository:
    """Files by commit. `fault` makes the server misbehave for this repository: see `_Handler._resolve`."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    fault: str = ""
    private: bool = False

    def commit(self, files: dict[str, bytes], ref: str = "main") -> str:
        """A commit that holds these files beside those of the branch's last one."""
        whole = self.commits.get(self.refs.get(ref, ""), {}) | files
        sha = hashlib.sha1(repr((len(self.commits), sorted(whole.items()))).encode()).hexdigest()
        self.commits[sha] = whole
        self.refs[ref] = sha
        return sha


class HubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.other_host = f"http://localhost:{self.server_address[1]}"  # as the Hub keeps large files elsewhere
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.tokens: list[tuple[str, str | None]] = []  # path and Authorization
        self.refuse_push = False

    def add(self, name: str, files: dict[str, bytes | str], fault: str = "") -> Repository:
        repository = self.repositories[name] = Repository(fault=fault)
        repository.commit({key: value.encode() if isinstance(value, str) else value for key, value in files.items()})
        return repository

    def add_folder(self, name: str, folder: Path, fault: str = "") -> Repository:
        return self.add(name, {path.name: path.read_bytes() for path in folder.iterdir()}, fault)


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.0"

    def log_message(self, *args: Any) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except (BrokenPipeError, ConnectionResetError):  # a client that has seen enough
            self.close_connection = True

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        return body

    def do_HEAD(self) -> None:
        self._get()

    def do_GET(self) -> None:
        self._get()

    def _get(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path))
        self.server.tokens.append((path, self.headers.get("Authorization")))
        parts = path.strip("/").split("/")
        if len(parts) >= 5 and parts[2] == "resolve":
            rest = parts[3:]
            self._resolve("/".join(parts[:2]), "/".join(rest[:-1]), rest[-1])
        elif parts[0] == "objects":
            self._object(self.server.objects[parts[1]], parts[2] if len(parts) > 2 else "")
        elif parts[:2] == ["api", "models"] and len(parts) >= 4:
            self._info("/".join(parts[2:4]), "/".join(parts[5:]) or "main")
        else:
            self._json({"error": "not here"}, 404)

    def _find(self, name: str, ref: str) -> tuple[Repository, str] | None:
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and not self.headers.get("Authorization")):
            self._json({"error": "Repository not found"}, 401, {"X-Error-Code": "RepoNotFound"})
            return None
        if repository.fault == "gated":
            self._json({"error": "Access is restricted"}, 403, {"X-Error-Code": "GatedRepo"})
            return None
        if repository.fault.isdigit():
            self._json({"error": "\x1b]0;title\x07 broken"}, int(repository.fault))
            return None
        sha = repository.refs.get(ref, ref)
        if sha not in repository.commits:
            self._json({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return None
        return repository, sha

    def _info(self, name: str, ref: str) -> None:
        if found := self._find(name, ref):
            repository, sha = found
            siblings = [{"rfilename": key} for key in repository.commits[sha]]
            self._json({"id": name, "sha": sha, "siblings": siblings, "private": repository.private, "tags": []})

    def _resolve(self, name: str, ref: str, file: str) -> None:
        if not (found := self._find(name, ref)):
            return
        repository, sha = found
        headers = {"X-Repo-Commit": sha}
        data = repository.commits[sha].get(file)
        if data is None:
            self._json({"error": "Entry not found"}, 404, headers | {"X-Error-Code": "EntryNotFound"})
            return
        large = file.endswith(".safetensors")
        fault = repository.fault if large else ""
        etag = hashlib.sha256(data).hexdigest() if large else hashlib.sha1(data).hexdigest()
        headers["ETag"] = f'"{etag}"'
        if repository.fault == "warns":
            headers["X-HF-Warning"] = "topic; look \x1b]0;title\x07here"
        if repository.fault == "etag":
            headers["ETag"] = '"../../../../escaped"'
        if repository.fault == "commit":
            headers["X-Repo-Commit"] = "../../../escaped"
        if repository.fault == "no hub":
            headers = {}
        if large:
            size = {"huge": 2**40, "lies": 1000}.get(fault, len(data))
            self.server.objects[etag] = data
            location = f"{self.server.other_host}/objects/{etag}/{fault}"
            linked = {"X-Linked-Size": str(size), "X-Linked-Etag": headers.get("ETag", ""), "Location": location}
            self._answer(302, b"", headers | linked)
        else:
            self._answer(200, data, headers)

    def _object(self, data: bytes, fault: str) -> None:
        if fault == "lies":  # more than was said, without an end
            self.send_response(200)
            self.end_headers()
            for _ in range(200):
                self.wfile.write(bytes(2**20))
        elif fault == "half":
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
        elif fault == "gone":
            self._answer(404)
        else:
            self._answer(200, data)

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path))
        self.server.tokens.append((path, self.headers.get("Authorization")))
        body = self._body()
        parts = path.strip("/").split("/")
        if self.server.refuse_push:
            self._json({"error": "no rights \x1b]0;title\x07\nmore"}, 403)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.server.repositories:
                self._json({"error": "exists", "url": f"{self.server.endpoint}/{name}"}, 409)
                return
            repository = self.server.repositories[name] = Repository(private=asked.get("visibility") == "private")
            repository.commit({".gitattributes": b""})
            self._json({"url": f"{self.server.endpoint}/{name}", "name": name})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path.startswith("/api/models/") and parts[4] == "preupload":
            if self._find("/".join(parts[2:4]), "/".join(parts[5:])):
                files = json.loads(body)["files"]
                modes = {
                    name: "lfs" if name.endswith(".safetensors") else "regular" for name in (f["path"] for f in files)
                }
                answer = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
                self._json({"files": answer})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                value | {"actions": {"upload": {"href": f"{self.server.endpoint}/upload/{value['oid']}"}}}
                for value in json.loads(body)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})
        elif path.startswith("/api/models/") and parts[4] == "commit":
            self._commit("/".join(parts[2:4]), "/".join(parts[5:]), body)
        else:
            self._json({"error": "not here"}, 404)

    def _commit(self, name: str, ref: str, body: bytes) -> None:
        files: dict[str, bytes] = {}
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        answer: dict[str, Any] = {"success": True}
        if "create_pr=1" in (urlsplit(self.path).query or ""):
            ref = "refs/pr/1"
            answer["pullRequestUrl"] = f"{self.server.endpoint}/{name}/discussions/1"
        sha = self.server.repositories[name].commit(files, ref)
        self._json(answer | {"commitOid": sha, "commitUrl": f"{self.server.endpoint}/{name}/commit/{sha}"})

    def do_PUT(self) -> None:
        path = urlsplit(self.path).path
        self.server.requests.append((self.command, path))
        data = self._body()
        assert hashlib.sha256(data).hexdigest() == path.rpartition("/")[2]
        self.server.objects[path.rpartition("/")[2]] = data
        self._answer(200)


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A running server. Nothing of it outlives the block."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(endpoint: str, home: Path) -> dict[str, str]:
    """The environment of a process that knows this Hub and no other."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))} | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "NO_PROXY": "*",
    }


def use(endpoint: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have huggingface_hub, which read its environment when it was imported, use this Hub and no other."""
    from huggingface_hub import constants

    values: dict[str, Any] = {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "AGENT_HARNESSES_PATH": str(home / ".agent_harnesses.json"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_OFFLINE": False,
    }
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value, raising=False)  # not every version has them all
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
