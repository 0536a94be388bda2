"""Kernels, one package each: `reference.py` has the definition, `chunked.py` the default implementation, `api.py` the public functions."""
