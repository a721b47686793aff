"""Program repair: DGM's benchmark and agent that need no language model (docs/dgm_repair.md)."""
