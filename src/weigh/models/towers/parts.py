"""What towers and projectors are made of: parts under upstream's names, which are counted and not run.

A tower is a frozen dataclass of the settings of upstream's config class, with `build`, which makes its modules. Its
parts have no roles, so that no technique takes a picture's embedding for the text's; reports name the whole tower.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

from weigh.dtypes import FLOAT32, DType
from weigh.errors import UnknownNameError
from weigh.ghost import nn
from weigh.models.common import ModuleList
from weigh.models.config import Keys
from weigh.models.parts import Make, Parts


class Vision(Parts):
    role = nn.VISION


class Audio(Parts):
    role = nn.AUDIO


class Projector(Parts):
    role = nn.PROJECTOR


class Plain(nn.Module):
    """A weight and perhaps a bias, without a role: a norm, a table."""

    def __init__(self, shape: tuple[int, ...], dtype: DType, bias: int | None = None) -> None:
        super().__init__()
        self.weight = nn.parameter(shape, dtype)
        self.bias = nn.parameter((bias,), dtype) if bias else None


class Maker(Make):
    """Makes the parts of towers in one dtype: norms and tables here have no role."""

    __slots__ = ()

    def layer_norm(self, width: int, bias: bool = True) -> Plain:
        """`nn.LayerNorm`."""
        return Plain((width,), self.dtype, width if bias else None)

    def rms_norm(self, width: int) -> Plain:
        """A norm with one scale a dimension."""
        return Plain((width,), self.dtype)

    def table(self, rows: int, width: int) -> Plain:
        """`nn.Embedding`."""
        return Plain((rows, width), self.dtype)

    def attention(
        self,
        width: int,
        names: tuple[str, str, str, str],
        bias: bool = True,
        out_bias: bool | None = None,
        heads_width: int | None = None,
        kv_width: int | None = None,
    ) -> Parts:
        """Four projections in the order of their names; the last is the output's, queries are named with a q."""
        inner = heads_width or width
        out = names[3]
        parts: dict[str, nn.Module] = {
            name: self.linear(width, inner if "q" in name else kv_width or inner, bias) for name in names[:3]
        }
        parts[out] = self.linear(inner, width, bias if out_bias is None else out_bias)
        return Parts(**parts)

    def mlp(self, width: int, inner: int, bias: bool = True, names: tuple[str, str] = ("fc1", "fc2")) -> Parts:
        """Up and down."""
        up, down = names
        return Parts(**{up: self.linear(width, inner, bias), down: self.linear(inner, width, bias)})

    def gated_mlp(self, width: int, inner: int, bias: bool = False, out: int | None = None) -> Parts:
        """Gate, up and down."""
        return Parts(
            gate_proj=self.linear(width, inner, bias),
            up_proj=self.linear(width, inner, bias),
            down_proj=self.linear(inner, out or width, bias),
        )

    def stack(self, count: int, build: Callable[[], nn.Module]) -> nn.Module:
        """`nn.ModuleList` of parts that are all alike."""
        return nn.Stack("", count, lambda _: build())

    def sequence(self, *parts: nn.Module | None) -> ModuleList:
        """`nn.Sequential`; None for one that has no parameters."""
        return ModuleList([Parts() if part is None else part for part in parts])

    def rotary(self, count: int) -> Parts:
        """A rotary embedding of `count` frequencies, and their copy."""
        return Parts(inv_freq=nn.buffer((count,), FLOAT32), original_inv_freq=nn.buffer((count,), FLOAT32))


class Tower:
    """The settings of a tower; every one is a frozen dataclass that inherits from this."""

    hidden_size: int
    aliases: ClassVar[Mapping[str, str]] = {}
    """Other names of keys (upstream's `attribute_map`)."""

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str) -> Self:
        """From a `vision_config` or `audio_config`. Raises `InputError` for values that cannot be."""
        keys = Keys({cls.aliases.get(key, key): value for key, value in config.items()}, where)
        found = keys.fields(cls)
        cls.settle(keys, found)
        return keys.make(cls, found)

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """What upstream's `__post_init__` works out."""

    def build(self, make: Maker) -> nn.Module:
        """The modules."""
        raise NotImplementedError


def read_tower(towers: Mapping[str, type[Tower]], config: Mapping[str, Any], where: str) -> Tower:
    """The tower that `AutoModel` takes for a config.

    Raises:
        UnknownNameError: none of `towers` has this `model_type`.
    """
    kind = str(config.get("model_type"))
    if kind not in towers:
        raise UnknownNameError("model_type", kind, towers, where=where)
    return towers[kind].read(config, where)


def patches(image: tuple[int, ...], patch: tuple[int, ...]) -> int:
    """How many patches an image has."""
    return (image[0] // patch[0]) * (image[-1] // patch[-1])
