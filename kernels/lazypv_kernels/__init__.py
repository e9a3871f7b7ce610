"""Kernels: arrays in, arrays out.

This room knows pages, states, marks and references; never a VM, a lock or a file. Every kernel is compiled on first
use, releases the interpreter lock, and has a slow NumPy twin under ``tests/`` that says what it means.
"""
