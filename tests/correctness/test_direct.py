"""Row 43 of the correctness list: what a direct loss counts of a pair, and what it takes for data."""

import jax
import jax.numpy as jnp
import numpy as np
from fakes import LetterTokenizer, make_decoder, user

from prl_jax.data.records import PreferenceRecord
from prl_jax.data.rows import encode_responses, stack_rows
from prl_jax.judges.likelihood import frozen_log_probs
from prl_jax.losses.direct import DirectTerms
from prl_jax.methods.direct import Sigmoid
from prl_jax.stages.direct import ReferencedPairs, other_response
from prl_jax.training.direct import direct_objective
from prl_jax.types import DirectPairs

TOKENIZER = LetterTokenizer()
TEXTS = ("cde", "f")  # of two lengths


def pair() -> DirectPairs:
    rows, _ = encode_responses(TOKENIZER, user("ab"), TEXTS, max_prompt=5, max_response=6)
    said = [np.float32(x) for x in ((-4.0, -2.0), 1.0, (0.0, 0.0), 0.0, 1.0)]
    return jax.tree.map(jnp.asarray, stack_rows([DirectPairs(*rows, *said)]))


def test_row_43_a_response_counts_without_its_prompt_and_with_its_end():
    given = pair()
    for rows, text in zip((given.response_1, given.response_2), TEXTS, strict=True):
        counted = np.asarray(rows.targets)[0][np.asarray(rows.mask)[0]]
        assert counted.tolist() == [*TOKENIZER.encode(text), TOKENIZER.eos_id]


def test_row_43_a_mean_is_over_the_tokens_of_its_own_response():
    model, given = make_decoder(0, layers=1), pair()
    logp = [float(frozen_log_probs(model, rows)[0]) for rows in (given.response_1, given.response_2)]
    terms = direct_objective(Sigmoid(beta=1.0), length="mean").terms(model, given)
    found = {name: float(total / count) for name, (total, count) in terms["direct"].aux.items()}
    np.testing.assert_allclose(found["chosen_ratio"], (logp[0] + 4.0) / 4, rtol=1e-5)
    np.testing.assert_allclose(found["rejected_ratio"], (logp[1] + 2.0) / 2, rtol=1e-5)


def test_row_43_what_is_known_of_a_pair_has_no_gradient():
    """Labels, targets, and factors of beta: what frozen models said."""

    def loss(label, scale):
        one = jnp.ones(3)
        terms = DirectTerms(one, -one, one, -one, label, one, one, scale, one, jnp.float32(0.0))
        return Sigmoid(beta=0.5)(terms).value

    for gradient in jax.grad(loss, (0, 1))(jnp.full(3, 0.7), jnp.full(3, 1.5)):
        np.testing.assert_array_equal(gradient, 0.0)


def test_row_43_each_pair_has_the_references_of_its_own_responses():
    records = [PreferenceRecord(str(i), user(f"p{i}"), f"c{i}", f"r{i}") for i in range(4)]
    reference = np.arange(8, dtype=np.float32).reshape(4, 2)
    plain, mismatched = (ReferencedPairs(records, reference, mismatched=other) for other in (False, True))
    for i in range(4):
        for pair in (plain[i], mismatched[i]):
            assert pair.record.id == str(i) and pair.reference.tolist() == [2 * i, 2 * i + 1]
            assert pair.responses[:2] == (f"c{i}", f"r{i}")
        assert plain[i].other is None and mismatched[i].responses[2] == f"c{(i + 1) % 4}"


def test_row_43_a_mismatched_response_answers_another_prompt():
    prompts = [user(text) for text in ("a", "a", "b", "c")]
    records = [PreferenceRecord(str(i), prompt, f"c{i}", "r") for i, prompt in enumerate(prompts)]
    assert [other_response(records, i) for i in range(4)] == ["c2", "c2", "c3", "c0"]
