"""Record what quantizing libraries write: names, shapes and dtypes of a tiny model's tensors (tests/data/formats.json).

    python -m pip install torch transformers accelerate bitsandbytes compressed-tensors torchao hqq
    python tools/record_formats.py

Each library quantizes the same tiny models on the CPU, as a user's script would; only headers are kept.
"""

from __future__ import annotations

import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

OUT = Path(__file__).parents[1] / "tests" / "data" / "formats.json"
LLAMA = LlamaConfig(
    vocab_size=96, hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, dtype="bfloat16",
)  # fmt: skip
MIXTRAL = MixtralConfig(
    vocab_size=96, hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, num_local_experts=4, dtype="bfloat16",
)  # fmt: skip


def through_transformers(config: Any, quantization: Any) -> dict[str, Any]:
    """Save a model, load it quantized, save it again, and read the header."""
    with tempfile.TemporaryDirectory() as plain, tempfile.TemporaryDirectory() as out:
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(plain)
        model = AutoModelForCausalLM.from_pretrained(
            plain, quantization_config=quantization, dtype=torch.bfloat16, device_map="cpu"
        )
        model.save_pretrained(out)
        found = {}
        for file in sorted(Path(out).glob("*.safetensors")):
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118  it is no dict
                    part = opened.get_slice(name)
                    found[name] = [part.get_dtype(), part.get_shape()]
        return {"config": json.loads((Path(out) / "config.json").read_text()), "tensors": found}


def on_meta(config: Any, replace: Any, quantization: Any) -> dict[str, Any]:
    """Replace the modules only, where the kernels need a GPU."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    replace(model, quantization)
    made = {**config.to_dict(), "quantization_config": quantization.to_dict()}
    return {"config": made, "tensors": described(model.state_dict())}


def with_compressed_tensors(config: Any, quantization: dict[str, Any]) -> dict[str, Any]:
    """Apply a scheme and compress, as llm-compressor does."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    scheme = QuantizationConfig.model_validate(quantization)
    apply_quantization_config(model, scheme)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    made = {**config.to_dict(), "quantization_config": {**quantization, "quant_method": "compressed-tensors"}}
    return {"config": made, "tensors": described(model.state_dict())}


def with_hqq(config: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Replace the blocks' linear layers by hand: transformers 5.23 does not write HQQ."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    found = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            del found[f"{name}.weight"]
            made = HQQLinear(module, BaseQuantizeConfig(**settings), compute_dtype=torch.bfloat16, device="cpu")
            found |= {f"{name}.{key}": tensor for key, tensor in made.state_dict().items()}
    inner = {"weight_quant_params": settings}
    quantization = {"quant_method": "hqq", "quant_config": inner, "skip_modules": ["lm_head"]}
    return {"config": {**config.to_dict(), "quantization_config": quantization}, "tensors": described(found)}


def described(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Dtype and shape of tensors, as safetensors spells them."""
    names = {
        torch.bfloat16: "BF16", torch.float32: "F32", torch.float16: "F16", torch.uint8: "U8", torch.int8: "I8",
        torch.int32: "I32", torch.int64: "I64", torch.float8_e4m3fn: "F8_E4M3",
    }  # fmt: skip
    return {name: [names[t.dtype], list(t.shape)] for name, t in tensors.items()}


def weights(**settings: Any) -> dict[str, Any]:
    """A scheme for all linear layers but the head."""
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": settings}}, "ignore": ["lm_head"]}


def record() -> dict[str, Any]:
    """Every case by name."""
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup
    from transformers import BitsAndBytesConfig, FineGrainedFP8Config, TorchAoConfig
    from transformers.integrations.finegrained_fp8 import replace_with_fp8_linear

    half = {"bnb_4bit_compute_dtype": torch.bfloat16}
    cases: dict[str, Any] = {}

    def add(name: str, make: Any, *args: Any) -> None:
        try:
            cases[name] = make(*args)
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {str(error)[:300]}")

    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", **half)
    double = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, **half)
    add("bitsandbytes nf4", through_transformers, LLAMA, nf4)
    add("bitsandbytes nf4 double", through_transformers, LLAMA, double)
    add("bitsandbytes fp4 bf16 storage", through_transformers, LLAMA,
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_storage=torch.bfloat16, **half))  # fmt: skip
    add("bitsandbytes int8", through_transformers, LLAMA, BitsAndBytesConfig(load_in_8bit=True))
    add("bitsandbytes nf4 skipping", through_transformers, LLAMA, BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["q_proj", "lm_head"], **half))  # fmt: skip
    add("bitsandbytes nf4 mixtral", through_transformers, MIXTRAL, nf4)
    for bits, group, axis in ((4, 64, 1), (8, 64, 1), (2, 16, 1), (1, 64, 1), (3, 64, 1), (4, 64, 0)):
        add(f"hqq {bits} axis {axis}", with_hqq, LLAMA, {"nbits": bits, "group_size": group, "axis": axis})
    add("torchao int8", through_transformers, LLAMA, TorchAoConfig(Int8WeightOnlyConfig()))
    add("torchao float8", through_transformers, LLAMA, TorchAoConfig(Float8WeightOnlyConfig()))
    add("torchao int4 unpacked", through_transformers, LLAMA,
        TorchAoConfig(IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))))  # fmt: skip
    for name, config, form in (
        ("fp8 block", LLAMA, FineGrainedFP8Config()),
        ("fp8 tensor static", LLAMA, FineGrainedFP8Config(activation_scheme="static", weight_block_size=None)),
        ("fp8 skipping", LLAMA, FineGrainedFP8Config(modules_to_not_convert=["model.layers.1", "lm_head"])),
        ("fp8 block mixtral", MIXTRAL, FineGrainedFP8Config()),
    ):
        skipped = form.modules_to_not_convert or ["lm_head"]
        add(name, on_meta, config, lambda model, q, s=skipped: replace_with_fp8_linear(model, s, q), form)
    float8 = {"num_bits": 8, "type": "float"}
    for name, format_, scheme in (
        ("pack 4 group", "pack-quantized", {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}),
        ("pack 4 asymmetric", "pack-quantized",
         {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": False}),
        ("pack 8 channel", "pack-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}),
        ("pack 3 channel", "pack-quantized", {"num_bits": 3, "type": "int", "strategy": "channel"}),
        ("int8 channel", "int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}),
        ("int8 asymmetric", "int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": False}),
        ("float8 channel", "float-quantized", {**float8, "strategy": "channel"}),
        ("float8 tensor", "float-quantized", {**float8, "strategy": "tensor"}),
        ("float8 block", "float-quantized", {**float8, "strategy": "block", "block_structure": [64, 64]}),
        ("naive int8", "naive-quantized", {"num_bits": 8, "type": "int", "strategy": "tensor"}),
        ("nvfp4", "nvfp4-pack-quantized",
         {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}),
        ("mxfp4", "mxfp4-pack-quantized",
         {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}),
        ("mxfp8", "mxfp8-quantized", {**float8, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}),
    ):  # fmt: skip
        groups = weights(**scheme)
        groups["config_groups"]["group_0"]["format"] = format_
        add(f"compressed-tensors {name}", with_compressed_tensors, LLAMA, {**groups, "format": format_})
    static = weights(**float8, strategy="tensor")
    static["config_groups"]["group_0"]["input_activations"] = {**float8, "strategy": "tensor", "dynamic": False}
    add("compressed-tensors float8 static", with_compressed_tensors, LLAMA, {**static, "format": "float-quantized"})
    return cases


if __name__ == "__main__":
    libraries = ("bitsandbytes", "compressed-tensors", "hqq", "torch", "torchao")
    versions = {name: version(name) for name in libraries} | {"transformers": transformers.__version__}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(case, sort_keys=True)}" for name, case in record().items())
    OUT.write_text(f'{{"versions": {json.dumps(versions)},\n"cases": {{\n{lines}\n}}}}\n')
    print(OUT)
