"""A local HTTP server of a folder that serves ranges, counts what it sends, and may be slow."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_CHUNK = 1 << 12


class RangeServer(ThreadingHTTPServer):
    """Serves ``root`` at ``url``; ``sent`` has the bytes of each path, ``delay`` the seconds for each 4 KiB.

    Of the next parts of files, ``failures`` are cut short and ``damages`` have a wrong byte in the middle; without
    ``ranges`` there are no parts of files.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.delay, self.ranges = root, 0.0, True
        self.failures = self.damages = 0
        self.sent: dict[str, int] = {}
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: RangeServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._respond(body=False)

    def do_GET(self) -> None:
        self._respond(body=True)

    def _respond(self, *, body: bool) -> None:
        path = self.server.root / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if self.server.ranges else None
        start, stop = 0, len(data)
        if span:
            start, stop = int(span[1]), min(int(span[2] or stop) + 1, stop)
        self.send_response(206 if span else 200)
        self.send_header("Accept-Ranges", "bytes" if self.server.ranges else "none")
        self.send_header("Content-Length", str(stop - start))
        if span:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.end_headers()
        if span and body and self.server.damages:
            self.server.damages -= 1
            data = data[: (middle := (start + stop) // 2)] + bytes([data[middle] ^ 255]) + data[middle + 1 :]
        if span and body and self.server.failures:
            self.server.failures -= 1
            self.close_connection = True
            return
        for at in range(start, stop if body else start, _CHUNK):
            part = data[at : min(at + _CHUNK, stop)]
            self.wfile.write(part)
            self.server.sent[self.path] = self.server.sent.get(self.path, 0) + len(part)
            time.sleep(self.server.delay)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving(root: Path) -> Generator[RangeServer, None, None]:
    server = RangeServer(root)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
