from dataclasses import dataclass


@dataclass(frozen=True)
class BenchmarkConfig:
    name: str = "polyglot"


def open_benchmark(config, seed, box): ...
