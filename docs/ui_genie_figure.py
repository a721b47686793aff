"""Draws docs/ui_genie.svg: agent success and reward-model F1 by round, from runs of several seeds.

uv run python docs/ui_genie_figure.py runs/ui-genie-0 runs/ui-genie-1 ... -o docs/ui_genie.svg
"""

import argparse
from pathlib import Path

from selfevolve_jax import run_dir
from selfevolve_jax.report.rounds import rounds_figure


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    rounds = [
        {"arm": arm, "seed": seed, "round": number, **figures}
        for seed, run in enumerate(options.runs)
        for arm, told in run_dir.read_summary(run)["arms"].items()
        for number, figures in enumerate(told["rounds"])
    ]
    options.out.write_text(rounds_figure(rounds), encoding="utf-8")


if __name__ == "__main__":
    main()
