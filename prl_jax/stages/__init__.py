"""Stages: what each trains or evaluates, from which inputs to which files. `KINDS` is the one table of them."""

from collections.abc import Mapping

from prl_jax.stages import anchors, bradley_terry, direct, evaluation, generative, online, pairs, sft
from prl_jax.stages.kind import Kind

# In the order in which a pipeline has them.
_KINDS = (
    sft.KIND,
    bradley_terry.KIND,
    generative.KIND,
    pairs.KIND,
    direct.KIND,
    anchors.KIND,
    online.KIND,
    evaluation.KIND,
)
KINDS: Mapping[str, Kind] = {kind.name: kind for kind in _KINDS}
