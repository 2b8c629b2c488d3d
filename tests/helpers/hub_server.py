"""A fake Hub over HTTP, in memory and on this machine only, with which folders are pushed and fetched.

It knows tokens ("writer" may write, "reader" may not), LFS uploads, commits, branches, revisions, ranges, and requests
for existing files. Tests read `repos` and `calls`, and set `cut` to break connections.
"""

import base64
import hashlib
import json
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LIMIT = 64 << 20
"""Most bytes of a request."""


class Repo:
    """A repository: the files of every commit, and the newest commit of each branch.

    private: visible with a token only; trees: sha -> {path: bytes}; branches: name -> sha; commits: those of main.
    """

    def __init__(self, private=False):
        self.private, self.trees, self.branches, self.commits = private, {}, {}, []
        self.add("main", {})

    @property
    def files(self):
        """Return the files of main."""
        return self.trees[self.branches["main"]]

    def add(self, branch, files):
        """Commit these files to a branch, and return the commit's sha."""
        content = sorted((path, hashlib.sha1(data).hexdigest()) for path, data in files.items())
        sha = hashlib.sha1(repr((branch, len(self.trees), content)).encode()).hexdigest()
        self.trees[sha], self.branches[branch] = files, sha
        if branch == "main":
            self.commits.append(sha)
        return sha

    def resolve(self, revision):
        """Return the sha of a branch or revision."""
        sha = self.branches.get(revision, revision)
        if sha not in self.trees:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha


class Hub(ThreadingHTTPServer):
    """`with Hub() as hub:` serves at `hub.url`.

    repos: name -> Repo; calls: (method, path) in order; cut: prefixes of paths at which the connection is dropped.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.objects, self.calls, self.cut, self.lock = {}, {}, [], (), threading.RLock()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def fetched(self):
        """Return the paths of the requested files."""
        return [path.split("/resolve/")[1].split("/", 1)[1] for _, path in self.calls if "/resolve/" in path]


def use(hub, monkeypatch, home, token="writer"):
    """Point this process's huggingface_hub at the fake Hub, with a cache of its own."""
    from huggingface_hub import constants

    cache = str(home / "hub")
    values = {"ENDPOINT": hub.url, "HF_HUB_OFFLINE": False, "HF_HUB_CACHE": cache, "HF_HUB_DISABLE_XET": True}
    values["HUGGINGFACE_CO_URL_TEMPLATE"] = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    values["HF_TOKEN_PATH"] = str(home / "token")
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.url)  # what diffusers calls
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)


def environment(hub, home, path="", token="writer"):
    """Return the environment of a fresh process that uses the fake Hub; `path` is for its imports."""
    removed = {"HF_HUB_OFFLINE", "HF_TOKEN", "HF_DATASETS_OFFLINE", "HUGGING_FACE_HUB_TOKEN", "PYTHONPATH"}
    variables = {key: value for key, value in os.environ.items() if key not in removed}
    variables |= {"HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    variables |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "PYTHONPATH": path}
    variables |= {"HF_HUB_OFFLINE": "1"} if hub is None else {"HF_ENDPOINT": hub.url}
    return variables | ({"HF_TOKEN": token} if token else {})


class Refusal(Exception):
    """An error response: status, code for X-Error-Code, message."""


def sha1(content):
    """Return git's hash of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(name):
    """Return whether the Hub would keep this file in LFS."""
    return name.endswith((".safetensors", ".png", ".gif", ".bin"))


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Log nothing: the server keeps `calls`."""

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
        """Read the request and respond."""
        hub, path = self.server, unquote(urlsplit(self.path).path)
        length = int(self.headers.get("Content-Length") or 0)
        if length > LIMIT:
            return self.respond(413, {"error": "too large"})
        if any(path.startswith(start) for start in hub.cut):
            hub.calls.append((self.command, path))
            self.rfile.read(length // 2)
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
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
        """Return (status, body) or (status, body, headers)."""
        match parts:
            case ["api", "whoami-v2"]:
                self.allow()
                return 200, {"name": "someone", "type": "user", "orgs": [], "auth": {"type": "access_token"}}
            case ["api", "validate-yaml"]:
                return 200, {"errors": faults(json.loads(body)["content"]), "warnings": []}
            case ["api", "repos", "create"]:
                return self.create(hub, json.loads(body))
            case ["api", "models" | "datasets", owner, name, *rest]:
                return self.api(hub, f"{owner}/{name}", rest, body)
            case [owner, name, "info", "lfs", "objects", "batch"]:
                return self.lfs(hub, f"{owner}/{name.removesuffix('.git')}", json.loads(body))
            case ["upload", oid]:
                hub.objects[oid] = body
                return 200, {}
            case ["verify"]:
                return 200, {}
            case [owner, name, "resolve", revision, *file] | ["datasets", owner, name, "resolve", revision, *file]:
                return self.file(self.repo(hub, f"{owner}/{name}"), revision, "/".join(file))
        raise Refusal(404, "EntryNotFound", f"no such page: {'/'.join(parts)}")

    def allow(self, write=False):
        """Refuse a request without a token, or without the right to write."""
        if self.token() is None:
            raise Refusal(401, "RepoNotFound", "Invalid username or password.")
        if write and self.token() != "writer":
            raise Refusal(403, "Forbidden", "This token has no right to write.")

    def token(self):
        """Return the caller's token, or None; refuse an unknown token."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        if token not in (None, "writer", "reader"):
            raise Refusal(401, "InvalidToken", "Invalid credentials in Authorization header")
        return token

    def repo(self, hub, name):
        """Return the repository; refuse if it does not exist or is hidden from the caller."""
        private = name not in hub.repos or hub.repos[name].private
        if private and self.token() is None:
            raise Refusal(401, "RepoNotFound", "Invalid username or password.")
        self.token()
        if name not in hub.repos:
            raise Refusal(404, "RepoNotFound", "Repository not found")
        return hub.repos[name]

    def create(self, hub, request):
        self.allow(write=True)
        name = f"{request.get('organization') or 'someone'}/{request['name']}"
        url = {"url": f"{hub.url}/{name}", "name": name, "id": name}
        if name in hub.repos:
            return 409, {**url, "error": "You already created this model repo"}
        hub.repos[name] = Repo(request.get("visibility") == "private" or bool(request.get("private")))
        return 200, url

    def api(self, hub, name, rest, body):
        repo = self.repo(hub, name)
        match rest:
            case [] | ["revision", _]:
                sha = repo.resolve(rest[1] if rest else "main")
                siblings = [{"rfilename": path} for path in sorted(repo.trees[sha])]
                facts = {"id": name, "modelId": name, "sha": sha, "private": repo.private, "tags": []}
                return 200, {**facts, "siblings": siblings, "downloads": 0, "likes": 0}
            case ["tree", revision, *_]:
                files = repo.trees[repo.resolve(revision)]
                return 200, [self.entry(path, content) for path, content in sorted(files.items())]
            case ["paths-info", revision]:
                files = repo.trees[repo.resolve(revision)]
                paths = parse_qs(body.decode())["paths"] if b"=" in body else json.loads(body)["paths"]
                return 200, [self.entry(path, files[path]) for path in paths if path in files]
            case ["branch", branch]:
                self.allow(write=True)
                if branch in repo.branches:
                    return 409, {"error": "Reference already exists"}
                repo.branches[branch] = repo.branches["main"]
                return 200, {}
            case ["preupload", revision]:
                self.allow(write=True)
                files = repo.trees[repo.resolve(revision)]
                paths = [file["path"] for file in json.loads(body)["files"]]
                return 200, {"files": [self.plan(path, files.get(path)) for path in paths]}
            case ["commit", branch]:
                self.allow(write=True)
                lines = [json.loads(line) for line in body.splitlines() if line.strip()]
                return self.commit(hub, name, repo, branch, lines)
        raise Refusal(404, "EntryNotFound", f"no such call: {rest}")

    def plan(self, path, content):
        """Return how a file is to be sent, and the hash of its present content."""
        large = is_large(path)
        oid = {} if content is None else {"oid": hashlib.sha256(content).hexdigest() if large else sha1(content)}
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, **oid}

    def entry(self, path, content):
        large = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        lfs = {"lfs": large} if is_large(path) else {}
        return {"type": "file", "path": path, "size": len(content), "oid": sha1(content), **lfs}

    def lfs(self, hub, name, request):
        self.allow(write=True)
        self.repo(hub, name)
        answers = []
        for item in request["objects"]:
            actions = {"upload": {"href": f"{hub.url}/upload/{item['oid']}"}, "verify": {"href": f"{hub.url}/verify"}}
            answers.append({**item, **({} if item["oid"] in hub.objects else {"actions": actions})})
        return 200, {"transfer": "basic", "objects": answers}

    def commit(self, hub, name, repo, branch, lines):
        files = dict(repo.trees[repo.resolve(branch)])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = hub.objects[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                files[value["path"]] = content
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] != "header":
                raise Refusal(400, "BadRequest", f"this fake Hub knows no {line['key']}")
        sha = repo.add(branch, files)
        return 200, {"success": True, "commitOid": sha, "commitUrl": f"{hub.url}/{name}/commit/{sha}"}

    def file(self, repo, revision, path):
        sha = repo.resolve(revision)
        if path not in repo.trees[sha]:
            raise Refusal(404, "EntryNotFound", f"no {path}")
        content = repo.trees[sha][path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{sha1(content)}"', "Accept-Ranges": "bytes"}
        if is_large(path):
            large = {"X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Linked-Size": len(content)}
            headers.update(large)
        status, span = 200, self.headers.get("Range", "")
        if span.startswith("bytes=") and self.command == "GET":
            first, _, last = span.removeprefix("bytes=").partition("-")
            start, end, total = int(first), min(int(last or len(content)), len(content) - 1), len(content)
            status, content = 206, content[start : end + 1]
            headers["Content-Range"] = f"bytes {start}-{end}/{total}"
        return status, content, {**headers, "Content-Length": len(content), "Content-Type": "application/octet-stream"}


def faults(card):
    """Return errors in a card's metadata, as huggingface_hub reads it."""
    from huggingface_hub import ModelCard

    try:
        data = ModelCard(card).data.to_dict()
    except ValueError as error:
        return [{"message": str(error)}]
    results = [result for model in data.get("model-index", []) for result in model["results"]]
    return [
        {"message": "a result without task or metrics"} for r in results if not (r.get("task") and r.get("metrics"))
    ]
