"""Row 41 of the correctness list: what the exact judge of the built-in tasks rewards."""

import jax
import numpy as np
import pytest
from fakes import user

from prl_jax.data.gold import attributes, preference, utility
from prl_jax.data.gold.builder import gold_records
from prl_jax.data.gold.preferences import utility_of
from prl_jax.judges import GoldJudge
from prl_jax.methods import Anchors, WinProbability
from prl_jax.training.compare import rewards_of

KELVIN = "\u212a"  # its lower case is an ASCII "k"


def reward(prompt: str, response: str, opponent: str) -> float:
    """What pairwise PPO gives a response to a built-in task."""
    options = dict(group_size=1, anchors=[(opponent,)], keys=jax.random.split(jax.random.key(0), 1))
    judge = GoldJudge(preference)
    return float(rewards_of([judge], Anchors(), WinProbability(), [user(prompt)], [response], **options).reward[0])


@pytest.mark.parametrize(
    ("prompt", "right", "disguised"),
    [
        ("rev abk.", "kba", KELVIN + "ba"),
        ("rev abk!", "KBA", KELVIN + "BA"),
        ("3+9+4.", "12,16", "\uff11\uff12,16"),
        ("sort dbca!", "ABCD", "\uff21BCD"),
    ],
    ids=["kelvin", "kelvin_capital", "fullwidth_digits", "fullwidth_letter"],
)
def test_row_41_unicode_does_not_pass_for_ascii(prompt, right, disguised):
    assert utility(prompt, right) == 1.0
    assert attributes(prompt, disguised).correctness < 1.0
    assert reward(prompt, disguised, right) < 0.3


def test_row_41_letters_of_another_alphabet_are_in_no_case_that_is_asked_for():
    assert attributes("sort dbca!", "ABC\u00c9").form == 0.75
    assert attributes("sort dbca.", "abc\u00e9").form == 0.75


def test_row_41_filler_costs_without_bound():
    """Sixty characters cost more than a response is worth, and each further one costs as much as the one before."""
    prompt, right = "sort dbca!", "ABCD"
    costs = [1.0 - utility(prompt, right + "~" * count) for count in (0, 1, 2, 60, 120, 180)]
    assert costs == sorted(costs) and costs[3] > 1.0
    np.testing.assert_allclose(costs[5] - costs[4], costs[4] - costs[3], rtol=1e-9)
    assert costs[4] - costs[3] > 1.0
    assert utility(prompt, "x" * 200) < -1.0  # what is too long without being filler
    assert reward(prompt, right + "~" * 60, "zzzz") < 0.5 < reward(prompt, right + "~", "zzzz")


def test_row_41_the_bound_is_beyond_what_the_data_have(tmp_path):
    """So that the built-in pairs are what they were."""
    rows = dict(train_rows=400, validation_rows=1, test_rows=1, difficulties=(0, 1, 2, 3))
    for record in gold_records("preference", "train", data_dir=tmp_path, **rows):
        for text in (record.chosen, record.rejected):
            assert utility(record.prompt[0].content, text) == utility_of(attributes(record.prompt[0].content, text))
