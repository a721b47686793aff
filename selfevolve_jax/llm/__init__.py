"""Language models behind endpoints. Knows of no system, and imports no jax."""
