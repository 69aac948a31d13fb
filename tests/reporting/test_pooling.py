from prl_jax.reporting.pooling import FREE
from prl_jax.runs import workdir


def test_a_report_takes_the_same_keys_for_free_as_a_workdir():
    """What may change between the runs of one workdir may differ between the seeds of one experiment."""
    assert FREE == workdir._FREE
