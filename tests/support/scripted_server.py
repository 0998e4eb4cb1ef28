"""An OpenAI-compatible server in a thread: it answers and fails by script, and remembers every request.

With `upstream` it stands in front of a real server and passes on what is not scripted to fail.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

KEY = "sk-test-9f31c2d4e5b6a7f8"
MODEL = "writer"
TEXT = "The task is clear to me, and this brings it a little further."
READ, WRITTEN = 90, 10
"""Tokens of every answer that is not scripted otherwise."""


@dataclass(frozen=True)
class Reply:
    """What the server sends.

    Attributes:
        body: JSON, or text that is sent as it is.
        status: of HTTP.
        headers: besides type and length.
        how: `silent` says nothing and `trickle` a byte now and then, both until the server is closed; `dropped` closes
            the connection before the answer, `cut` in its middle.
    """

    body: Any = ""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    how: Literal["whole", "silent", "trickle", "dropped", "cut"] = "whole"


def completion(text: str | None = TEXT, **changes: Any) -> Reply:
    """A well-formed answer; `changes` replace keys of the body, or of its choice."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    choice |= {key: changes.pop(key) for key in ("finish_reason", "message") if key in changes}
    usage = {"prompt_tokens": READ, "completion_tokens": WRITTEN, "total_tokens": READ + WRITTEN}
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": MODEL, "choices": [choice], "usage": usage}
    return Reply(body | changes)


def refusal(status: int, message: str = "not now", **headers: str) -> Reply:
    """An error as OpenAI words it; underscores in the names of headers are hyphens."""
    body = {"error": {"message": message, "type": "error", "param": None, "code": None}}
    return Reply(body, status, {name.replace("_", "-"): value for name, value in headers.items()})


PASSING = {
    "silent": Reply(how="silent"),
    "trickle": Reply(how="trickle"),
    "dropped": Reply(how="dropped"),
    "cut": Reply(completion().body, how="cut"),
    "408": refusal(408),
    "429": refusal(429),
    "429 with a time": refusal(429, retry_after="0.01"),
    "429 with a date": refusal(429, retry_after="Wed, 21 Oct 2065 07:28:00 GMT"),
    "500": refusal(500),
    "502 in HTML": Reply("<html>Bad Gateway</html>", 502, {"Content-Type": "text/html"}),
}
"""Faults after which a request is repeated."""
GARBAGE = {
    "not JSON": Reply("{'choices': "),
    "HTML": Reply("<html>Welcome to the network of this hotel</html>", headers={"Content-Type": "text/html"}),
    "not UTF-8": Reply(b'{"choices": "\xff\xfe"}'),
    "nothing": Reply(""),
    "a list": Reply([]),
    "a number": Reply(7),
    "deep": Reply("[" * 100_000),
    "no choices": Reply({"id": "1"}),
    "choices null": Reply({"choices": None}),
    "empty choices": completion(choices=[]),
    "message null": completion(message=None),
    "an error with status 200": Reply({"error": {"message": "out of memory"}}),
    "400": refusal(400, "this prompt is too long"),
}
"""Replies that hold no answer."""
Script = Callable[[str, int], Reply | None]
"""Returns the reply to a prompt that was asked so often before; None: the answer of a working server."""


class Endpoint:
    """A server on a free port, for a `with` block.

    Args:
        script: what it replies.
        upstream: base URL of the server that answers instead of this one; None: this one does.

    Attributes:
        asked: requests by prompt.
        served: those that got a whole answer with status 200.
        last: the latest reply to each prompt.
        authorizations: every `Authorization` that it saw.
        bodies: of the requests, without their messages.
        most: requests under way at a time.
    """

    def __init__(self, script: Script | None = None, upstream: str | None = None) -> None:
        self.script, self.upstream = script or (lambda prompt, before: None), upstream
        self.asked: Counter[str] = Counter()
        self.served: Counter[str] = Counter()
        self.last: dict[str, Reply] = {}
        self.authorizations: set[str | None] = set()
        self.bodies: list[dict[str, Any]] = []
        self.most = self._now = 0
        self._lock = threading.Lock()
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Endpoint:
        handler = type("Bound", (_Handler,), {"endpoint": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def reply(self, path: str, raw: bytes, authorization: str | None) -> Reply:
        """Decide on a reply, and count it."""
        body = json.loads(raw)
        prompt = json.dumps(body.pop("messages"))
        with self._lock:
            before = self.asked[prompt]
            self.asked[prompt] += 1
            self.authorizations.add(authorization)
            self.bodies.append(body)
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            reply = self.script(prompt, before)
            if reply is None:
                reply = completion() if self.upstream is None else self._pass_on(path, raw, authorization)
        finally:
            with self._lock:
                self._now -= 1
        with self._lock:
            self.last[prompt] = reply
            self.served[prompt] += reply.status == 200 and reply.how == "whole"
        return reply

    def _pass_on(self, path: str, raw: bytes, authorization: str | None) -> Reply:
        url = f"{self.upstream}{path.removeprefix('/v1')}"
        headers = {"Content-Type": "application/json", "Authorization": authorization or ""}
        try:
            with urllib.request.urlopen(urllib.request.Request(url, raw, headers), timeout=120) as answer:
                return Reply(answer.read())
        except urllib.error.HTTPError as error:
            return Reply(error.read(), error.code)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has given up is no error."""


class _Handler(BaseHTTPRequestHandler):
    endpoint: Endpoint
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        reply = self.endpoint.reply(self.path, raw, self.headers["Authorization"])
        if reply.how == "silent":
            self.endpoint.closing.wait()
        if reply.how in ("silent", "dropped"):
            self._drop()
            return
        body = reply.body if isinstance(reply.body, bytes) else _text(reply.body).encode()
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body) + 1_000_000 * self._short(reply)),
        }
        self.send_response(reply.status)
        for name, value in (headers | dict(reply.headers)).items():
            self.send_header(name, value)
        self.end_headers()
        if reply.how == "trickle":
            while not self.endpoint.closing.wait(0.02):
                self.wfile.write(b" ")
        self.wfile.write(body)
        if self._short(reply):
            self.close_connection = True

    def _short(self, reply: Reply) -> bool:
        return reply.how in ("trickle", "cut")

    def _drop(self) -> None:
        # With nothing to linger for, the other side sees a reset.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""


def _text(body: Any) -> str:
    return body if isinstance(body, str) else json.dumps(body)
