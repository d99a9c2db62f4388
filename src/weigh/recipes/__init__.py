"""Recipes: a model, what is done with it, and every technique in the order in which it is applied."""

SOFTWARE = "eager PyTorch 2.13 and transformers 5.23"
"""What runs a model where no other program is named."""
