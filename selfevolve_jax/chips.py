"""Accelerators by name: memory, and the peak rates that a roofline is drawn with."""

from __future__ import annotations

from dataclasses import dataclass

from selfevolve_jax.errors import UserError

GIB = 1 << 30
# Of an H100 or H200 server: a 400 Gb/s network card for each GPU. It bounds meshes of several nodes.
NODE, NETWORK = 8, 50e9


@dataclass(frozen=True)
class Chip:
    """One JAX device. hbm: bytes that a program may use. flops: bfloat16, dense, a second. bandwidth:
    of the HBM, bytes a second. links: bytes a second that leave the chip when all its links are busy
    (half of what a data sheet calls bidirectional); a collective over fewer axes of the torus has less,
    so a time is a bound."""

    name: str
    hbm: int
    flops: float
    bandwidth: float
    links: float
    source: str

    @property
    def is_tpu(self) -> bool:
        return self.name.startswith(("v", "tpu"))


_TPU = "docs.cloud.google.com/tpu/docs/"
_NVIDIA = "NVIDIA data sheet, dense bfloat16 without sparsity, NVLink one way"
# TPUs' hbm is what the compiler allows a program (its own message names it), a little less than the
# data sheet's. v4 and v5p are a 3D torus, v5e and v6e a 2D one.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", int(30.75 * GIB), 275e12, 1228e9, 300e9, _TPU + "v4"),
        Chip("v5e", int(15.75 * GIB), 197e12, 819e9, 200e9, _TPU + "v5e"),
        Chip("v5p", int(95.74 * GIB), 459e12, 2765e9, 600e9, _TPU + "v5p"),
        Chip("v6e", int(31.25 * GIB), 918e12, 1640e9, 400e9, _TPU + "v6e"),
        Chip("a100", 80 * 10**9, 312e12, 2039e9, 300e9, _NVIDIA + " (A100 80 GB SXM)"),
        Chip("h100", 80 * 10**9, 989e12, 3350e9, 450e9, _NVIDIA + " (H100 SXM)"),
        Chip("h200", 141 * 10**9, 989e12, 4800e9, 450e9, _NVIDIA + " (H200 SXM)"),
        Chip("b200", 180 * 10**9, 2250e12, 8000e9, 900e9, _NVIDIA + " (B200 of a DGX)"),
    )
}


def parse_topology(topology: str) -> tuple[Chip, tuple[int, ...]]:
    """(the chip, the sides of its torus, or of GPUs their number): "v5e:16x16", "v5p:4x4x4", "h100:8".
    UserError for what it cannot be read as."""
    name, colon, sides = topology.partition(":")
    example = "v5e:16x16, v5p:4x4x4, v6e:8x8 or h100:8"
    if name not in CHIPS:
        raise UserError(
            f"--topology {topology}: {name!r} is unknown; choose one of {', '.join(CHIPS)}, with its "
            f"shape, such as {example}."
        )
    chip = CHIPS[name]
    parts = sides.split("x")
    dimensions = (3 if name in ("v4", "v5p") else 2) if chip.is_tpu else 1
    whole = all(part.isdecimal() and int(part) > 0 for part in parts)
    if not colon or not whole or len(parts) != dimensions:
        what = f"{dimensions} sides" if chip.is_tpu else "a number of GPUs"
        raise UserError(
            f"--topology {topology}: {name} needs {what} after a colon, as in {example}."
        )
    return chip, tuple(int(part) for part in parts)


def link_rate(chip: Chip, devices: int) -> float:
    """Bytes a second that leave a chip: GPUs of more than one node share what their network gives."""
    return NETWORK if not chip.is_tpu and devices > NODE else chip.links
