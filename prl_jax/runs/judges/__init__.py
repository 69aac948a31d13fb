"""Kinds of judges that a config can name in its section `judges`. `JUDGES` is the one table of them."""

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from prl_jax.config.rules import names_at
from prl_jax.runs.judges import annotator, density_ratio, ensemble, gold, model, python, remote, verifier
from prl_jax.runs.judges.kind import JudgeKind

# On a command line the first one that takes a word has it: any word can be the directory of a model.
_KINDS = (
    gold.KIND,
    annotator.KIND,
    python.KIND,
    remote.KIND,
    verifier.KIND,
    ensemble.KIND,
    density_ratio.KIND,
    model.KIND,
)
JUDGES: Mapping[str, JudgeKind] = {kind.name: kind for kind in _KINDS}


def behind(judges: ConfigDict, name: str) -> tuple[str, ...]:
    """The names behind the name of a judge, members of members included: of stages and of model directories, be they
    judges or the policies that one reads, and of `judges` that have no model behind them. A name that `judges` has not
    stands for itself."""
    section = judges.get(name, None)
    if section is None:
        return (name,)
    kind = JUDGES[section.kind]
    if kind.policies:
        return tuple(section[key] for key in kind.policies if section[key])
    if not kind.members:
        return (kind.model(section) or name,)
    return tuple(one for member in names_at(section, kind.members) for one in behind(judges, member))


def scores(judges: ConfigDict, name: str, model_scores: Callable[[str], bool]) -> bool:
    """Whether a judge scores single responses: by the model or the members behind it, where it has any.

    Args:
      judges: the config's section.
      name: of the judge.
      model_scores: whether the model of a stage, or of a directory, does.
    """
    section = judges.get(name, None)
    if section is None:
        return model_scores(name)
    kind = JUDGES[section.kind]
    named = names_at(section, kind.members) if kind.members else (kind.model(section),)
    return all(scores(judges, one, model_scores) for one in named) if any(named) else kind.scores(section)
