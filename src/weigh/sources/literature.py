"""The dicts that books and articles build their GPTs and Llamas from, as configs.

    {"vocab_size": 50257, "context_length": 1024, "emb_dim": 768, "n_heads": 12, "n_layers": 12,
     "drop_rate": 0.1, "qkv_bias": False}

They are Python rather than JSON, and may hold `torch.bfloat16`: the text is parsed and never executed. Such a dict says
less than a `config.json`, because the code around it says the rest; that rest is stated here. `hidden_dim` (the width
of a gated feed-forward layer) makes it a Llama, anything else is a GPT-2 with an output layer of its own.
"""

from __future__ import annotations

from typing import Any

from weigh.errors import InputError

GPT = {
    "vocab_size": "vocab_size",
    "context_length": "n_positions",
    "emb_dim": "n_embd",
    "n_heads": "n_head",
    "n_layers": "n_layer",
}
LLAMA = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "emb_dim": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_layers": "num_hidden_layers",
    "hidden_dim": "intermediate_size",
}
OPTIONAL = ("drop_rate", "qkv_bias", "n_kv_groups", "head_dim", "dtype", "rope_base", "rope_freq")
LONGEST = 1 << 16
"""Characters of a Python literal; printed dicts have a few hundred."""


def translate(config: dict[str, Any], where: str = "config") -> dict[str, Any]:
    """A literature dict as a config; everything else as it is.

    >>> translate({"vocab_size": 9, "context_length": 4, "emb_dim": 8, "n_heads": 2, "n_layers": 1, "qkv_bias": False})
    {'model_type': 'gpt2', 'vocab_size': 9, 'n_positions': 4, 'n_embd': 8, 'n_head': 2, 'n_layer': 1, \
'tie_word_embeddings': False, 'qkv_bias': False}

    Raises:
        InputError: a size is missing, or there is a key that no such dict has.
    """
    if "model_type" in config or "emb_dim" not in config:
        return config
    llama = "hidden_dim" in config
    names = LLAMA if llama else GPT
    for key in names:
        if key not in config:
            raise InputError("is missing", where=f"{where}: {key}", hint=f"Add {key!r}, a positive whole number.")
    unknown = [key for key in config if key not in names and key not in OPTIONAL]
    if unknown:
        known = ", ".join((*names, *OPTIONAL))
        raise InputError("is not a key of such a dict", where=f"{where}: {unknown[0]}", hint=f"Known: {known}.")
    found: dict[str, Any] = {"model_type": "llama" if llama else "gpt2"}
    found.update((theirs, config[ours]) for ours, theirs in names.items())
    found["tie_word_embeddings"] = False
    if llama:
        found.update(_renamed(config, {"n_kv_groups": "num_key_value_heads", "head_dim": "head_dim"}))
    else:
        found.update(_renamed(config, {"qkv_bias": "qkv_bias"}))
        if "drop_rate" in config:
            found.update(dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config["drop_rate"]))
    found.update(_renamed(config, {"dtype": "dtype"}))
    return found


def _renamed(config: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {theirs: config[ours] for ours, theirs in names.items() if ours in config}


def parse_literal(text: str) -> Any:
    r"""The value of a Python literal, or of a literal that is given a name (`CONFIG = {...}`); None where it is none.

    Dtypes may be written as PyTorch's (`torch.bfloat16`) and come back as text.

    >>> parse_literal("GPT = {'emb_dim': 768,  # the width\n 'qkv_bias': False, 'dtype': torch.bfloat16}")
    {'emb_dim': 768, 'qkv_bias': False, 'dtype': 'torch.bfloat16'}
    """
    import ast

    if len(text) > LONGEST:
        return None
    try:
        body = ast.parse(text.strip()).body
        if len(body) != 1 or not isinstance(body[0], ast.Assign | ast.AnnAssign | ast.Expr) or body[0].value is None:
            return None
        return ast.literal_eval(_dtypes_as_text(body[0].value))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _dtypes_as_text(tree: Any) -> Any:
    """The same tree, with the text "torch.NAME" for every `torch.NAME`."""
    import ast

    class DtypesAsText(ast.NodeTransformer):
        def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
            if isinstance(node.value, ast.Name) and node.value.id == "torch":
                return ast.copy_location(ast.Constant(f"torch.{node.attr}"), node)
            return node

    return DtypesAsText().visit(tree)
