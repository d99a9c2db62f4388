"""How much memory a language model needs, exactly and without a GPU.

>>> import weigh
>>> weigh.params("gpt2").total
124439808
"""

__version__ = "0.1.0"

__all__ = ["compare", "dtypes", "generate", "job", "kv", "model", "params", "serve", "serve_grid", "train"]

_FUNCTIONS = ("compare", "generate", "job", "kv", "model", "params", "serve", "serve_grid", "train")


def __getattr__(name: str) -> object:
    """The functions of `weigh.api`, loaded when one is asked for: `import weigh` costs nothing."""
    from importlib import import_module

    if name in _FUNCTIONS:
        return getattr(import_module("weigh.api"), name)
    if name == "dtypes":
        return import_module("weigh.dtypes")
    if name == "watch":  # not in __all__: it loads PyTorch
        return import_module("weigh.hooks").watch
    raise AttributeError(f"module 'weigh' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
