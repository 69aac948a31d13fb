"""A local server with the API of OpenAI's chat completions, which does as a script says: it answers, fails, stalls,
lies and throttles."""

import contextlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

_SLOTS = re.compile(r"\[Response 1\]\n(.*)\n\n\[Response 2\]\n(.*)\n\n\[Question\]", re.DOTALL)


class Reply(NamedTuple):
    """What the server does with a request: `body` as JSON, or bytes as they are; None closes the connection. It waits
    `stall` seconds before, and `drip` seconds before each byte of the body."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = {}
    stall: float = 0.0
    drip: float = 0.0


Script = Callable[[int, dict[str, Any]], Reply]
"""The number of a request, from 0, and its body -> what becomes of it."""


class Server(NamedTuple):
    """Where it is, and what it was asked: bodies and headers, in the order in which they came."""

    url: str
    asked: list[dict[str, Any]]
    headers: list[Mapping[str, str]]

    @property
    def slots(self) -> list[tuple[str, str]]:
        """The responses that each request shows in slot 1 and slot 2."""
        return [slots(body) for body in self.asked]


def slots(body: Mapping[str, Any]) -> tuple[str, str]:
    """The responses in slot 1 and slot 2 of a question of `question-v1`."""
    found = _SLOTS.search(body["messages"][-1]["content"])
    return found[1], found[2]


def says(text: str | None, top: Sequence[tuple[str, float]] | None = None, *, usage: Any = None) -> Reply:
    """An answer, with the likeliest tokens in its first place."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", "logprobs": None}
    if top is not None:
        entries = [{"token": token, "logprob": value, "bytes": None} for token, value in top]
        choice["logprobs"] = {"content": [{**entries[0], "top_logprobs": entries}] if entries else []}
    usage = {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102} if usage is None else usage
    return Reply({"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage})


def fails(status: int, reason: str = "so it is", **headers: str) -> Reply:
    """An error as the API reports it."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply({"error": {"message": reason, "type": "error"}}, status, headers)


def likes_long(_: int, body: Mapping[str, Any]) -> Reply:
    """The longer response is better, and of equally long ones that in slot 1."""
    first, second = slots(body)
    return says("Y" if len(first) >= len(second) else "N")


def in_turn(*replies: Reply, then: Script = likes_long) -> Script:
    """The first requests get these replies, the further ones what another script says."""
    return lambda n, body: replies[n] if n < len(replies) else then(n, body)


@contextlib.contextmanager
def served(script: Script) -> Iterator[Server]:
    """A server on this machine, which ends with the block."""
    asked, headers, lock = [], [], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(asked)
                asked.append(body)
                headers.append({**self.headers, "path": self.path})
            self._reply(script(number, body))

        def _reply(self, reply: Reply) -> None:
            ended.wait(reply.stall)
            if reply.body is None:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            with contextlib.suppress(OSError):  # a client that has waited long enough is gone
                self.send_response(reply.status)
                for name, value in {**reply.headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                for piece in [data[i : i + 1] for i in range(len(data))] if reply.drip else [data]:
                    ended.wait(reply.drip)
                    self.wfile.write(piece)

        def log_message(self, *_: Any) -> None:
            pass

    ended = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False  # each is waited for at the end
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield Server(f"http://127.0.0.1:{server.server_address[1]}/v1", asked, headers)
    finally:
        ended.set()
        server.shutdown()
        thread.join()
        server.server_close()
