"""`python -m pnet_jax` runs `pnet`, for launchers that expect a module: `mpiexec -n 8 python -m mpi4py.futures -m pnet_jax construct …`."""

import sys

from pnet_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
