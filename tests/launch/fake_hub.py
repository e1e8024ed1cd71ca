"""A hub on this machine: answers HEAD and GET of a few repositories with what huggingface.co answers."""

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, str, Any]
"""Status, ``X-Error-Code``, body."""
OK: Answer = (200, "", {})
NO_FILE: Answer = (404, "EntryNotFound", {})
NO_REPOSITORY: Answer = (401, "RepoNotFound", {})
GATED: Answer = (401, "GatedRepo", {})
NO_REVISION: Answer = (404, "RevisionNotFound", {})


class FakeHub(ThreadingHTTPServer):
    """Answers by path; what is not listed is not there."""

    daemon_threads = True

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = dict(answers)
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        """For ``HF_ENDPOINT``."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        repository, is_file, _ = self.path.partition("/resolve/")
        known = is_file and any(path.startswith(f"{repository}/resolve/") for path in self.server.answers)
        status, code, body = self.server.answers.get(self.path, NO_FILE if known else NO_REPOSITORY)
        content = json.dumps(body).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("ETag", '"1"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serve(answers: Mapping[str, Answer]) -> Iterator[FakeHub]:
    """Serve until the block ends."""
    hub = FakeHub(answers)
    thread = threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


def file(name: str, file: str = "config.json", revision: str = "main") -> str:
    """Return the path of a model's file."""
    return f"/{name}/resolve/{revision}/{file}"


def model(name: str, answer: Answer = OK) -> dict[str, Answer]:
    """Return the answers about a whole model."""
    return {file(name): answer, file(name, "model.safetensors"): answer}


def dataset(name: str, gated: Any = False) -> dict[str, Answer]:
    """Return the answers about a data set."""
    return {f"/api/datasets/{name}": (200, "", {"id": name, "gated": gated, "siblings": []})}
