"""An OpenAI-compatible endpoint: a request in, an answer out, asked again as long as what fails may pass.

Nothing but the chat completions of the API is used, and nothing but `http.client` and `urllib` of Python. A redirect is
not followed, since it would carry the key to another host.
"""

from __future__ import annotations

import http.client
import random
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from typing import Any, NamedTuple

from prl_jax.errors import UserError
from prl_jax.files import parse_json
from prl_jax.judges.answers import Answer, likeliest, token_count

_PASSING = (408, 409, 425, 429)  # status codes that say "later", beside 500 and above
_MOST_BYTES = 16 * 1024**2  # of a response; an answer takes some thousand
_SHOWN = 300  # characters of a server's reason
_SECRET = 8  # characters from which on a key is taken out of responses; shorter ones are placeholders such as "EMPTY"
LONGEST_WAIT = 60.0  # seconds between two attempts, unless the server asks for more
PATIENCE = 600.0  # seconds that a server may ask for


class Reply(NamedTuple):
    """An answer, and how often its request was repeated."""

    answer: Answer
    retried: int


class Endpoint:
    """Asks for chat completions. Threads may ask at once.

    Args:
      url: of the API, such as "http://localhost:8000/v1".
      key: goes into the header of requests; nowhere else, and is taken out of whatever the server says. "" sends none.
      timeout: seconds that a server may be silent; a response that trickles in for longer is given up too.
      retries: attempts after the first one.
      first_wait: seconds before the second attempt, at most; each further wait is twice as long, up to `LONGEST_WAIT`,
        and a random part of up to a half is taken off, so that many who failed together do not come back together.
    """

    def __init__(self, url: str, *, key: str = "", timeout: float = 60.0, retries: int = 6, first_wait: float = 1.0):
        self.url, self.timeout, self.retries, self.first_wait = url.rstrip("/"), timeout, retries, first_wait
        self._key, self._random = key, random.Random()
        self._opener = urllib.request.OpenerDirector()  # bare: follows no redirect, reads no file
        for handler in (urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
            self._opener.add_handler(handler())

    def ask(self, body: bytes, abandoned: threading.Event) -> Reply | None:
        """Sends a request until it is answered.

        Args:
          body: of the request, JSON.
          abandoned: once set, nothing is sent any more, waits end, and None is returned.

        Raises:
          UserError: the server refuses the request, or all attempts failed; with the server's reason.
        """
        attempt = 0
        while not abandoned.is_set():
            try:
                return Reply(_answer_in(self._post(body)), attempt)
            except _Passing as error:
                if attempt == self.retries or error.wait > PATIENCE:
                    raise UserError(f"{error} (attempts: {attempt + 1})") from error
                abandoned.wait(max(self._pause(attempt), error.wait))
            attempt += 1
        return None

    def _pause(self, attempt: int) -> float:
        return min(self.first_wait * 2**attempt, LONGEST_WAIT) * self._random.uniform(0.5, 1.0)

    def _post(self, body: bytes) -> bytes:
        """The body of a response to a request that has succeeded."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(f"{self.url}/chat/completions", body, headers)
        end = time.monotonic() + self.timeout
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                data = self._read(response, end)
                status, later = response.status, response.headers.get("Retry-After", "")
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error  # which that one wraps
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise UserError(f"its certificate is not accepted ({one_line(reason.verify_message)})") from error
            if isinstance(reason, TimeoutError):
                raise _Passing(f"no answer within {self.timeout:g} s") from error
            raise _Passing(f"cannot be reached ({one_line(str(reason)) or type(reason).__name__})") from error
        if 200 <= status < 300:
            return data
        reason = f"status {status}: {_reason_in(data)}"
        if status in _PASSING or status >= 500:
            raise _Passing(reason, _seconds(later))
        raise UserError(reason)

    def _read(self, response: Any, end: float) -> bytes:
        """A response, without the key. A server that sends byte after byte has no more time than another."""
        data = b""
        while part := response.read1(1 << 16):
            data += part
            if len(data) > _MOST_BYTES:
                raise UserError(f"a response of more than {_MOST_BYTES} bytes; is this a chat endpoint?")
            if time.monotonic() > end:
                raise TimeoutError
        return data.replace(self._key.encode(), b"[key]") if len(self._key) >= _SECRET else data


class _Passing(Exception):
    """A failure that may pass; `wait` are the seconds for which the server asks."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


def _answer_in(data: bytes) -> Answer:
    """The answer in a response. Some servers report failures with status 200, so that another form may pass too."""
    try:
        value = parse_json(data)
        choice = value["choices"][0]
        text, given = choice["message"]["content"], choice.get("logprobs")
        if not isinstance(text, str | None):
            raise TypeError("its content is no text")
        usage = value.get("usage") or {}
        counts = token_count(usage.get("prompt_tokens")), token_count(usage.get("completion_tokens"))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise _Passing(f"the response is none of the chat API: {_reason_in(data)}") from error
    return Answer(text or "", _top_of(given), *counts)


def _top_of(given: Any) -> tuple[tuple[str, float], ...] | None:
    """The likeliest tokens in the first place, from a choice's `logprobs`."""
    if not isinstance(given, dict) or not isinstance(given.get("content"), list):
        return None
    first = given["content"][0] if given["content"] else None
    return likeliest(first.get("top_logprobs")) if isinstance(first, dict) else ()


def _reason_in(data: bytes) -> str:
    """The reason that a server gives for a failure, in one line: its error's message, or how its response begins."""
    text: Any = data.decode("utf-8", "replace")
    try:
        error = parse_json(data)["error"]
        text = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError):
        pass
    return one_line(str(text)) or "it says nothing"


def one_line(text: str) -> str:
    """A text of somebody else's, fit for a message: in one line, of characters that can be seen."""
    seen = "".join(c if c.isprintable() else " " for c in text[: 4 * _SHOWN])
    line = " ".join(seen.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."


def _seconds(later: str) -> float:
    """The seconds of a `Retry-After`; 0 where it is a date or nothing."""
    return float(later) if re.fullmatch(r"\d{1,9}(\.\d+)?", later, re.ASCII) else 0.0
