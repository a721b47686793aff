"""Draws docs/quickstart.svg: held-out accuracy by step, from run directories of several seeds.

uv run python docs/figure.py runs/quickstart-0 runs/quickstart-1 ... -o docs/quickstart.svg
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from selfevolve_jax.metrics import read_metrics

ARMS = {
    "ground_truth": ("ground truth", "#0072b2"),
    "srt": ("SRT: own majority vote", "#d55e00"),
    "random": ("random rewards (control)", "#777777"),
}


def curve(run: Path, arm: str) -> tuple[np.ndarray, np.ndarray]:
    lines = [m for m in read_metrics(run / "arms" / arm / "metrics.jsonl") if "eval/mean" in m]
    return np.array([m["step"] for m in lines]), np.array([m["eval/mean"] for m in lines])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    matplotlib.rcParams["svg.hashsalt"] = "selfevolve"
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for arm, (label, colour) in ARMS.items():
        steps, values = zip(*(curve(run, arm) for run in options.runs), strict=True)
        band = np.stack(values)
        axes.fill_between(steps[0], band.min(0), band.max(0), color=colour, alpha=0.2, lw=0)
        axes.plot(steps[0], band.mean(0), color=colour, label=label, lw=2)
    axes.set(xlabel="step", ylabel="held-out mean accuracy", ylim=(0, 1), xlim=(0, None))
    axes.set_title(f"srt quickstart, {len(options.runs)} seeds: mean and range", loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center right")
    FigureCanvasSVG(figure).print_svg(options.out, metadata={"Date": None})


if __name__ == "__main__":
    main()
