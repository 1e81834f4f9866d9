"""A server on the loopback that answers like the Hugging Face hub: files of repositories at their revisions."""

import hashlib
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


@dataclass
class LocalHub:
    """revisions: {repository: {revision: (commit, {file: bytes})}}; requests: (method, path, status) answered."""

    revisions: dict = field(default_factory=dict)
    gated: set = field(default_factory=set)
    broken: bool = False  # answers 500
    requests: list = field(default_factory=list)
    endpoint: str = ""

    def add(self, repository, files, revisions=("main",), commit=None):
        """Put files at a commit that these revisions name; returns the commit."""
        commit = commit or hashlib.sha1(repr((repository, sorted(files))).encode()).hexdigest()
        for revision in (*revisions, commit):
            self.revisions.setdefault(repository, {})[revision] = commit, dict(files)
        return commit

    def answer(self, path):
        """(status, headers, body) of a path /owner/name/resolve/revision/file."""
        owner, name, verb, revision, *file = path.strip("/").split("/")
        repository, revision, file = f"{owner}/{name}", unquote(revision), unquote("/".join(file))
        if self.broken:
            return 500, {}, b""
        if verb != "resolve" or repository not in self.revisions:
            return 401, {"X-Error-Code": "RepoNotFound"}, b""
        if repository in self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        if revision not in self.revisions[repository]:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        commit, files = self.revisions[repository][revision]
        if file not in files:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        etag = hashlib.sha256(files[file]).hexdigest()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "X-Linked-Etag": f'"{etag}"'}
        return 200, headers | {"X-Linked-Size": str(len(files[file]))}, files[file]


@contextmanager
def serving(hub):
    """The hub's address while it answers."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.reply(body=False)

        def do_GET(self):
            self.reply(body=True)

        def reply(self, body):
            status, headers, content = hub.answer(self.path.partition("?")[0])
            hub.requests.append((self.command, self.path, status))
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
