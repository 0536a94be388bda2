"""`python -m pnet_jax.bench`: equivalent to `pnet bench`, for machines on which the package is not installed."""

import sys

from pnet_jax.bench.program import main

sys.exit(main())
