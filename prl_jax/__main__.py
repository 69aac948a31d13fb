"""`python -m prl_jax`: the same as the console script `prl`."""

from prl_jax.cli import program

if __name__ == "__main__":
    program()
