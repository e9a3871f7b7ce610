"""Traces: what real threads did, written down step by step, and whether the model allows it.

A trace is recorded by the live clock, or written by anybody else; the exploring clock is driven along it, with the very
same texts, on the same small world.
"""
