"""Work that takes as long as a list says, and writes down what was done with it."""

from __future__ import annotations

from lazypv_bench.harness import Benchmark, Work


class Clock:
    """Stands for the time module: seconds pass only where somebody says so."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class Fake:
    """One work; its first run is the warm-up."""

    def __init__(self, name, seconds, log, size=1000):
        self.name, self.log, self.size = name, log, size
        self.seconds = iter(seconds)

    def work(self, **more):
        return Work(
            run=self.run,
            bytes=self.size,
            prepare=lambda: self.log.append(f"prepare {self.name}"),
            finish=lambda: self.log.append(f"finish {self.name}"),
            **more,
        )

    def run(self):
        self.log.append(self.name)
        return next(self.seconds)


def limit_of(fake):
    """A limit or rival that is `fake`, under its name."""

    def limit(_rig, _subject):
        return fake.work()

    limit.__name__ = fake.name
    return limit


def fake_benchmark(seconds, *, log=None, sizes=None, value=None, **declared):
    """Subject, limit and rivals with these seconds, named a, b, c ...; the first second of each is for its warm-up."""
    log = [] if log is None else log
    sizes = sizes or [1000] * len(seconds)
    names = [chr(ord("a") + at) for at in range(len(seconds))]
    fakes = [Fake(name, *rest) for name, *rest in zip(names, seconds, [log] * len(seconds), sizes, strict=True)]
    limit, *rivals = [limit_of(fake) for fake in fakes[1:]]
    return Benchmark("fake", lambda _rig: fakes[0].work(value=value), limit, tuple(rivals), **declared)


def silent(_phase):
    """Progress that nobody looks at."""
