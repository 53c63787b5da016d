"""A server of one file on this machine, which keeps what it was asked and can misbehave."""

from __future__ import annotations

import contextlib
import http.server
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class FileServer:
    """content: what it sends. ranges: whether it knows them. cut: bytes of an answer after which it
    hangs up; None: it sends all. status: of every answer; None: what is due. kind: what it says
    the content is. starts: from which byte on each request asked for.
    """

    content: bytes
    url: str = ""
    ranges: bool = True
    sized: bool = True
    cut: int | None = None
    status: int | None = None
    reason: str | None = None
    kind: str | None = None
    starts: list[int] = field(default_factory=list)


@contextlib.contextmanager
def serving(content: bytes, name: str = "model.pth") -> Iterator[FileServer]:
    """Serve `content` at the url that the server says, whose last part is `name`."""
    server = FileServer(content)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(asked[1]) if asked else 0
            server.starts.append(start)
            if server.status is not None:
                self.send_response(server.status)
                self.send_header("Location", self.path)
                self.end_headers()
                return
            size = len(server.content)
            if not server.ranges:
                start = 0
            if start >= size > 0:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            if server.sized:
                self.send_header("Content-Length", str(size - start))
            if server.kind is not None:
                self.send_header("Content-Type", server.kind)
            self.end_headers()
            body = server.content[start:]
            self.wfile.write(body if server.cut is None else body[: server.cut])

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        server.url = f"http://127.0.0.1:{listening.server_port}/{name}"
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            listening.shutdown()
            thread.join()
