"""Architectures as pure functions of (params, inputs, config). Logical axes only; no mesh here."""
