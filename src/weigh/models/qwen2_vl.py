"""Qwen2-VL and Qwen2.5-VL, as `transformers/models/qwen2_vl/modeling_qwen2_vl.py` (5.23) writes it.

Qwen2 whose tokens have three positions (time, height, width), and a vision transformer that makes tokens of pictures.
On text alone the three are the same number, and are rotated one by one all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import INT64, DType
from weigh.ghost import nn, ops
from weigh.ghost.state import no_grad
from weigh.ghost.tensor import Tensor
from weigh.models.common import Cache, CausalModel, RotaryEmbedding, position_ids
from weigh.models.config import ROPE_TYPES, Count, Keys, cannot_run
from weigh.models.llama import DecoderConfig, LlamaAttention, LlamaForCausalLM, LlamaModel
from weigh.models.multimodal import ConditionalGeneration, MultimodalModel, check_class, part, ties
from weigh.models.qwen2 import Qwen2Attention, Qwen2Config, Qwen2DecoderLayer, Qwen2Model
from weigh.models.towers.parts import Maker, Tower
from weigh.models.towers.qwen_vl import Qwen2VLVision, Qwen25VLVision
from weigh.records import dataclass

MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl")

MROPE_TYPES = (*ROPE_TYPES, "mrope")


@dataclass(frozen=True)
class Qwen2VLTextConfig(Qwen2Config):
    """The settings of `Qwen2VLTextConfig` that shape memory."""

    vocab_size: int = 152064
    hidden_size: int = 8192
    intermediate_size: int = 29568
    num_hidden_layers: int = 80
    num_attention_heads: int = 64
    num_key_value_heads: int = 8
    max_window_layers: Count = 80
    mrope_section: tuple[int, ...] = (16, 24, 24)

    rope_types = MROPE_TYPES
    heads_divide_width = True

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """How many frequencies belong to time, height and width."""
        super().settle(keys, found)
        settle_mrope(keys, found)


def settle_mrope(keys: Keys, found: dict[str, Any], width: str = "head_dim") -> None:
    """The sections of the rotary embedding; they must fill what is rotated for the model to run."""
    for name in ("rope_scaling", "rope_parameters"):
        rope = keys.config.get(name)
        if isinstance(rope, Mapping) and "mrope_section" in rope:
            found["mrope_section"] = Keys(rope, f"{keys.where}: {name}").numbers("mrope_section")
    if sum(found["mrope_section"]) != found[width] // 2:
        what = f"sections {found['mrope_section']} of heads {found[width]} wide"
        cannot_run(what, f"{keys.where}: rope_scaling")


class ThreeRotaryEmbedding(RotaryEmbedding):
    """Of positions in time, height and width, which a text has all the same: each turns some of the frequencies."""

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (3, batch, length) to cosines and sines (batch, length, width)."""
        with no_grad():
            positions = positions.expand(3, *positions.shape[1:])
            freqs = positions.unsqueeze(-1).float() * self.inv_freq
            cos = ops.cos(freqs) * 1.0
            sin = ops.sin(freqs) * 1.0
            sin = self.recomposition_frequencies(sin)
            cos = self.recomposition_frequencies(cos)
            return cos.to(x.dtype), sin.to(x.dtype)

    def recomposition_frequencies(self, freq: Tensor) -> Tensor:
        """Of each frequency the one position that it belongs to, twice; (3, ...) to (...)."""
        raise NotImplementedError


class Interleaved(ThreeRotaryEmbedding):
    def recomposition_frequencies(self, freq: Tensor) -> Tensor:
        """Height's and width's are written between those of time, in place."""
        freqs_thw = ops.select(freq, 0)
        return ops.cat([freqs_thw, freqs_thw], -1)


class Qwen2VLRotaryEmbedding(ThreeRotaryEmbedding):
    def __init__(self, config: Any) -> None:
        super().__init__(config.head_dim)
        self.mrope_section = list(config.mrope_section)

    def recomposition_frequencies(self, freq: Tensor) -> Tensor:
        """One section after the other."""
        freq = ops.cat([ops.select(m, 0) for m in freq.split(self.mrope_section, -1)], -1)
        return ops.cat([freq, freq], -1)


class ProjectsFirst(LlamaAttention):
    """Attention that looks at its heads when all projections are made."""

    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) to queries (B, N, T, H), keys and values (B, K, T, H)."""
        batch, length = hidden_states.shape[:-1]
        query_states = self.q_proj(hidden_states)
        key_states = self.k_proj(hidden_states)
        value_states = self.v_proj(hidden_states)
        query_states = query_states.view(batch, length, -1, self.head_dim).transpose(1, 2)
        key_states = key_states.view(batch, length, -1, self.head_dim).transpose(1, 2)
        value_states = value_states.view(batch, length, -1, self.head_dim).transpose(1, 2)
        return query_states, key_states, value_states


class ThreePositions(LlamaModel):
    """What the language models of Qwen2-VL and its followers share."""

    kinds: ClassVar[int] = 3
    """Positions that it makes for itself: time, height and width, and the text's own."""

    def place(self, positions: Tensor | None, inputs_embeds: Tensor, cache: Cache | None) -> tuple[Any, Tensor]:
        """Positions (4, batch, length) are the text's, which masks see, and three that are rotated."""
        batch, length = inputs_embeds.shape[:2]
        if positions is None:
            positions = position_ids(length, cache).unsqueeze(0).expand(self.kinds, batch, length)
        elif positions.ndim == 2:
            positions = positions.unsqueeze(0).expand(self.kinds, *positions.shape)
        if positions.shape[0] == 4:
            return ops.select(positions, 0), positions.narrow(0, 3, 1)
        return None, positions


class Qwen2VLAttention(ProjectsFirst, Qwen2Attention):
    """Qwen2's."""


class Qwen2VLDecoderLayer(Qwen2DecoderLayer):
    attention_class = Qwen2VLAttention


class Qwen2VLTextModel(ThreePositions, Qwen2Model):
    layer_class = Qwen2VLDecoderLayer

    def rotary(self, config: DecoderConfig) -> nn.Module:
        """Of three positions."""
        return Qwen2VLRotaryEmbedding(config)


class Qwen2VLText(LlamaForCausalLM):
    model_class = Qwen2VLTextModel


def flat_text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `text_config`; where there is none, its keys stand among the model's own."""
    text = config.get("text_config")
    return part(config, "text_config", "") if text is not None else config


class QwenVLGeneration(ConditionalGeneration):
    def prepare_positions(self, positions: Tensor) -> Tensor:
        """The text's and three more (4, batch, length); how far pictures moved them stays with the model."""
        vision_positions = positions.unsqueeze(0).expand(3, *positions.shape)
        self.rope_deltas = ops.zeros((positions.shape[0], 1), INT64)
        return ops.cat([positions.unsqueeze(0), vision_positions], 0)


def qwen_vl(text: Any, tower: Tower, dtype: DType) -> CausalModel:
    """`model.visual`, `model.language_model` and the head."""
    visual = tower.build(Maker(dtype))
    return QwenVLGeneration(
        text,
        MultimodalModel("language_model", visual=visual, language_model=text.model),
    )


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    newer = config["model_type"] == "qwen2_5_vl"
    name = "Qwen2_5_VLForConditionalGeneration" if newer else "Qwen2VLForConditionalGeneration"
    check_class(config, name, where=where)
    vision = part(config, "vision_config", "")
    tower = (Qwen25VLVision if newer else Qwen2VLVision).read(vision, f"{where}: vision_config")
    text = flat_text(config)
    tied = ties(config, text, default=False, of_text=True)
    settings = Qwen2VLTextConfig.read({**text, "tie_word_embeddings": tied}, f"{where}: text_config")
    return qwen_vl(Qwen2VLText(settings, dtype), tower, dtype)
