"""Errors that say that memory is out, as the backends of XLA put it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prl_jax.errors import UserError
from prl_jax.memory import shortage

DEVICE, HOST = "device memory", "this machine's memory"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("RESOURCE_EXHAUSTED: Out of memory allocating 40000000000000 bytes.", "asked for 3.73e+04 GiB"),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.", "asked for 16 GiB"),
        ("RESOURCE_EXHAUSTED: Failed to allocate request for 2.00GiB (2147483648B) on device ordinal 0",
         "asked for 2 GiB"),
        ("RESOURCE_EXHAUSTED: Error allocating device buffer: Attempting to allocate 4.00G. That was not possible. "
         "There are 2.55G free.; (0x0x0_HBM0)", "asked for 4.00G"),
        ("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 24.98G of "
         "15.48G hbm. Exceeded hbm capacity by 9.50G.", "needs 24.98G of 15.48G"),
        ("INTERNAL: CUDA_ERROR_OUT_OF_MEMORY: out of memory", ""),
        ("INTERNAL: YNNPACK operation failed: error", ""),
    ],
)  # fmt: skip
def test_what_backends_say(text, wanted):
    found = shortage(jax.errors.JaxRuntimeError(text))
    assert found is not None and (found.memory, found.wanted) == (DEVICE, wanted)


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("INTERNAL: something else"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: too many open streams"),
        RuntimeError("Out of memory allocating 3 bytes"),
        UserError("out of memory"),
        None,
    ],
)
def test_other_errors(error):
    assert shortage(error) is None


def test_real_ones():
    with pytest.raises(jax.errors.JaxRuntimeError) as device:
        jnp.zeros((10**6, 10**7)).block_until_ready()
    assert shortage(device.value)[1:] == (DEVICE, "asked for 3.73e+04 GiB")
    with pytest.raises(MemoryError) as host:
        np.zeros((10**7, 10**7))
    assert shortage(host.value)[1:] == (HOST, "asked for 728. TiB") or shortage(host.value).wanted
    try:
        raise UserError("the checkpoint cannot be read") from host.value
    except UserError as error:
        assert shortage(error).error is host.value
