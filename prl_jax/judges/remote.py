"""A model behind an OpenAI-compatible endpoint as a judge: it is asked in text, and answers with a verdict word."""

from __future__ import annotations

import hashlib
import json
import threading
import urllib.parse
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from prl_jax.errors import UserError, quoted
from prl_jax.judges.answers import Answer, Answers, Likeliest
from prl_jax.judges.base import Judged, check_lengths, logits
from prl_jax.judges.endpoint import Endpoint, Reply, one_line
from prl_jax.processes import from_leader
from prl_jax.text.chat import Prompt
from prl_jax.text.judging import JudgeTemplate, question_text

SURE = float(logits(np.ones(1))[0])  # the logit of a verdict that comes without a probability
_HOPELESS = 32  # answers without any verdict that are enough
_AROUND = " \t.\"'`*"  # what a model may write around its verdict word


class Verdict(NamedTuple):
    """The verdict in an answer.

    Attributes:
      z: the logit of "slot 1 wins", within `SURE` of 0; 0 where there is no verdict.
      parsed: whether there is one.
      bounded: whether the server does not show one of the two words, so that its probability was taken to be that of
        the last token that it shows; `z` is then nearer to 0 than the model's own.
    """

    z: float
    parsed: bool = True
    bounded: bool = False


class RemoteJudge:
    """Asks a model behind an endpoint, in both orders, about many pairs at once.

    Each answer is kept on a disk when it comes, and the same question is not asked again, at whatever temperature. An
    answer without a verdict is a tie, and counted; where the first `_HOPELESS` answers have none, that is an error. Of
    the processes of a run the first one asks, for all.

    Args:
      endpoint: whom to ask.
      request: the fields of a request beside its messages: the model, and how it answers.
      template: of name "question-v1".
      answers: those that are known, and where further ones go.
      log_probs: read the probabilities of the two verdict words in the first place of an answer (`read_top`), for which
        `request` has to ask; else its last line (`read_text`).
      question: instead of the template's own, see `question_text`.
      concurrency: requests that are under way at the same time, at most.
      prices: of a million tokens that are read, and that are written, in the currency of the counter "cost".
    """

    merge = "probability"

    def __init__(
        self,
        endpoint: Endpoint,
        request: Mapping[str, Any],
        template: JudgeTemplate,
        answers: Answers,
        *,
        log_probs: bool = False,
        question: str = "",
        concurrency: int = 8,
        prices: tuple[float, float] = (0.0, 0.0),
    ):
        self.endpoint, self.request, self.template, self.answers = endpoint, dict(request), template, answers
        self.log_probs, self.question, self.concurrency, self.prices = log_probs, question, concurrency, prices
        self._counts: Counter[str] = Counter()

    def __call__(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> Judged:
        check_lengths(prompts, first, second)
        rows = [*zip(prompts, first, second, strict=True), *zip(prompts, second, first, strict=True)]
        z = from_leader(lambda: self._logits(rows), len(rows)).astype(np.float32)
        return Judged(z[: len(prompts)], z[len(prompts) :], self.merge)

    def one_order(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> Judged:
        """As `OneOrderJudge` has it."""
        check_lengths(prompts, first, second)
        rows = [*zip(prompts, first, second, strict=True)]
        z = from_leader(lambda: self._logits(rows), len(rows)).astype(np.float32)
        return Judged(z, -z, self.merge)

    def _logits(self, rows: Sequence[tuple[Prompt, str, str]]) -> Float[np.ndarray, "N"]:
        """`[N]` float64 logits of "slot 1 wins", from what is known and what the endpoint answers."""
        bodies = [self._body(question_text(self.template, *row, self.question)) for row in rows]
        keys = [self._key(body) for body in bodies]
        requests = dict(zip(keys, bodies, strict=True))
        found = {key: answer for key in requests if (answer := self.answers.get(key)) is not None}
        known = len(found)
        found |= self._ask({key: body for key, body in requests.items() if key not in found}, known)
        verdicts = [self._verdict(found[key]) for key in keys]
        self._counts["cached"] += len(keys) - (len(found) - known)
        self._counts["parsed"] += sum(verdict.parsed for verdict in verdicts)
        self._counts["unparsed"] += sum(not verdict.parsed for verdict in verdicts)
        self._counts["bounded"] += sum(verdict.bounded for verdict in verdicts)
        if not self._counts["parsed"] and self._counts["unparsed"] >= _HOPELESS:
            raise self._hopeless(found[keys[-1]])
        return np.array([verdict.z for verdict in verdicts], np.float64)

    def counters(self) -> dict[str, float]:
        """Numbers since the judge was made: requests that were answered (`asked`), judgements of one order that needed
        none (`cached`), attempts beyond the first (`retried`); judgements without a verdict (`unparsed`) and with one
        that is `bounded` (`Verdict`); tokens and cost of the requests; and damaged lines of the cache."""
        counts = {name: float(self._counts[name]) for name in _COUNTED}
        cost = self.prices[0] * counts["tokens_in"] + self.prices[1] * counts["tokens_out"]
        return {**counts, "cost": cost / 1e6, "cache_damaged": float(self.answers.damaged)}

    @property
    def _name(self) -> str:
        return f"{self.endpoint.url}, model {self.request['model']!r}"

    def _body(self, question: str) -> bytes:
        body = {**self.request, "messages": [{"role": "user", "content": question}]}
        # What is no character, half of a surrogate pair, becomes a question mark.
        return json.dumps(body, sort_keys=True, ensure_ascii=False).encode("utf-8", "replace")

    def _key(self, body: bytes) -> str:
        """Tells requests apart: the path and all fields count; the host does not, where the same model may move."""
        path = urllib.parse.urlsplit(self.endpoint.url).path
        return hashlib.sha256(path.encode() + b"\0" + body).hexdigest()

    def _ask(self, requests: Mapping[str, bytes], known: int) -> dict[str, Answer]:
        """The answers to requests; what is answered is kept, also where others fail."""
        found: dict[str, Answer] = {}
        failure: UserError | None = None
        abandoned = threading.Event()

        def one(key: str, body: bytes) -> Reply | None:
            try:
                reply = self.endpoint.ask(body, abandoned)
                if reply is not None:
                    self._keep(key, reply.answer)
                return reply
            except UserError:
                abandoned.set()
                raise

        with ThreadPoolExecutor(self.concurrency) as pool:  # its end waits for what is under way
            futures = {pool.submit(one, key, body): key for key, body in requests.items()}
            try:
                for future in as_completed(futures):
                    try:
                        reply = future.result()
                    except UserError as error:
                        failure = failure or error
                        continue
                    if reply is not None:
                        found[futures[future]] = reply.answer
                        self._count(reply)
            finally:
                abandoned.set()  # by whatever ends the loop
        if failure is not None:
            raise UserError(
                f"{self._name}: {failure}; {len(found) + known} of {len(requests) + known} questions are answered and "
                f"kept in {self.answers.path}: the same command asks only the others"
            ) from failure
        return found

    def _keep(self, key: str, answer: Answer) -> None:
        if self.log_probs and answer.top is None:
            raise UserError("it gives no log-probabilities; ask another server, or read the text of its answers")
        self.answers.add(key, answer)

    def _count(self, reply: Reply) -> None:
        self._counts["asked"] += 1
        self._counts["retried"] += reply.retried
        self._counts["tokens_in"] += reply.answer.tokens_in
        self._counts["tokens_out"] += reply.answer.tokens_out

    def _hopeless(self, answer: Answer) -> UserError:
        words = " or ".join(map(quoted, self.template.verdicts))
        return UserError(
            f"{self._name}: none of the first {self._counts['unparsed']} answers has a verdict ({words}), one says "
            f"{quoted(one_line(answer.text))}; ask another question, let answers be longer, or turn off what the model "
            "writes before them"
        )

    def _verdict(self, answer: Answer) -> Verdict:
        if self.log_probs:
            return read_top(answer.top or (), self.template.verdicts)
        return read_text(answer.text, self.template.verdicts)


_COUNTED = ("asked", "cached", "retried", "unparsed", "bounded", "tokens_in", "tokens_out")


def read_text(text: str, verdicts: tuple[str, str]) -> Verdict:
    """The verdict of an answer whose last line says a verdict word and nothing else; no verdict in any other."""
    lines = text.strip().splitlines()
    word = lines[-1].strip(_AROUND) if lines else ""
    return Verdict(SURE if word == verdicts[0] else -SURE) if word in verdicts else Verdict(0.0, parsed=False)


def read_top(top: Likeliest, verdicts: tuple[str, str]) -> Verdict:
    """The verdict of the likeliest tokens. Those that differ in the spaces around a word are that word; a word that is
    not among them has at most the probability of the last one, and gets that. No verdict where both are missing."""
    shares = [[value for token, value in top if token.strip() == word] for word in verdicts]
    if not any(shares):
        return Verdict(0.0, parsed=False)
    least = min(value for _, value in top)
    yes, no = (float(np.logaddexp.reduce(values)) if values else least for values in shares)
    return Verdict(min(max(yes - no, -SURE), SURE), bounded=not all(shares))
