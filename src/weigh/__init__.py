"""How much memory a language model needs, exactly and without a GPU."""

__version__ = "0.1.0"
