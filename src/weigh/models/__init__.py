"""Families: one file describes one model architecture in ghost modules.

`build(config, dtype)` makes the model of a `config.json`; a `model_type` that no file describes is an error that
names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from weigh.dtypes import DType
from weigh.errors import InputError, NotModelledError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from weigh.models.common import CausalModel

FAMILIES = {
    "afmoe": "weigh.models.afmoe",
    "albert": "weigh.models.albert",
    "apertus": "weigh.models.apertus",
    "arcee": "weigh.models.arcee",
    "aria_text": "weigh.models.aria_text",
    "audioflamingo3": "weigh.models.qwen2_audio",
    "axk1": "weigh.models.axk1",
    "baichuan": "weigh.models.baichuan",
    "bailing_hybrid": "weigh.models.bailing_hybrid",
    "bamba": "weigh.models.bamba",
    "bart": "weigh.models.bart",
    "bert": "weigh.models.bert",
    "bert-generation": "weigh.models.bert_generation",
    "big_bird": "weigh.models.big_bird",
    "biogpt": "weigh.models.xglm",
    "bitnet": "weigh.models.bitnet",
    "blenderbot": "weigh.models.blenderbot",
    "blenderbot-small": "weigh.models.blenderbot_small",
    "bloom": "weigh.models.bloom",
    "camembert": "weigh.models.roberta",
    "chatglm": "weigh.models.chatglm",
    "codegen": "weigh.models.codegen",
    "cohere": "weigh.models.cohere",
    "cohere2": "weigh.models.cohere2",
    "cohere2_moe": "weigh.models.cohere2_moe",
    "cohere2_vision": "weigh.models.cohere2_vision",
    "convbert": "weigh.models.convbert",
    "cpmant": "weigh.models.cpmant",
    "ctrl": "weigh.models.ctrl",
    "cwm": "weigh.models.cwm",
    "data2vec-text": "weigh.models.roberta",
    "dbrx": "weigh.models.dbrx",
    "deberta": "weigh.models.deberta",
    "deberta-v2": "weigh.models.deberta_v2",
    "deepseek_v2": "weigh.models.deepseek_v2",
    "deepseek_v3": "weigh.models.deepseek_v3",
    "deepseek_v32": "weigh.models.deepseek_v32",
    "deepseek_vl": "weigh.models.deepseek_vl",
    "diffllama": "weigh.models.counted_llama",
    "distilbert": "weigh.models.distilbert",
    "doge": "weigh.models.counted_llama",
    "dots1": "weigh.models.dots1",
    "electra": "weigh.models.electra",
    "emu3_text_model": "weigh.models.emu3_text_model",
    "ernie": "weigh.models.ernie",
    "ernie4_5": "weigh.models.ernie4_5",
    "ernie4_5_moe": "weigh.models.ernie4_5_moe",
    "exaone4": "weigh.models.exaone4",
    "exaone4_5": "weigh.models.exaone4_5",
    "exaone_moe": "weigh.models.exaone_moe",
    "falcon": "weigh.models.falcon",
    "falcon_h1": "weigh.models.falcon_h1",
    "falcon_mamba": "weigh.models.falcon_mamba",
    "flex_olmo": "weigh.models.flex_olmo",
    "flint": "weigh.models.flint",
    "fnet": "weigh.models.fnet",
    "gemma": "weigh.models.gemma",
    "gemma2": "weigh.models.gemma2",
    "gemma3": "weigh.models.gemma3",
    "gemma3_text": "weigh.models.gemma3_text",
    "gemma3n_text": "weigh.models.gemma3n_text",
    "gemma4": "weigh.models.gemma4",
    "gemma4_text": "weigh.models.gemma4_text",
    "gemma4_unified_text": "weigh.models.gemma4_text",
    "glm": "weigh.models.glm",
    "glm4": "weigh.models.glm4",
    "glm46v": "weigh.models.glm4v",
    "glm4_moe": "weigh.models.glm4_moe",
    "glm4_moe_lite": "weigh.models.glm4_moe_lite",
    "glm4v": "weigh.models.glm4v",
    "glm4v_moe": "weigh.models.glm4v",
    "glm_moe_dsa": "weigh.models.glm_moe_dsa",
    "gpt-sw3": "weigh.models.gpt2",
    "gpt2": "weigh.models.gpt2",
    "gpt_bigcode": "weigh.models.gpt_bigcode",
    "gpt_neo": "weigh.models.gpt_neo",
    "gpt_neox": "weigh.models.gpt_neox",
    "gpt_neox_japanese": "weigh.models.gpt_neox_japanese",
    "gpt_neox_reward_model": "weigh.models.gpt_neox_reward_model",
    "gpt_oss": "weigh.models.gpt_oss",
    "gptj": "weigh.models.gptj",
    "granite": "weigh.models.granite",
    "granite_swa": "weigh.models.counted_llama",
    "granitemoe": "weigh.models.granitemoe",
    "granitemoe_swa": "weigh.models.granitemoe_swa",
    "granitemoehybrid": "weigh.models.granitemoehybrid",
    "granitemoeshared": "weigh.models.granitemoeshared",
    "helium": "weigh.models.helium",
    "hunyuan_v1_dense": "weigh.models.hunyuan_v1_dense",
    "hunyuan_v1_moe": "weigh.models.hunyuan_v1_moe",
    "hy_v3": "weigh.models.hy_v3",
    "hyperclovax": "weigh.models.hyperclovax",
    "ibert": "weigh.models.ibert",
    "idefics2": "weigh.models.idefics",
    "idefics3": "weigh.models.idefics",
    "internlm3": "weigh.models.internlm3",
    "internvl": "weigh.models.internvl",
    "jais2": "weigh.models.jais2",
    "jamba": "weigh.models.jamba",
    "jetmoe": "weigh.models.jetmoe",
    "kimi_k2": "weigh.models.deepseek_v3",
    "kimi_k25": "weigh.models.kimi_k25",
    "kimi_linear": "weigh.models.kimi_linear",
    "kolibri1": "weigh.models.kolibri1",
    "laguna": "weigh.models.laguna",
    "layoutlm": "weigh.models.layoutlm",
    "lfm2": "weigh.models.lfm2",
    "lfm2_moe": "weigh.models.lfm2_moe",
    "lfm2_vl": "weigh.models.deepseek_vl",
    "lfm3": "weigh.models.lfm3",
    "lighton_ocr": "weigh.models.mistral3",
    "llama": "weigh.models.llama",
    "llama4": "weigh.models.llama4",
    "llama4_text": "weigh.models.llama4_text",
    "llava": "weigh.models.llava",
    "llava_next": "weigh.models.llava",
    "llava_next_video": "weigh.models.llava",
    "llava_onevision": "weigh.models.llava",
    "longcat_flash": "weigh.models.longcat_flash",
    "longformer": "weigh.models.longformer",
    "luke": "weigh.models.luke",
    "m2m_100": "weigh.models.m2m_100",
    "mamba": "weigh.models.mamba",
    "mamba2": "weigh.models.mamba2",
    "marian": "weigh.models.marian",
    "mbart": "weigh.models.mbart",
    "megatron-bert": "weigh.models.megatron_bert",
    "mellum": "weigh.models.mellum",
    "mimo_v2_flash": "weigh.models.mimo_v2_flash",
    "minicpm3": "weigh.models.minicpm3",
    "minimax": "weigh.models.minimax",
    "minimax_m2": "weigh.models.minimax_m2",
    "ministral3": "weigh.models.ministral3",
    "mistral": "weigh.models.mistral",
    "mistral3": "weigh.models.mistral3",
    "mistral4": "weigh.models.mistral4",
    "mixtral": "weigh.models.mixtral",
    "mllama": "weigh.models.mllama",
    "mllama_text_model": "weigh.models.mllama",
    "mobilebert": "weigh.models.mobilebert",
    "modernbert": "weigh.models.modernbert",
    "mpnet": "weigh.models.mpnet",
    "mpt": "weigh.models.mpt",
    "mra": "weigh.models.yoso",
    "mt5": "weigh.models.mt5",
    "nanochat": "weigh.models.nanochat",
    "nemotron": "weigh.models.nemotron",
    "nemotron_h": "weigh.models.nemotron_h",
    "nystromformer": "weigh.models.nystromformer",
    "olmo": "weigh.models.olmo",
    "olmo2": "weigh.models.olmo2",
    "olmo3": "weigh.models.olmo3",
    "olmo_hybrid": "weigh.models.olmo_hybrid",
    "olmoe": "weigh.models.olmoe",
    "openai-gpt": "weigh.models.openai_gpt",
    "opt": "weigh.models.opt",
    "ovis2": "weigh.models.ovis2",
    "paligemma": "weigh.models.paligemma",
    "pegasus": "weigh.models.pegasus",
    "persimmon": "weigh.models.persimmon",
    "phi": "weigh.models.phi",
    "phi3": "weigh.models.phi3",
    "phimoe": "weigh.models.phimoe",
    "plbart": "weigh.models.plbart",
    "qianfan_ocr": "weigh.models.internvl",
    "qwen": "weigh.models.qwen",
    "qwen2": "weigh.models.qwen2",
    "qwen2_5_omni_thinker": "weigh.models.qwen2_5_omni_thinker",
    "qwen2_5_vl": "weigh.models.qwen2_vl",
    "qwen2_audio": "weigh.models.qwen2_audio",
    "qwen2_moe": "weigh.models.qwen2_moe",
    "qwen2_vl": "weigh.models.qwen2_vl",
    "qwen3": "weigh.models.qwen3",
    "qwen3_5": "weigh.models.qwen3_5_vl",
    "qwen3_5_moe": "weigh.models.qwen3_5_vl",
    "qwen3_5_moe_text": "weigh.models.qwen3_5",
    "qwen3_5_text": "weigh.models.qwen3_5",
    "qwen3_moe": "weigh.models.qwen3_moe",
    "qwen3_next": "weigh.models.qwen3_next",
    "qwen3_vl": "weigh.models.qwen3_vl",
    "qwen3_vl_moe": "weigh.models.qwen3_vl",
    "recurrent_gemma": "weigh.models.recurrent_gemma",
    "rembert": "weigh.models.rembert",
    "roberta": "weigh.models.roberta",
    "roberta-prelayernorm": "weigh.models.roberta_prelayernorm",
    "roc_bert": "weigh.models.roc_bert",
    "roformer": "weigh.models.roformer",
    "rwkv": "weigh.models.rwkv",
    "seed_oss": "weigh.models.seed_oss",
    "smollm3": "weigh.models.smollm3",
    "smolvlm": "weigh.models.idefics",
    "solar_open": "weigh.models.solar_open",
    "squeezebert": "weigh.models.squeezebert",
    "stablelm": "weigh.models.stablelm",
    "starcoder2": "weigh.models.starcoder2",
    "t5": "weigh.models.t5",
    "tapas": "weigh.models.tapas",
    "umt5": "weigh.models.umt5",
    "vaultgemma": "weigh.models.vaultgemma",
    "video_llama_3": "weigh.models.video_llama_3",
    "video_llava": "weigh.models.llava",
    "vipllava": "weigh.models.llava",
    "voxtral": "weigh.models.qwen2_audio",
    "whisper": "weigh.models.whisper",
    "xglm": "weigh.models.xglm",
    "xlm-roberta": "weigh.models.roberta",
    "xlm-roberta-xl": "weigh.models.xlm_roberta_xl",
    "xlstm": "weigh.models.xlstm",
    "xmod": "weigh.models.xmod",
    "yoso": "weigh.models.yoso",
    "youtu": "weigh.models.youtu",
    "zamba": "weigh.models.zamba",
    "zamba2": "weigh.models.zamba2",
    "zaya": "weigh.models.zaya",
}
"""`model_type` -> the module that describes it."""

EAGER_ONLY = frozenset(
    {
        "bloom",
        "codegen",
        "deberta-v2",
        "falcon_mamba",
        "flint",
        "gemma2",
        "gpt_neo",
        "gpt_oss",
        "gptj",
        "granitemoe_swa",
        "mamba",
        "mamba2",
        "mimo_v2_flash",
        "mpt",
        "rwkv",
        "vaultgemma",
        "xlstm",
    }
)
"""Families whose upstream class leaves `_supports_sdpa` false: they run eagerly, and refuse to be asked for more."""

WITHOUT_CACHE = frozenset({"mpt"})
"""Families whose `use_cache` is false where the config says nothing."""


def unknown_family(model_type: str, where: str) -> UnknownNameError:
    """The error for a family that is not described: near misses, and what can be had all the same."""
    error = UnknownNameError("model_type", model_type, FAMILIES, where=where)
    from weigh.models.config import HEADER

    error.hint = (
        f"{error.hint} Else {HEADER}" if error.suggestions else f"{HEADER} docs/architectures.md has the families."
    )
    return error


def build(config: Mapping[str, Any], dtype: DType, where: str = "config", to_run: bool = False) -> CausalModel:
    """The ghost model of a config, every parameter in `dtype`, with its parts named.

    Without `to_run` it is built to be counted, whether or not its run is modelled: `model.unmodelled` says what is not.

    Call it inside `weigh.ghost.state.recording()`: the weights are born into that run's ledger.

    Raises:
        UnknownNameError: the `model_type` is not described yet.
        InputError: a key is missing or impossible.
        NotModelledError: the config names a class whose tensors are not described, or, `to_run`, one that does not run.
    """
    from weigh.ghost.nn import name_modules
    from weigh.models.config import COUNTED, Watched, take_read, take_unmodelled
    from weigh.models.unread import unread

    model_type = config.get("model_type")
    if model_type is None:
        raise InputError("has no model_type", where=where, hint=f"Add one of: {', '.join(sorted(FAMILIES))}.")
    if model_type not in FAMILIES:
        raise unknown_family(str(model_type), where)
    take_unmodelled()
    take_read()
    model: CausalModel = import_module(FAMILIES[model_type]).build(Watched(config), dtype, where)
    model.model_type = str(model_type)
    model.unmodelled = take_unmodelled()
    model.unread = unread(config, take_read())
    if not model.runs:
        model.unmodelled += (NotModelledError(f"a run of {model.name}", where=where, hint=COUNTED),)
    if to_run and model.unmodelled:
        raise model.unmodelled[0]
    name_modules(model)
    return model


def language_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the language model: the `text_config` of a model that sees or hears, else all of it."""
    text = config.get("text_config")
    return text if isinstance(text, Mapping) else config


def uses_cache(config: Mapping[str, Any]) -> bool:
    """Whether `generate` keeps keys and values where nobody chooses: the config's `use_cache`, or its `text_config`'s.

    A `generation_config.json` beside a checkpoint goes before it.
    """
    default = config.get("model_type") not in WITHOUT_CACHE
    return all(part.get("use_cache", default) is not False for part in (config, language_config(config)))


def default_attention(config: Mapping[str, Any]) -> str:
    """The attention that transformers runs where nobody chooses: "sdpa", or "eager" where the family has no other."""
    kinds = {str(part.get("model_type")) for part in (config, language_config(config))}
    return "eager" if kinds & EAGER_ONLY else "sdpa"


def check_attention(config: Mapping[str, Any], attention: str) -> None:
    """Refuse an attention that the family does not have, as transformers does.

    Raises:
        UsageError: the family runs eagerly only.
    """
    if attention != "eager" and default_attention(config) == "eager":
        raise UsageError(
            f"{config['model_type']} has no {attention} attention",
            where="attention",
            hint="Leave it out, or take eager.",
        )
