"""Recipes: a model, what is done with it, and every technique in the order in which it is applied."""
