"""A web server on loopback that gives the files of a folder, as well or badly as a test wants."""

import contextlib
import functools
import http.server
import itertools
import re
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType


class Static(http.server.SimpleHTTPRequestHandler):
    """Parts of files by `Range`, and of a folder the page ``index``, or the answer that it is.

    wrong: by the end of a path, what goes wrong with its first ``times`` requests: an answer, or "cut".
    """

    index: str | int | None = None
    parts, sized = True, True
    wrong: Mapping[str, int | str] = MappingProxyType({})
    times = 1000
    asked: Counter[str]

    def log_message(self, *args):
        pass

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        wrong = self._wrong()
        if isinstance(wrong, int):
            self._answer(wrong)
        elif path.is_dir() and self.index is not None:
            self._answer(*((200, self.index.encode()) if isinstance(self.index, str) else (self.index,)))
        elif path.is_dir() or not path.exists():
            getattr(super(), f"do_{self.command}")()
        else:
            self._file(path.read_bytes(), cut=wrong == "cut")

    def do_HEAD(self):
        self.do_GET()

    def _wrong(self):
        for end, what in self.wrong.items():
            if self.path.endswith(end) and (what != "cut" or self.command == "GET"):
                self.asked[self.path] += 1
                return what if self.asked[self.path] <= self.times else None
        return None

    def _file(self, data, cut):
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if self.parts else None
        if found:
            first, last = int(found[1]), min(int(found[2]), len(data) - 1)
            part = data[first : last + 1]
            self._answer(206, part, cut, {"Content-Range": f"bytes {first}-{last}/{len(data)}"})
        else:
            self._answer(200, data, cut)

    def _answer(self, status, data=b"", cut=False, headers=None):
        self.send_response(status)
        sized = {"Content-Length": str(len(data))} if self.sized else {}
        for name, value in {"Content-Type": "text/html", **sized, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = True


class Endless(http.server.BaseHTTPRequestHandler):
    """A file whose size nobody tells, and without end."""

    def __init__(self, *args, directory=None):
        super().__init__(*args)

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            for _ in itertools.count() if self.command == "GET" else ():
                self.wfile.write(bytes(2**16))

    def do_HEAD(self):
        self.do_GET()


@contextlib.contextmanager
def serving(folder, handler=Static, **how):
    """The URL of ``folder`` on a server; how: attributes of its ``handler``."""
    called = functools.partial(type("Handler", (handler,), {"asked": Counter(), **how}), directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), called) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
