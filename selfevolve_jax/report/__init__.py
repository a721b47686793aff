"""Reads run directories and writes one self-contained HTML page about them."""

from selfevolve_jax.report.html import write_report

__all__ = ["write_report"]
