"""Recipes: one module a system; a recipe is a function that returns a frozen dataclass."""
