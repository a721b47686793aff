"""The models of a DGM run: by role, on a budget, logged, and within a sandbox's reach by one socket."""
