"""Ops with a plain-torch reference, fast implementations and one contract each.

``stackloom.kernels.discovery`` lists and loads the ops, ``stackloom.kernels.<op>`` is one of them.
``python -m stackloom.kernels.bench`` times them, ``python -m stackloom.kernels.compile_gate`` compiles them for a GPU
that need not be there.
"""
