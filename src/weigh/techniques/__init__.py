"""Techniques: what changes how a model runs, applied to it from outside. One file each."""
