"""A judge that is a model behind an OpenAI-compatible endpoint: a server of one's own, or somebody's API."""

from __future__ import annotations

import hashlib
import os
import re
import urllib.parse
from typing import Any

from ml_collections import ConfigDict

from prl_jax.config.declare import filled
from prl_jax.errors import UserError
from prl_jax.file_names import ANSWERS_DIR
from prl_jax.files import local_path
from prl_jax.judges import RemoteJudge
from prl_jax.judges.answers import Answers
from prl_jax.judges.endpoint import Endpoint
from prl_jax.runs.judges.kind import JudgeKind, Surroundings
from prl_jax.text.judging import JudgeTemplate

READS = ("text", "logprobs")
# What a reading does not look at.
_UNREAD = {"text": ("top_logprobs",), "logprobs": ("max_tokens", "temperature")}
_AT_LEAST = {"max_tokens": 0, "temperature": 0, "top_logprobs": 2, "concurrency": 1, "retries": 0, "price_in": 0,
             "price_out": 0}  # fmt: skip
_FIXED = ("model", "messages", "max_tokens", "temperature", "logprobs", "top_logprobs", "n", "stream")
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*", re.ASCII)


def declare(**values: Any) -> dict[str, Any]:
    """Returns the section of a model behind an endpoint."""
    defaults = dict(
        kind="remote",
        url="",  # of the API, without /chat/completions: http://localhost:8000/v1
        model="",
        question="",  # instead of "Is response 1 better than response 2? Answer Y or N."; it has to name the verdicts
        verdicts=("Y", "N"),  # the words for "response 1 is better" and "response 2 is better"
        reads="text",  # the last line of an answer; or "logprobs": the probabilities of the verdicts as first token
        max_tokens=16,  # of an answer that is read as text; 0 leaves it to the server
        temperature=0.0,
        top_logprobs=20,  # tokens that the server shows; some allow fewer
        extra={},  # further fields of a request, such as dict(seed=1)
        api_key_env="",  # the name of the environment variable that holds the key; "" sends none
        concurrency=8,
        timeout=60.0,  # seconds that an answer may take
        retries=6,  # of a request that the server is too busy for, or that gets lost; they wait about a minute in all
        cache="",  # the folder of the answers, which runs may share; "" is inside the workdir
        price_in=0.0,  # of a million tokens that the model reads, and writes, in any currency
        price_out=0.0,
    )
    return filled(defaults, values, "judge")


def check(section: ConfigDict) -> None:
    """Raises `UserError`, which begins with the key, for what cannot be asked."""
    _check_url(section.url)
    if not section.model:
        raise UserError("model: empty, expected the name that the server has for its model")
    if section.reads not in READS:
        raise UserError(f"reads={section.reads!r}, expected one of {', '.join(map(repr, READS))}")
    defaults = declare()
    for key in _UNREAD[section.reads]:
        if section[key] != defaults[key]:
            raise UserError(f"{key}={section[key]!r} is not read, since reads is {section.reads!r}; leave it out")
    for key, least in _AT_LEAST.items():
        if section[key] < least:
            raise UserError(f"{key}={section[key]!r}, expected at least {least}")
    if section.timeout <= 0:
        raise UserError(f"timeout={section.timeout!r}, expected more than 0 seconds")
    _check_verdicts(section)
    taken = sorted(set(section.extra) & set(_FIXED))
    if taken:
        raise UserError(f"extra.{taken[0]}: is no further field of a request; the judge sets it by itself or by a key")
    api_key(section)


def _check_url(url: str) -> None:
    try:
        found = urllib.parse.urlsplit(url)
        plain = found.scheme in ("http", "https") and bool(found.hostname) and url.isascii() and url.isprintable()
        hidden = "@" in found.netloc or found.query or found.fragment
        plain = plain and " " not in url and (found.port is None or found.port > 0)
        (found.hostname or "").encode("idna")
    except ValueError:
        plain = hidden = False
    if hidden:  # which may hold a password, and is not repeated
        raise UserError("url: holds a user, a query or a fragment; give the key by api_key_env, and the rest by extra")
    if not plain:
        raise UserError(
            f"url={url!r}, expected http://HOST[:PORT]/PATH or https://..., such as http://localhost:8000/v1"
        )


def _check_verdicts(section: ConfigDict) -> None:
    words = tuple(section.verdicts)
    if len(words) != 2 or len(set(words)) != 2 or not all(isinstance(word, str) and word.isalnum() for word in words):
        raise UserError(f"verdicts={words!r}, expected two different words of letters or digits, such as ('Y', 'N')")
    missing = [word for word in words if not re.search(rf"\b{re.escape(word)}\b", section.question)]
    if section.question and missing:
        raise UserError(f"question: does not name the verdict {missing[0]!r}; say that it is one of the two answers")


def api_key(section: ConfigDict) -> str:
    """The key from the environment; "" without one. Messages hold the name of the variable alone."""
    name = section.api_key_env
    if not name:
        return ""
    if not _VARIABLE.fullmatch(name):  # perhaps the key itself, which is not repeated
        raise UserError(
            "api_key_env: expected the name of an environment variable, in capitals such as OPENAI_API_KEY; the key "
            "itself never stands in a config"
        )
    key = os.environ.get(name, "").strip()
    if not key:
        raise UserError(f"api_key_env={name!r}: there is no such environment variable, or it is empty; export it")
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"api_key_env={name!r}: the variable holds characters that no key has")
    return key


def load(section: ConfigDict, around: Surroundings) -> RemoteJudge:
    """The judge, with the answers that it has got before."""
    endpoint = Endpoint(section.url, key=api_key(section), timeout=section.timeout, retries=section.retries)
    folder = local_path(section.cache) if section.cache else around.folder / ANSWERS_DIR
    name = hashlib.sha256(f"{urllib.parse.urlsplit(endpoint.url).path}\0{section.model}".encode()).hexdigest()[:16]
    return RemoteJudge(
        endpoint,
        request_of(section),
        JudgeTemplate("question-v1", tuple(section.verdicts)),
        Answers(folder / f"{name}.jsonl"),
        log_probs=section.reads == "logprobs",
        question=section.question,
        concurrency=section.concurrency,
        prices=(section.price_in, section.price_out),
    )


def request_of(section: ConfigDict) -> dict[str, Any]:
    """The fields of a request beside its messages."""
    fields = {"model": section.model, **section.extra.to_dict()}
    if section.reads == "logprobs":
        # At temperature 1 the log-probabilities are the model's own, whether or not a server divides by it.
        return {**fields, "max_tokens": 1, "temperature": 1.0, "logprobs": True, "top_logprobs": section.top_logprobs}
    limit = {"max_tokens": section.max_tokens} if section.max_tokens else {}
    return {**fields, **limit, "temperature": section.temperature}


def word(word: str) -> dict[str, str] | None:
    """`URL#MODEL`, for an endpoint that needs no key."""
    if not word.startswith(("http://", "https://")):
        return None
    url, _, model = word.partition("#")
    return {"url": url, "model": model}


KIND = JudgeKind(name="remote", declare=declare, load=load, check=check, word=word)
