"""A mutation test of what looks for violations: ``python -m tests.mutation``.

Host and Ultravisor code is changed in one place at a time, and the explorer and small runs have to notice. Cosmic Ray
makes the changes; what may be changed, which of them are drawn, and which checks look at them is said here.
"""
