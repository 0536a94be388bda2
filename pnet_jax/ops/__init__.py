"""Kernels. One folder an op: `reference.py` is the definition, `chunked.py` what is used, `api.py` the face."""
