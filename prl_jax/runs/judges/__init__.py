"""Kinds of judges that a config can name in its section `judges`. `JUDGES` is the one table of them."""

from collections.abc import Mapping

from prl_jax.runs.judges import gold, model, python, remote
from prl_jax.runs.judges.kind import JudgeKind

# On a command line the first one that takes a word has it: any word can be the directory of a model.
JUDGES: Mapping[str, JudgeKind] = {kind.name: kind for kind in (gold.KIND, python.KIND, remote.KIND, model.KIND)}
