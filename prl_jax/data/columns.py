"""Which keys of a row are read, which may be left unread, and which are refused. Imports no jax.

A key that nothing reads is named (`unused_keys`), since its author meant something by it. It is refused where it looks
like a misspelt key that is read, and where leaving it unread would turn the row into something else.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

from prl_jax.data.fields import two_responses
from prl_jax.errors import UserError, quoted

_READ = frozenset(
    "prompt messages chosen rejected response completion reference tie p_chosen slot id source meta system "
    "system_prompt label score_chosen score_rejected win_chosen win_rejected".split()
)
# Bookkeeping of the data sets in use: nobody expects it to be read.
_IDLE = frozenset("label_source prompt_id".split())
_STRENGTHS = frozenset(["margin"])  # of a pair, which training does not use
_TURN = frozenset("role content from value".split())
_NOTHING: tuple[Any, ...] = (None, "", [], {})

# Keys that say which response is better, how good it is or how much it counts, in words that are not read.
_VERDICTS = frozenset(
    "winner preference preferences overall_preference better_response_id safer_response_id choice labels verdict draw "
    "is_draw swapped is_swapped flipped is_flipped weight weights sample_weight".split()
)
_SAFETY = re.compile(r"(is_)?(un)?(safe|harmful|toxic)|is_\w*safe")
_RATINGS = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
# What would stand in the model's prompt beside the turns.
_CONTEXT = "tools functions documents images image videos video audio audios chat_template_kwargs".split()
_BESIDE = {
    "history": 'make its exchanges turns of the prompt ("prompt": [{"role": "user", "content": ...}, ...])',
    "context": "put it into the prompt",
}

_MISSPELT = tuple(
    "prompt chosen rejected response completion messages conversations reference tie p_chosen slot system "
    "system_prompt tools label margin score_chosen score_rejected".split()
)
_OTHER_WORDS = frozenset(
    "prompts responses completions references preference tool time tide tile tire tier die lie pie vie toe tip tin tic "
    "tit til tid ti te ie tee lot plot slit spot shot clot".split()
)


def unused_keys(row: Mapping[str, Any], what: str) -> tuple[str, ...]:
    """The keys of a row (in the plain format) and of its turns that are not read for a record of the kind `what`,
    values that say nothing aside; those of turns as "prompt[].name"."""
    known = _READ | _IDLE
    known = known - {"response", "completion"} if what == "preference" else known | _STRENGTHS
    found = [key for key, value in row.items() if key not in known and value not in _NOTHING]
    for name in ("prompt", "messages", "chosen", "rejected", "response", "completion"):
        turns = row.get(name)
        if isinstance(turns, list):
            keys = {
                k: None for turn in turns if isinstance(turn, Mapping) for k, v in turn.items() if v not in _NOTHING
            }
            found += [f"{name}[].{key}" for key in keys if key not in _TURN]
    return tuple(found)


def refuse_misspelt(row: Mapping[str, Any], where: str) -> None:
    """Raises `UserError` for a key that looks like one that is read and is not in the row itself."""
    responses = two_responses(row)  # none of which is "response"
    for at, keys, known in (("", row, _MISSPELT), ("meta.", row.get("meta"), ("p_chosen",))):
        for key in keys if isinstance(keys, Mapping) else ():
            meant = key not in _READ and keys[key] is not None and _meant(key, known)
            if meant and key not in responses and keys.get(meant) is None:
                raise UserError(
                    f'{where}: unknown key {quoted(at + key)} (expected "{at}{meant}"?): rename it, or drop it if it '
                    "is something else"
                )


def refuse_context(row: Mapping[str, Any], where: str) -> None:
    """Raises `UserError` for tools, images and the like, and for earlier turns that stand beside the prompt."""
    for key, advice in _BESIDE.items():
        if row.get(key) not in (*_NOTHING, "[]", "{}"):
            raise UserError(f'{where}: key "{key}" stands beside the prompt, but is not read: {advice}, or drop it')
    for key in _CONTEXT:
        if row.get(key) not in (*_NOTHING, "[]", "{}"):
            raise UserError(
                f'{where}: key "{key}" belongs to the prompt, but is not supported: drop the row, or the column if '
                "the conversation can do without"
            )


def refuse_verdicts(row: Mapping[str, Any], where: str) -> None:
    """Raises `UserError` for keys of a pair that may say other than `chosen` and `rejected`."""
    for key, value in row.items():
        if value is not None and (key in _VERDICTS or _SAFETY.fullmatch(key) or (key == "label" and value is not True)):
            raise UserError(
                f'{where}: key "{key}" may change which response is the better one, but is not read: say it with '
                '"chosen", "rejected" and "tie", and drop this column'
            )


def doubt(row: Mapping[str, Any], where: str) -> str | None:
    """Why the response of a row that is no pair may be a bad one; None where nothing speaks against it.

    Raises:
      UserError: for a `label` that is neither true nor false.
    """
    label = row.get("label")
    if label is not None:
        if isinstance(label, str | float) or label not in (0, 1):
            raise UserError(f'{where}: field "label" is {label!r} (expected true or false)'[:300])
        if not label:
            return f'"label" is {str(label).lower()}'
    for key, value in row.items():
        if value is not None and _SAFETY.fullmatch(key) and value is not ("un" not in key and "safe" in key):
            return f'"{key}" is {quoted(value) if isinstance(value, str) else str(value).lower()[:80]}'
        if value is not None and key in _VERDICTS:
            return f'"{key}" is not read'
    if sum(row.get(key) is not None for key in _RATINGS) > 2:
        return "it has ratings (" + ", ".join(_RATINGS) + ")"
    return None


@functools.lru_cache(4096)
def _meant(key: str, known: tuple[str, ...]) -> str | None:
    """The known key that another one is taken for a misspelling of."""
    word = _letters(key)
    if word in _OTHER_WORDS:
        return None
    for name in known:
        target = _letters(name)
        if word in (target, f"is{target}", f"{target}d") and key != name:
            return name
    for name in known:
        target = _letters(name)
        if key != name and _distance(word, target) <= (2 if len(target) >= 10 else 1):
            return name
    return None


def _letters(key: str) -> str:
    return re.sub(r"[\W_]", "", key.lower())


def _distance(a: str, b: str) -> int:
    """Letters to insert, delete, replace or swap with their neighbour to get from one word to the other (optimal
    string alignment)."""
    if abs(len(a) - len(b)) > 2:
        return 3
    rows = [list(range(len(b) + 1))]
    for i in range(1, len(a) + 1):
        row = [i]
        for j in range(1, len(b) + 1):
            best = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (a[i - 1] != b[j - 1]))
            if i > 1 and j > 1 and a[i - 2 : i] == b[j - 2 : j][::-1]:
                best = min(best, rows[-2][j - 2] + 1)
            row.append(best)
        rows.append(row)
    return rows[-1][-1]
