"""`selfevolve launch`: what a person types to run a resumable command on a cluster, and what the
cluster then runs. docs/launch.md says which to choose."""
