"""The benchmark suite: what each operation reaches of what this computer could do at most.

Absolute speeds say little on a shared computer. Each benchmark names a limit, and the two take turns; the result is the
ratio. What is measured stands in one module a subject, how it is timed only in :mod:`lazypv_bench.harness`.
"""
