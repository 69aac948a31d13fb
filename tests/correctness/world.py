"""What models say of a rollout, from rows without padding between and in NumPy: another way than the package's.

The tests of the correctness list run the package's own `prepare`, `gradients`, `make_updates` and the like, and hold
what these give against the functions here.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from fakes import LetterTokenizer, UtilityJudge, decoder_config, fill, one_device, token_rows, user, with_pieces

from prl_jax.artifacts.cards import ModelCard
from prl_jax.data.records import PromptRecord
from prl_jax.methods import Critic, Method, NoOpponent, RewardKL, Score, TokenClip
from prl_jax.models import Decoder, ScalarModel
from prl_jax.runs.context import StageContext
from prl_jax.runs.workdir import Workdir
from prl_jax.sampling import SamplingConfig
from prl_jax.stages import config as stage_config
from prl_jax.stages.online_samples import Setup
from prl_jax.stages.online_section import method_in, schedule_in
from prl_jax.training.schedule import Schedule
from prl_jax.training.state import PolicyState, TrainState
from prl_jax.types import Rollout

PROMPTS, LENGTHS, ROOM = [3, 1, 4, 2], [2, 5, 1, 5], 5
TRUNCATED = np.array([False, True, False, False])  # the last row has its stop token in the last slot
VALID = np.arange(ROOM) < np.array(LENGTHS)[:, None]
SCORE = np.array([0.73, -0.2, 1.5, 0.01], np.float32)
BETA, GAMMA, LAM_ACTOR, LAM_CRITIC, TEMPERATURE, PENALTY, CLIP_NORM = 0.3, 0.9, 0.8, 0.95, 0.7, 0.5, 0.05


class Setting(NamedTuple):
    """What decides an update: the pieces of a method, and how a batch is used."""

    method: Method
    schedule: Schedule

    def but(self, *, schedule: dict[str, Any] | None = None, **slots: Any) -> "Setting":
        """The same with other pieces, see `fakes.with_pieces`, and other fields of the schedule."""
        return Setting(with_pieces(self.method, **slots), dataclasses.replace(self.schedule, **schedule or {}))


PLAIN = Setting(
    Method(
        NoOpponent(),
        Score(),
        Critic(gamma=GAMMA, lam_actor=LAM_ACTOR, lam_critic=LAM_CRITIC, whiten=False),
        TokenClip(),
        RewardKL(coefficient=BETA),
    ),
    Schedule(temperature=TEMPERATURE, missing_eos_penalty=PENALTY),
)


def make_critic(seed: int, **overrides: Any) -> ScalarModel:
    """A critic of one layer with random parameters; what a reward model lacks is the bias."""
    config = decoder_config(layers=1, **overrides)
    return fill(jax.eval_shape(lambda: ScalarModel(Decoder(config, key=jax.random.key(0)), bias=0.0)), seed)


class Truth(NamedTuple):
    """`[4, ROOM]` log-probs under policy and reference at `TEMPERATURE` and values, 0 off the mask; `[4]` values after
    the last token."""

    logp: np.ndarray
    logp_ref: np.ndarray
    values: np.ndarray
    after: np.ndarray


def log_softmax(logits: Any) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def whole_rows(rollout: Rollout) -> tuple[Any, list[int]]:
    """Prompt and response of each row behind each other, padded on the right; and the lengths of the prompts."""
    prompts = [np.asarray(x)[np.asarray(m)] for x, m in zip(rollout.prompt, rollout.prompt_mask, strict=True)]
    responses = [np.asarray(x)[np.asarray(m)] for x, m in zip(rollout.response, rollout.mask, strict=True)]
    width = rollout.prompt.shape[1] + rollout.response.shape[1]
    rows = [[*a, *b] for a, b in zip(prompts, responses, strict=True)]
    return token_rows(rows, width, pad_id=7), [len(a) for a in prompts]


_logits = jax.jit(lambda model, rows: model.logits(model.hidden(*rows)))
_values = jax.jit(lambda critic, rows: critic.values(rows))


def response_laws(model: Decoder, rollout: Rollout, temperature: float) -> np.ndarray:
    """`[B, T, V]` log-probabilities of the tempered distribution before each response token, 0 off the mask."""
    rows, starts = whole_rows(rollout)
    laws = log_softmax(np.asarray(_logits(model, rows)) / temperature)
    mask = np.asarray(rollout.mask)
    out = np.zeros((*mask.shape, laws.shape[-1]))
    for i, t in zip(*np.nonzero(mask), strict=True):
        out[i, t] = laws[i, starts[i] + t - 1]
    return out


def chosen(laws: np.ndarray, rollout: Rollout) -> np.ndarray:
    return np.take_along_axis(laws, np.asarray(rollout.response)[..., None], axis=-1)[..., 0]


def response_values(critic: ScalarModel, rollout: Rollout) -> tuple[np.ndarray, np.ndarray]:
    """`[B, T]` values before each response token, 0 off the mask; and `[B]` values at the last one."""
    rows, starts = whole_rows(rollout)
    values, mask = np.asarray(_values(critic, rows)), np.asarray(rollout.mask)
    out = np.zeros(mask.shape)
    for i, t in zip(*np.nonzero(mask), strict=True):
        out[i, t] = values[i, starts[i] + t - 1]
    return out, values[np.arange(len(mask)), np.array(starts) + mask.sum(1) - 1]


def plain_gae(truth: Truth, rewards: np.ndarray, end: np.ndarray, lam: float) -> np.ndarray:
    """`[4, ROOM]` advantages, backwards, row by row; `end` is worth what follows the last token."""
    out = np.zeros(VALID.shape)
    for i, n in enumerate(LENGTHS):
        following, later = end[i], 0.0
        for t in reversed(range(n)):
            later = rewards[i, t] + GAMMA * following - truth.values[i, t] + GAMMA * lam * later
            out[i, t], following = later, truth.values[i, t]
    return out


def token_rewards(score: np.ndarray, kl: np.ndarray) -> np.ndarray:
    """`[4, ROOM]`: `-kl`, and the score on the last response token."""
    out = np.where(VALID, -kl, 0.0)
    out[np.arange(4), np.array(LENGTHS) - 1] += score
    return out


def make_setup(reference: Decoder, *, name: str = "policy", seed: int = 0, bias: float = 0.0, **section: Any) -> Setup:
    """What a step of a policy that learns needs: two samples for each of four equal prompts, judged against each other.

    The judge likes long responses, and by `bias` the one it is shown first.
    """
    tokenizer = LetterTokenizer(pad_is_eos=True)
    values = dict(opponents=dict(kind="peer"), group_size=2, prompts_per_step=4, temperature=TEMPERATURE) | section
    stages = {"sft": stage_config.sft(), name: stage_config.online("pairwise_rl", **values)}
    config = stage_config.build(stages, seed=seed)
    judge = UtilityJudge(lambda prompt, response: 0.3 * len(response), bias)
    return Setup(
        context=StageContext(name, config, Workdir(Path("nowhere"), config), one_device()),
        method=method_in(config[name]),
        schedule=schedule_in(config[name]),
        card=ModelCard("policy", {}, 4, 8),
        tokenizer=tokenizer,
        sampling=SamplingConfig(8, (tokenizer.eos_id,), tokenizer.pad_id, temperature=TEMPERATURE),
        judges=[judge],
        win_rate_judge=judge,
        records=[PromptRecord(str(i), user("a")) for i in range(4)],
        anchors=[()] * 4,
        reference=reference,
    )


def policy_state(model: Decoder) -> PolicyState:
    """The state of a stage whose policy is this model, as far as sampling looks at it."""
    return PolicyState(TrainState(model, None, jnp.int32(0)), None, jnp.float32(0.0))
