"""TPU slices: from `v5e:8x8` to chips, hosts and the names that gcloud, GKE and SkyPilot know them by.

Source: cloud.google.com/tpu/docs (a page for each generation) and "Plan TPUs in GKE". A slice of up to
eight chips in two dimensions is one host; every other one has hosts of four chips.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from selfevolve_jax.errors import UserError

FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
SMALL_CUBES = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4))


@dataclass(frozen=True)
class Generation:
    """accelerator: gcloud's prefix of the slice's size; None where only GKE has it. unit: what that
    size counts a chip as, one or two TensorCores. gke: the node label. dims: of the torus. runtime: the
    image of a TPU VM."""

    accelerator: str | None
    unit: int
    gke: str
    dims: int
    most_chips: int
    runtime: str = ""


GENERATIONS = {
    "v4": Generation("v4", 2, "tpu-v4-podslice", 3, 3072, "tpu-ubuntu2204-base"),
    "v5e": Generation("v5litepod", 1, "tpu-v5-lite-podslice", 2, 256, "v2-alpha-tpuv5-lite"),
    "v5p": Generation("v5p", 2, "tpu-v5p-slice", 3, 6144, "v2-alpha-tpuv5"),
    "v6e": Generation("v6e", 1, "tpu-v6e-slice", 2, 256, "v2-alpha-tpuv6e"),
    "tpu7x": Generation(None, 2, "tpu7x", 3, 9216),
}


@dataclass(frozen=True)
class Slice:
    """name: the generation, a key of GENERATIONS. shape: chips along each axis of the torus."""

    name: str
    shape: tuple[int, ...]

    @property
    def generation(self) -> Generation:
        return GENERATIONS[self.name]

    @property
    def topology(self) -> str:
        return "x".join(map(str, self.shape))

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def chips_per_host(self) -> int:
        return self.chips if len(self.shape) == 2 and self.chips <= 8 else 4

    @property
    def hosts(self) -> int:
        return self.chips // self.chips_per_host

    @property
    def accelerator_type(self) -> str:
        """As in gcloud's --accelerator-type, which has no word for the shape: UserError where only GKE
        has the generation, or where the size alone would give another shape."""
        known = self.generation
        if known.accelerator is None:
            raise UserError(f"topology={self.name}:{self.topology}: only GKE has {self.name}.")
        usual = _most_cubic(known, self.chips)
        if self.shape != usual:
            raise UserError(
                f"topology={self.name}:{self.topology}: {self.chips} chips of {self.name} come as "
                f"{'x'.join(map(str, usual))} here. Fix: ask for that, or launch on GKE, which takes "
                "a shape."
            )
        return f"{known.accelerator}-{self.chips * known.unit}"


def read_slice(text: str) -> Slice:
    """`v5e:8x8`, as `selfevolve compile --topology` writes it; UserError says what there is."""
    name, _, shape = text.partition(":")
    if name not in GENERATIONS or not shape:
        raise UserError(
            f"topology={text!r}: write GENERATION:SHAPE, as v5e:8x8 or v5p:4x4x4. "
            f"Generations: {', '.join(GENERATIONS)}."
        )
    known = GENERATIONS[name]
    sizes = tuple(int(n) if n.isdecimal() else 0 for n in shape.split("x"))
    if not _exists(known, sizes):
        small = FLAT if known.dims == 2 else SMALL_CUBES
        larger = (
            ""
            if known.dims == 2
            else (
                f", and larger ones of multiples of 4 in rising order, up to {known.most_chips} chips"
            )
        )
        raise UserError(
            f"topology={text!r}: {name} has no such slice. Shapes: "
            + ", ".join("x".join(map(str, s)) for s in small)
            + f"{larger}."
        )
    return Slice(name, sizes)


def _exists(known: Generation, shape: tuple[int, ...]) -> bool:
    if known.dims == 2:
        return shape in FLAT
    large = (
        len(shape) == 3
        and all(n > 0 and n % 4 == 0 for n in shape)
        and shape == tuple(sorted(shape))
        and math.prod(shape) <= known.most_chips
    )
    return shape in SMALL_CUBES or large


def _most_cubic(known: Generation, chips: int) -> tuple[int, ...]:
    """The shape that a size alone gives: of those there are, the one with the shortest ways."""
    if known.dims == 2:
        return next(s for s in FLAT if math.prod(s) == chips)
    fours = [n for n in range(4, chips + 1, 4) if chips % n == 0]
    shapes = [*SMALL_CUBES, *itertools.combinations_with_replacement(fours, 3)]
    return min((s for s in shapes if math.prod(s) == chips), key=sum)
