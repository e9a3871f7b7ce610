"""Explanations: what each patch, defect, exception and invariant is, and where it lives in this code.

This room reads one text resource and, for line numbers, the source files themselves. It imports nothing of the model,
so `lazypv explain` needs neither numpy nor numba nor pyarrow.
"""

from lazypv.explain.catalogue import Entry, entries, lookup
from lazypv.explain.places import locate
from lazypv.explain.rendering import render

__all__ = ["Entry", "entries", "locate", "lookup", "render"]
