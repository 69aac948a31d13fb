"""Which pieces work together, and how a method stands in a config."""

import ast
import contextlib
import dataclasses
import itertools
import re
from pathlib import Path

import pytest

import prl_jax
from prl_jax.errors import UserError
from prl_jax.methods import (
    DIRECT,
    DIRECT_LOSSES,
    METHODS,
    PIECES,
    SLOTS,
    Anchors,
    Critic,
    Group,
    Method,
    NoOpponent,
    PairClip,
    Pool,
    Preset,
    RewardKL,
    Standardised,
    WinProbability,
    baselines,
    method_of,
    piece_of,
    scores,
    section_of,
)
from prl_jax.methods.opponents import Circular

PACKAGE = Path(prl_jax.__file__).parent
WHOLE = ("pair_clip", "pair_token_clip", "pair_regression", "single_regression")
SCORES = ("score", "centred", "par", "lsc", "tanh", "clip", "minmax", "running_norm", "several")
GROUP = ("peer", "group", "circular", "random_peer")
SAMPLED = ("greedy", "past", "mixture")


def accepted(opponents: str, reward: str, baseline: str, surrogate: str, regulariser: str) -> bool:
    """The rules, for pieces with their defaults."""
    compares = reward in ("win_probability", "centred", "par", "lsc")
    return (
        (opponents == "none") == (not compares)
        and (regulariser in ("inside_kl", "mixture")) == (surrogate in WHOLE)
        and not (surrogate in WHOLE and baseline not in ("group_mean", "constant", "greedy"))
        and (surrogate != "pair_regression" or (opponents == "peer" and reward in ("win_probability", "par")))
        and (baseline != "difference" or (opponents == "group" and reward == "win_probability"))
        and (baseline != "difference" or regulariser != "reward_kl")
        and (baseline != "greedy" or (opponents not in (*GROUP, *SAMPLED) and reward not in ("minmax", "running_norm")))
        and not (opponents == "circular" and reward in SCORES)
    )


def test_every_combination_of_kinds_works_or_is_refused_by_a_slots_name():
    kinds = {slot: tuple(PIECES[slot]) for slot in SLOTS}
    counts = {True: 0, False: 0}
    for names in itertools.product(*kinds.values()):
        sections = {slot: {"kind": kind} for slot, kind in zip(SLOTS, names, strict=True)}
        try:
            method_of(sections)
        except UserError as error:
            assert not accepted(*names), f"{names} refused: {error}"
            slot, kind = re.match(r"(\w+)='(\w+)'", str(error)).groups()
            assert kind == sections[slot]["kind"]
            counts[False] += 1
        else:
            assert accepted(*names), f"{names} accepted"
            counts[True] += 1
    assert sum(counts.values()) == 10 * 10 * 8 * 7 * 4 and min(counts.values()) > 500


@pytest.mark.parametrize(
    ("name", "slots", "message"),
    [
        ("online_dpo", {"reward": WinProbability(map="logit")}, "surrogate='pair_regression'.*a reward that is a prob"),
        ("ppo", {"baseline": Critic(sees_opponent=True)}, "baseline.sees_opponent: with opponents='none' no anchor"),
        ("ppo", {"surrogate": PairClip()}, "regulariser='reward_kl'.*'inside_kl'"),
        ("p3o", {"regulariser": RewardKL()}, "regulariser='reward_kl'.*'inside_kl'"),
        ("p3o", {"baseline": Standardised()}, "baseline='standardised'.*takes rewards for what they are"),
        ("p3o", {"baseline": baselines.Batch()}, "baseline='batch'.*sees whole responses"),
        ("think_rm", {"reward": WinProbability(map="log")}, "baseline='difference' needs each comparison"),
        ("think_rm", {"regulariser": RewardKL()}, "regulariser='reward_kl'.*no divergence among them"),
        ("par", {"opponents": Anchors(orders="one")}, "opponents='anchors' is judged in one order"),
        ("think_rm", {"opponents": Circular()}, "baseline='difference' needs each comparison"),
        ("think_rm", {"reward": WinProbability(over="min")}, "baseline='difference' needs each comparison"),
        ("remax", {"reward": scores.MinMax()}, "baseline='greedy': the reward 'minmax' depends on the other responses"),
        ("par", {"opponents": Anchors(orders="random")}, "judged in one order.*such as 'group'"),
        ("grpo", {"reward": scores.Several(shapes=("par",))}, "opponents='none'.*'several' compares"),
    ],
)
def test_fields_that_cannot_work_with_another_piece_are_named(name, slots, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(METHODS[name].method, **slots)


def test_a_critic_may_see_an_anchor():
    method = METHODS["pairwise_rl"].method
    for opponents in (method.opponents, Pool()):
        assert dataclasses.replace(method, opponents=opponents, baseline=Critic(sees_opponent=True))


@pytest.mark.parametrize(
    ("name", "works", "refused", "message"),
    [
        ("ppo", (1, 2, 3), (0,), "need at least 1 responses"),
        ("pairwise_rl", (1, 5), (0,), "need at least 1 responses"),
        ("grpo", (2, 3), (1,), "'none', 'standardised', 'token_clip' need at least 2 responses"),
        ("spo", (2, 3), (1,), "need at least 2 responses"),
        ("p3o", (2, 4), (1, 3), "'peer', 'constant', 'pair_clip' need at least 2 responses to a prompt, and an even"),
    ],
)
def test_a_group_has_as_many_responses_as_the_pieces_need(name, works, refused, message):
    method = METHODS[name].method
    for size in works:
        method.check_group(size)
    for size in refused:
        with pytest.raises(UserError, match=f"group_size={size}: .*{message}"):
            method.check_group(size)


@pytest.mark.parametrize(
    ("name", "opponents", "kept", "message"),
    [
        ("lsc", Anchors(), 1, "opponents='anchors': the reward 'lsc' needs at least 2 .*meets 1, of 1 kept"),
        ("lsc", Pool(draws=1), 4, "meets 1, of 4 kept"),
        ("lsc", Group(), 0, ""),
        ("lsc", Pool(draws=2), 4, ""),
        ("par", Anchors(), 1, ""),
        ("ppo", NoOpponent(), 0, ""),
    ],
)
def test_a_response_meets_as_many_opponents_as_its_reward_needs(name, opponents, kept, message):
    method = dataclasses.replace(METHODS[name].method, opponents=opponents)
    with pytest.raises(UserError, match=message) if message else contextlib.nullcontext():
        method.check_opponents(4, kept)


@pytest.mark.parametrize("name", METHODS)
def test_a_row_of_the_table_is_complete(name):
    preset = METHODS[name]
    assert isinstance(preset, Preset) and isinstance(preset.method, Method)
    preset.method.check_group(preset.group_size)
    assert preset.title and preset.source.startswith(("arXiv ", "github.com/")) and preset.remark.endswith(".")
    assert preset.evidence in ("confirmed", "reconstructed")
    assert method_of({slot: section_of(getattr(preset.method, slot)) for slot in SLOTS}) == preset.method


@pytest.mark.parametrize("slot", SLOTS)
def test_every_kind_is_a_section_and_back(slot):
    for kind, cls in PIECES[slot].items():
        names = [field.name for field in dataclasses.fields(cls)]
        assert "kind" not in names and cls.kind == kind
        section = section_of(cls())
        assert list(section) == ["kind", *names] and piece_of(slot, section) == cls() == piece_of(slot, {"kind": kind})
        assert hash(cls()) == hash(piece_of(slot, section))


def test_a_section_gives_lists_and_whole_numbers_the_type_of_the_field():
    piece = piece_of("regulariser", {"kind": "reward_kl", "coefficient": 1, "steer": [6, 1000]})
    assert piece == RewardKL(coefficient=1.0, steer=(6.0, 1000.0)) and isinstance(piece.coefficient, float)


@pytest.mark.parametrize(
    ("slot", "section", "message"),
    [
        ("reward", {"kind": "fame"}, "reward.kind='fame', expected one of 'win_probability', 'score', 'centred'"),
        (
            "opponents",
            {},
            "opponents.kind=None, expected one of 'none', 'anchors', 'pool', 'peer', 'group', 'circular'",
        ),
        ("baseline", {"kind": "critic", "lam": 0.9}, "baseline.lam: 'critic' has no such key; known: gamma, lam_actor"),
        ("opponents", {"kind": "peer", "draws": 2}, "opponents.draws: 'peer' has no such key; known: orders"),
        ("surrogate", {"kind": "token_clip", "low": "0.2"}, "surrogate.low='0.2': expected float, such as 0.2"),
        ("opponents", {"kind": "pool", "draws": 1.5}, "opponents.draws=1.5: expected int, such as 1"),
        ("regulariser", {"kind": "mixture", "steer": (6.0, 9.0)}, r"regulariser.steer=\(6.0, 9.0\): with previous=1"),
        ("opponents", {"kind": "pool", "draws": True}, "opponents.draws=True: expected int"),
        ("opponents", {"kind": "anchors", "beaten": 0.5}, "opponents.beaten=0.5, expected above 0.5 and below 1, or 0"),
        ("baseline", {"kind": "critic", "whiten": 1}, "baseline.whiten=1: expected bool"),
        ("baseline", {"kind": "critic", "gamma": 1.5}, "baseline.gamma=1.5, expected at least 0 and at most 1"),
        (
            "surrogate",
            {"kind": "token_clip", "reduce": "mean"},
            "surrogate.reduce='mean', expected one of 'token",
        ),
        ("regulariser", {"kind": "reward_kl", "steer": (6.0,)}, r"regulariser.steer=\(6.0,\), expected \(\) or"),
        (
            "opponents",
            {"kind": "circular", "orders": "both"},
            "opponents.orders: 'circular' has no such key; known: it",
        ),
        ("opponents", {"kind": "peer", "orders": "two"}, "opponents.orders='two', expected one of 'both', 'one', 'ran"),
        (
            "regulariser",
            {"kind": "reward_kl", "coefficient": float("inf")},
            "regulariser.coefficient=inf: expected a fin",
        ),
        ("regulariser", {"kind": "reward_kl", "steer": (float("nan"), 10.0)}, "steer=.*: expected finite numbers"),
        ("reward", {"kind": "win_probability", "tie": 0.0}, "reward.tie=0.0: the map 'id' has no hard wins"),
        (
            "reward",
            {"kind": "win_probability", "map": "verdicts", "merge": "logit"},
            "reward.merge='logit': the map 've",
        ),
        ("reward", {"kind": "lsc", "quantile": 1.0}, "reward.quantile=1.0, expected above 0 and below 1"),
        ("reward", {"kind": "several", "judges": [1]}, r"reward.judges=\[1\]: expected names"),
        ("reward", {"kind": "several", "judges": ["a", "a"]}, "reward.judges=.*stands there twice"),
        (
            "reward",
            {"kind": "several", "judges": ["a"], "weights": [1, 2]},
            "reward.weights=.*one for each of 1 judges",
        ),
        (
            "reward",
            {"kind": "several", "judges": ["a"], "shapes": ["par", "par"]},
            "reward.shapes=.*one for all, or one",
        ),
        ("reward", {"kind": "several", "shapes": ["fame"]}, "reward.shapes=.*expected of 'score', 'centred', 'par'"),
        (
            "reward",
            {"kind": "several", "aggregate": "log_tame"},
            "reward.aggregate='log_tame' needs shapes that are ne",
        ),
        (
            "regulariser",
            {"kind": "reward_kl", "steer": ("6", "9")},
            r"regulariser.steer=\('6', '9'\): expected numbers",
        ),
    ],
)
def test_what_a_section_cannot_say_is_named_with_its_key(slot, section, message):
    with pytest.raises(UserError, match=message):
        piece_of(slot, section)


# A name of a method that files of older runs have for a kind of stage, and one that a way to combine scores has too.
# Words that are called as a method is, and other things: an old name of a metric, a combination, a ranking; and a stage
# of a recipe.
EXCEPTIONS = {
    ("reporting/inputs.py", "ppo"),
    ("judges/ensemble.py", "uwo"),
    ("methods/selection.py", "tournament"),
    ("recipes/direct.py", "dpo"),
}


def chosen(tree: ast.AST) -> set[ast.AST]:
    """Constants that choose a row of the table: the default of an argument, and what makes a section of a config."""
    found: list[ast.AST | None] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            found += [*node.defaults, *node.kw_defaults]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("online", "direct"):
            found += node.args[:1]
    return {node for node in found if isinstance(node, ast.Constant)}


def test_no_code_asks_for_the_name_of_a_method():
    """Whoever wants to know something of a method asks its pieces: outside the table no name of a row decides."""
    kinds = {cls.kind for classes in PIECES.values() for cls in classes.values()} | DIRECT_LOSSES.keys()
    found = set()
    for path in PACKAGE.rglob("*.py"):
        name, tree = path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text())
        if name in ("methods/table.py", "methods/direct_table.py", "recipes/rounds.py", "recipes/comparison.py"):
            continue
        words = {
            node.value
            for node in set(ast.walk(tree)) - chosen(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        words -= kinds if name.startswith("methods/") else set()  # a piece may have the name of a method
        found |= {(name, word) for word in words & (METHODS.keys() | DIRECT.keys())}
    assert found == EXCEPTIONS
