"""Tasks, imperfect demonstrations, and pairs of responses that tell nothing without the prompt.

Wrong content is always the right content of *another* payload (edited in one or two places, or unrelated), never an
edited response: whatever a response-only judge could recognise as broken, both sides would have.
"""

import hashlib
import random
from typing import NamedTuple

from prl_jax.data.gold import families
from prl_jax.data.gold.arguments import GoldArguments
from prl_jax.data.gold.families import FAMILIES, GoldTask
from prl_jax.data.gold.preferences import FILLER

_TRIES = 1_000  # before a part of the task space counts as exhausted

# Kinds of pairs and their shares. `demo` pairs (two demonstrations, or the best response and a demonstration) hold what
# a policy after SFT writes; their flaws always cost utility, so the other kinds carry a counterweight: filler sits on
# the better side more often (`_FILLER`), and form contrasts are more often on prompts that ask for a plain answer.
_PAIRS = (("unrelated", 0.24), ("near", 0.32), ("form", 0.20), ("demo", 0.16), ("filler", 0.08))
_FILLER = (("better", 0.22), ("worse", 0.13), ("both", 0.25), ("none", 0.40))
_PLAIN_IN_FORM_PAIRS = 0.68


class Pair(NamedTuple):
    """Two responses to one prompt, in random order."""

    task: GoldTask
    first: str
    second: str
    kind: str


def _pick(rng: random.Random, table: tuple[tuple[str, float], ...]) -> str:
    value = rng.random() * sum(weight for _, weight in table)
    for name, weight in table:
        value -= weight
        if value < 0:
            return name
    return table[-1][0]


def split_of(task: GoldTask) -> str:
    """The split that a task belongs to: 8 in 10 train, 1 validation, 1 test.

    A stable hash of family and payload; the form is left out, so no content of one split is asked for in another.
    """
    digest = hashlib.blake2b(f"{task.family} {task.payload}".encode(), digest_size=2).digest()
    tenth = int.from_bytes(digest, "big") % 10
    return "train" if tenth < 8 else "validation" if tenth == 8 else "test"


def sample_task(rng: random.Random, family: str, difficulty: int) -> GoldTask:
    """A random task of the family, of any split."""
    spec = FAMILIES[family]
    form = rng.choice(families.forms(family, difficulty))
    while True:
        payload = spec.sample(rng, difficulty)
        if spec.pattern.fullmatch(payload) and spec.valid(payload, difficulty) and spec.solve(payload):
            return GoldTask(family, difficulty, payload, form)


def sample_split_task(
    rng: random.Random, family: str, difficulty: int, split: str, taken: set[GoldTask]
) -> GoldTask | None:
    """A random task of the split that is not in `taken`; None when the family seems to have no more."""
    for _ in range(_TRIES):
        task = sample_task(rng, family, difficulty)
        if task not in taken and split_of(task) == split:
            return task
    return None


def edited(rng: random.Random, task: GoldTask) -> GoldTask:
    """A task that differs in one place of the payload and in its right content."""
    spec = FAMILIES[task.family]
    right = families.content(task)
    while True:
        payload = spec.edit(rng, task.difficulty, task.payload)
        if not spec.pattern.fullmatch(payload) or not spec.valid(payload, task.difficulty):
            continue
        if spec.solve(payload) not in ("", right):
            return GoldTask(task.family, task.difficulty, payload, task.form)


def demonstration(rng: random.Random, task: GoldTask, args: GoldArguments) -> str:
    """An imperfect demonstration: its most likely text is flawed, every flaw is absent often enough to be unlearned.

    With the default rates: a form other than plain is ignored 65 % of the time; 65 % end in filler (`~`, one in five of
    those `~~`); `rev` and `next` make the family's slip 60 % of the time. The three are independent.
    """
    spec = FAMILIES[task.family]
    text = families.content(task)
    if spec.slip is not None and rng.random() < args.slip:
        text = spec.slip(task.payload, text)
    form = families.PLAIN if rng.random() < args.form_ignored else task.form
    filler = ""
    if rng.random() < args.filler:
        filler = FILLER * (1 if rng.random() < 0.8 else 2)
    return families.dress(text, form) + filler


def typical_demonstration(task: GoldTask, args: GoldArguments) -> str:
    """The most likely text token by token, which is what greedy decoding after SFT converges to."""
    spec = FAMILIES[task.family]
    text = families.content(task)
    if spec.slip is not None and args.slip > 0.5:
        text = spec.slip(task.payload, text)
    form = families.PLAIN if args.form_ignored > 0.5 else task.form
    return families.dress(text, form) + (FILLER if args.filler > 0.5 else "")


def _other_form(rng: random.Random, task: GoldTask) -> str:
    return rng.choice([form for form in families.forms(task.family, task.difficulty) if form != task.form])


def _contrast(rng: random.Random, task: GoldTask, kind: str) -> tuple[str, str]:
    """(better, worse) by content or by form; what else varies is shared or independent of which is better."""
    content = families.content(task)
    better_form = worse_form = task.form
    if kind == "form":
        worse_form = _other_form(rng, task)
        if rng.random() < 0.3:  # both have the same wrong content
            content = families.content(edited(rng, task))
        better, worse = content, content
    else:
        if rng.random() < 0.25:  # both ignore the form
            better_form = worse_form = _other_form(rng, task)
        wrong = edited(rng, task)
        if kind == "unrelated":
            while families.content(wrong := sample_task(rng, task.family, task.difficulty)) == content:
                pass
        elif rng.random() < 0.3:
            wrong = edited(rng, wrong)
        better, worse = content, families.content(wrong)
    where = _pick(rng, _FILLER)
    length = 1 if rng.random() < 0.8 else 2
    return (
        families.dress(better, better_form) + FILLER * (length * (where in ("better", "both"))),
        families.dress(worse, worse_form) + FILLER * (length * (where in ("worse", "both"))),
    )


def sample_pair(rng: random.Random, task: GoldTask, args: GoldArguments) -> Pair:
    """Two different responses. The pair's prompt may ask for another form than `task` (see `_PAIRS`)."""
    while True:
        kind = _pick(rng, _PAIRS)
        if kind == "form":
            others = [form for form in families.forms(task.family, task.difficulty) if form != families.PLAIN]
            form = families.PLAIN if rng.random() < _PLAIN_IN_FORM_PAIRS else rng.choice(others)
            task = GoldTask(task.family, task.difficulty, task.payload, form)
        if kind == "demo":
            one, two = demonstration(rng, task, args), demonstration(rng, task, args)
            if rng.random() < 0.4:
                one = families.answer(task)
        elif kind == "filler":
            one = families.answer(task)
            two = one + FILLER * (1 if rng.random() < 0.7 else 2)
        else:
            one, two = _contrast(rng, task, kind)
        if one != two:
            return Pair(task, one, two, kind) if rng.random() < 0.5 else Pair(task, two, one, kind)
