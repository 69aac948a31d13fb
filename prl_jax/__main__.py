"""`python -m prl_jax`: the same as the console script `prl`."""

import sys

from prl_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
