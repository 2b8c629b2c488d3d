"""A stand-in for the Hub over HTTP, in memory and on this machine only: enough for pushing a folder and fetching it.

Understands tokens ("writer" may write, "reader" may not), LFS uploads, commits, revisions, and what a client asks to
find out what is already there. Everything a test may want to know is in `repos` and `calls`.
"""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LIMIT = 64 << 20
"""Bytes of a request, at most."""


class Hub(ThreadingHTTPServer):
    """`with Hub() as hub:` serves at `hub.url`.

    repos: name -> {"private": bool, "files": {path: bytes}, "commits": [sha, ...]}; calls: (method, path) in order.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.objects, self.calls, self.lock = {}, {}, [], threading.RLock()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Refusal(Exception):
    """An answer that is an error: status, code for X-Error-Code, message."""


def sha1(content):
    """What git calls this file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(name):
    """Whether the Hub would keep this file in LFS."""
    return name.endswith((".safetensors", ".png", ".gif", ".bin"))


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Silent: the server keeps `calls`."""

    def respond(self, status, body=b"", headers=None):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, str(value))
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def handle_any(self):
        """Read the request, find who answers it, answer."""
        hub, path = self.server, unquote(urlsplit(self.path).path)
        length = int(self.headers.get("Content-Length") or 0)
        if length > LIMIT:
            return self.respond(413, {"error": "too large"})
        body = self.rfile.read(length) if "chunked" not in self.headers.get("Transfer-Encoding", "") else self.chunks()
        with hub.lock:
            hub.calls.append((self.command, path))
            try:
                status, answer, *headers = self.answer(hub, path.strip("/").split("/"), body)
                return self.respond(status, answer, *headers)
            except Refusal as refusal:
                status, code, message = refusal.args
                return self.respond(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def chunks(self):
        body = b""
        while (size := int(self.rfile.readline(), 16)) and len(body) < LIMIT:
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer(self, hub, parts, body):
        """(status, body, headers)."""
        match parts:
            case ["api", "whoami-v2"]:
                self.allow()
                return 200, {"name": "someone", "type": "user", "orgs": [], "auth": {"type": "access_token"}}
            case ["api", "validate-yaml"]:
                return 200, {"errors": [], "warnings": []}
            case ["api", "repos", "create"]:
                return self.create(hub, json.loads(body))
            case ["api", "models", owner, name, *rest]:
                return self.api(hub, f"{owner}/{name}", rest, body)
            case [owner, name, "info", "lfs", "objects", "batch"]:
                return self.lfs(hub, f"{owner}/{name.removesuffix('.git')}", json.loads(body))
            case ["upload", oid]:
                hub.objects[oid] = body
                return 200, {}
            case ["verify"]:
                return 200, {}
            case [owner, name, "resolve", _, *file]:
                return self.file(self.repo(hub, f"{owner}/{name}"), "/".join(file))
        raise Refusal(404, "EntryNotFound", f"no such page: {'/'.join(parts)}")

    def allow(self, write=False):
        """Refuse who has no token, a wrong one, or one that may not write."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ("writer", "reader"):
            raise Refusal(401, "InvalidToken", "Invalid username or password.")
        if write and token != "writer":
            raise Refusal(403, "Forbidden", "This token has no right to write.")

    def repo(self, hub, name):
        """The repository, if it is there and the caller may know of it."""
        repo = hub.repos.get(name)
        if repo is None:
            raise Refusal(404, "RepoNotFound", "Repository not found")
        if repo["private"]:
            self.allow()
        return repo

    def create(self, hub, wish):
        self.allow(write=True)
        name = f"{wish.get('organization') or 'someone'}/{wish['name']}"
        url = {"url": f"{hub.url}/{name}", "name": name, "id": name}
        if name in hub.repos:
            return 409, {**url, "error": "You already created this model repo"}
        private = wish.get("visibility") == "private" or bool(wish.get("private"))
        hub.repos[name] = {"private": private, "files": {}, "commits": ["0" * 40]}
        return 200, url

    def api(self, hub, name, rest, body):
        repo = self.repo(hub, name)
        files, sha = repo["files"], repo["commits"][-1]
        match rest:
            case [] | ["revision", _]:
                siblings = [{"rfilename": path} for path in sorted(files)]
                facts = {"id": name, "modelId": name, "sha": sha, "private": repo["private"], "tags": []}
                return 200, {**facts, "siblings": siblings, "downloads": 0, "likes": 0}
            case ["tree", *_]:
                return 200, [self.entry(path, content) for path, content in sorted(files.items())]
            case ["preupload", _]:
                self.allow(write=True)
                asked = [file["path"] for file in json.loads(body)["files"]]
                return 200, {"files": [self.plan(path, files.get(path)) for path in asked]}
            case ["commit", _]:
                self.allow(write=True)
                return self.commit(hub, name, repo, [json.loads(line) for line in body.splitlines() if line.strip()])
        raise Refusal(404, "EntryNotFound", f"no such call: {rest}")

    def plan(self, path, known):
        """How a file is to be sent, and what is known of it."""
        large = is_large(path)
        oid = {} if known is None else {"oid": hashlib.sha256(known).hexdigest() if large else sha1(known)}
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, **oid}

    def entry(self, path, content):
        large = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        lfs = {"lfs": large} if is_large(path) else {}
        return {"type": "file", "path": path, "size": len(content), "oid": sha1(content), **lfs}

    def lfs(self, hub, name, wish):
        self.allow(write=True)
        self.repo(hub, name)
        answers = []
        for item in wish["objects"]:
            actions = {"upload": {"href": f"{hub.url}/upload/{item['oid']}"}, "verify": {"href": f"{hub.url}/verify"}}
            answers.append({**item, **({} if item["oid"] in hub.objects else {"actions": actions})})
        return 200, {"transfer": "basic", "objects": answers}

    def commit(self, hub, name, repo, lines):
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                repo["files"][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = hub.objects[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                repo["files"][value["path"]] = content
            elif line["key"] != "header":
                raise Refusal(400, "BadRequest", f"this stand-in knows no {line['key']}")
        sha = hashlib.sha1(repr((repo["commits"], sorted(repo["files"]))).encode()).hexdigest()
        repo["commits"].append(sha)
        return 200, {"success": True, "commitOid": sha, "commitUrl": f"{hub.url}/{name}/commit/{sha}"}

    def file(self, repo, path):
        if path not in repo["files"]:
            raise Refusal(404, "EntryNotFound", f"no {path}")
        content, sha = repo["files"][path], repo["commits"][-1]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{sha1(content)}"', "Content-Length": len(content)}
        if is_large(path):
            large = {"X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Linked-Size": len(content)}
            headers.update(large)
        return 200, content, {**headers, "Content-Type": "application/octet-stream"}
