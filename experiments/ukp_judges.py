"""Two judges from scratch on UKPConvArg1: which of two arguments convinces more?

    PRL_DATA_DIR=DIR prl run --config experiments/ukp_judges.py --workdir runs/ukp

A Bradley-Terry and a generative pairwise judge are trained on the vote shares of crowd workers (soft labels) with a BPE
tokenizer made from the training topics, and tested on topics that they have not seen.

Data: ukp_convarg1.{train,validation,test}.jsonl.gz in $PRL_DATA_DIR (Habernal and Gurevych, ACL 2016; CC-BY-4.0).
Hardware: 2 CPU cores, 3 GB of memory.
Time: 7 minutes of CPU, about 5 on an idle machine.
Result: with seed 0, accuracy .67 (Bradley-Terry) and .69 (generative) on the test topics, below the .71 of always
picking the longer argument; ECE against the vote shares .02 and .03. So small a model, from scratch on 20 topics,
learns the training arguments faster than what convinces. The generative judge names the same winner in both
orders for only .32 of the pairs. These numbers are of 2026-11-21: the rows of judges have changed since, so that a run
now gives others.
"""

from ml_collections import ConfigDict

from prl_jax.models import preset
from prl_jax.stages import config as c


def get_config() -> ConfigDict:
    """Two stages of training, one of evaluation."""
    pairs = lambda split, limit=0: c.source(  # noqa: E731
        kind="jsonl", path="$PRL_DATA_DIR/ukp_convarg1.{split}.jsonl.gz", split=split, limit=limit
    )
    shared = dict(
        data=pairs("train"),
        validation=pairs("validation", 256),
        soft_labels=True,
        save_every="20%",
        evaluate_every="20%",
    )
    stages = dict(
        bt=c.bradley_terry(
            duration="0.5 epochs",
            batch_size=32,
            max_prompt=40,
            max_response=152,
            optimizer=dict(learning_rate=3e-4, weight_decay=0.1),
            **shared,
        ),
        genrm=c.generative(
            duration="0.5 epochs",
            batch_size=16,
            max_length=352,
            shared_positions=True,
            optimizer=dict(learning_rate=3e-4, weight_decay=0.1),
            **shared,
        ),
        evaluation=c.evaluation(judges=("bt", "genrm"), pairs=pairs("test"), opponent=""),
    )
    return c.build(
        stages,
        title="UKPConvArg1: judges from scratch",
        model=preset("tiny"),
        tokenizer=dict(kind="bpe", vocab_size=2048, data=pairs("train")),
    )
