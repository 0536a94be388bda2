"""`python -m pnet_jax.bench`: the same as `pnet bench`, for a machine where the package is not installed."""

import sys

from pnet_jax.bench.program import main

sys.exit(main())
