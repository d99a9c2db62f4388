"""The number formats: how many bytes elements take and which values they can hold.

One table answers for plain formats (one element, a whole number of bytes), packed ones (two 4-bit codes in a byte) and
block formats (32 codes and their scale in 18 bytes). A format is two whole numbers, elements and bytes per block; bits
per element are derived. Scales that are tensors of their own (GPTQ, AWQ, bitsandbytes, FP8 with block scales) belong
to the quantization technique, and arithmetic belongs to the laboratory: here are only sizes and limits.
"""

from __future__ import annotations

from weigh.errors import InputError, UnknownNameError
from weigh.records import dataclass, field

TYPE_CHECKING = False  # type checkers take it for typing's; importing typing would cost more than this module
if TYPE_CHECKING:
    from typing import Final, Literal, Never

    Kind = Literal["float", "int", "uint", "bool", "complex", "block"]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class DType:
    """One number format. There is one object per format, so formats are compared with `is` and hashed by identity.

    >>> BFLOAT16.itemsize, get("q4_0").num_bytes(4096), get("q4_0").bits_per_element
    (2, 2304, 4.5)
    """

    name: str
    """The canonical short name: "bf16", "fp8_e4m3", "q4_k"."""
    elements_per_block: int
    """Elements stored together; a power of two, and 1 for plain formats."""
    bytes_per_block: int
    """Bytes that those elements take, with any scale that lies among them."""
    kind: Kind
    """What the elements are; "block" where a code has no value without the scale of its block."""
    source: str
    """Where the format is defined."""
    notes: str = ""
    """What a reader of the sizes should know."""
    exponent_bits: int | None = None
    """Floats: bits of exponent."""
    mantissa_bits: int | None = None
    """Floats: bits of mantissa that are stored."""
    max: float | None = None
    """The largest finite value of floats and integers, exactly."""
    min_normal: float | None = None
    """Floats: the smallest positive normal value."""
    min_subnormal: float | None = None
    """Floats: the smallest positive value."""
    epsilon: float | None = None
    """Floats: the distance from 1 to the next larger value."""
    itemsize: int = field(init=False)
    """Bytes of one element; an error for packed and block formats, whose elements have no bytes of their own."""

    def __post_init__(self) -> None:
        if self.elements_per_block == 1:
            object.__setattr__(self, "itemsize", self.bytes_per_block)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Never:
            """Reached only by attributes that are not set: `itemsize` of packed formats."""
            if name == "itemsize":
                size = f"{self.elements_per_block} elements in {self.bytes_per_block} bytes"
                raise InputError(f"{self.name} has no bytes per element: it stores {size}", hint="Ask num_bytes.")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def bits_per_element(self) -> float:
        """Bits per element, scales within the block included; exact, because blocks are powers of two."""
        return self.bytes_per_block * 8 / self.elements_per_block

    def num_bytes(self, elements: int) -> int:
        """The bytes of so many elements laid end to end; a block that is not full counts whole.

        Where rows start at block borders (GGUF), ask for one row and multiply.

        >>> get("nf4").num_bytes(3), get("q8_0").num_bytes(33), FLOAT32.num_bytes(33)
        (2, 68, 132)
        """
        if self.elements_per_block == 1:
            return elements * self.bytes_per_block
        return -(-elements // self.elements_per_block) * self.bytes_per_block

    def __repr__(self) -> str:
        return f"<DType {self.name}>"

    def __str__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[object, ...]:
        return get, (self.name,)  # copies and pickles are the one object


_IEEE = "IEEE 754-2019, table 3.5"
_TORCH = "https://docs.pytorch.org/docs/stable/tensor_attributes.html"
_OCP_FP8 = "OCP 8-bit Floating Point Specification (OFP8) 1.0, table 1"
_OCP_MX = "OCP Microscaling Formats (MX) Specification 1.0, tables 1 and 2"
_FNUZ = "Noune et al. 2022, arXiv:2206.02915"
_NVFP4 = "https://developer.nvidia.com/blog/introducing-nvfp4-for-efficient-and-accurate-low-precision-inference/"
_BNB = "Dettmers et al. 2023, arXiv:2305.14314 (QLoRA); bitsandbytes functional.py"
_GGML = "https://github.com/ggml-org/llama.cpp ggml/src/ggml-common.h"


def _float(
    name: str,
    *,
    exponent: int,
    mantissa: int,
    maximum: float,
    source: str,
    bias: int | None = None,
    elements: int = 1,
    num_bytes: int | None = None,
    notes: str = "",
) -> DType:
    """A binary float; `bias` is IEEE's unless given, and the other limits follow from it."""
    bias = 2 ** (exponent - 1) - 1 if bias is None else bias
    min_normal = 2.0 ** (1 - bias)
    return DType(
        name,
        elements_per_block=elements,
        bytes_per_block=(1 + exponent + mantissa) // 8 if num_bytes is None else num_bytes,
        kind="float",
        source=source,
        notes=notes,
        exponent_bits=exponent,
        mantissa_bits=mantissa,
        max=maximum,
        min_normal=min_normal,
        min_subnormal=min_normal * 2.0**-mantissa,
        epsilon=2.0**-mantissa,
    )


def _int(name: str, bits: int) -> DType:
    """A two's complement or unsigned integer; below 8 bits several share a byte."""
    signed = name.startswith("int")
    elements, num_bytes = (8 // bits, 1) if bits < 8 else (1, bits // 8)
    maximum = 2 ** (bits - signed) - 1
    return DType(name, elements, num_bytes, "int" if signed else "uint", _TORCH, max=maximum)


def _block(name: str, elements: int, num_bytes: int, source: str = _GGML, notes: str = "") -> DType:
    return DType(name, elements, num_bytes, "block", source, notes)


FLOAT64: Final = _float("fp64", exponent=11, mantissa=52, maximum=(2 - 2.0**-52) * 2.0**1023, source=_IEEE)
FLOAT32: Final = _float("fp32", exponent=8, mantissa=23, maximum=(2 - 2.0**-23) * 2.0**127, source=_IEEE)
FLOAT16: Final = _float("fp16", exponent=5, mantissa=10, maximum=65504.0, source=_IEEE)
BFLOAT16: Final = _float("bf16", exponent=8, mantissa=7, maximum=(2 - 2.0**-7) * 2.0**127, source=_TORCH)
FLOAT8_E4M3: Final = _float(
    "fp8_e4m3", exponent=4, mantissa=3, maximum=448.0, source=_OCP_FP8, notes="no infinities (float8_e4m3fn)"
)
FLOAT8_E5M2: Final = _float("fp8_e5m2", exponent=5, mantissa=2, maximum=57344.0, source=_OCP_FP8)
COMPLEX64: Final = DType("complex64", 1, 8, "complex", _TORCH)
COMPLEX128: Final = DType("complex128", 1, 16, "complex", _TORCH)
INT64: Final = _int("int64", 64)
INT32: Final = _int("int32", 32)
INT16: Final = _int("int16", 16)
INT8: Final = _int("int8", 8)
UINT64: Final = _int("uint64", 64)
UINT32: Final = _int("uint32", 32)
UINT16: Final = _int("uint16", 16)
UINT8: Final = _int("uint8", 8)
BOOL: Final = DType("bool", 1, 1, "bool", _TORCH, max=1)

_PLAIN = (
    *(FLOAT64, FLOAT32, FLOAT16, BFLOAT16, FLOAT8_E4M3, FLOAT8_E5M2, COMPLEX64, COMPLEX128),
    *(INT64, INT32, INT16, INT8, UINT64, UINT32, UINT16, UINT8, BOOL),
    _float(
        "tf32",
        exponent=8,
        mantissa=10,
        maximum=(2 - 2.0**-10) * 2.0**127,
        num_bytes=4,
        source="https://docs.nvidia.com/cuda/cublas/#floating-point-precision-modes",
        notes="a mode of matrix units; in memory it is fp32",
    ),
    _float(
        "fp8_e4m3fnuz", exponent=4, mantissa=3, maximum=240.0, bias=8, source=_FNUZ, notes="AMD CDNA3; no infinities"
    ),
    _float(
        "fp8_e5m2fnuz", exponent=5, mantissa=2, maximum=57344.0, bias=16, source=_FNUZ, notes="AMD CDNA3; no infinities"
    ),
    DType(
        "fp8_e8m0",
        *(1, 1, "float", _OCP_MX),
        notes="a power of two without sign or zero: the scale of MX blocks",
        exponent_bits=8,
        mantissa_bits=0,
        max=2.0**127,
        min_normal=2.0**-127,
        min_subnormal=2.0**-127,
        epsilon=1.0,
    ),
)
_PACKED = (
    _float("fp6_e2m3", exponent=2, mantissa=3, maximum=7.5, elements=4, num_bytes=3, source=_OCP_MX),
    _float("fp6_e3m2", exponent=3, mantissa=2, maximum=28.0, elements=4, num_bytes=3, source=_OCP_MX),
    _float("fp4_e2m1", exponent=2, mantissa=1, maximum=6.0, elements=2, num_bytes=1, source=_OCP_MX),
    *(_int(f"int{bits}", bits) for bits in (4, 2, 1)),
    *(_int(f"uint{bits}", bits) for bits in (4, 2, 1)),
    _block("nf4", 2, 1, _BNB, notes="codes only; the scales (absmax) are tensors of their own"),
    _block("fp4_bnb", 2, 1, _BNB, notes="codes only, not E2M1; the scales (absmax) are tensors of their own"),
)
_BLOCKS = (
    _block("mxfp4", 32, 17, _OCP_MX, notes="E2M1 codes and one E8M0 scale; GGML's block has the same size"),
    _block("mxfp6", 32, 25, _OCP_MX, notes="E2M3 or E3M2 codes and one E8M0 scale"),
    _block("mxfp8", 32, 33, _OCP_MX, notes="E4M3 or E5M2 codes and one E8M0 scale"),
    _block("nvfp4", 16, 9, _NVFP4, notes="E2M1 codes and one E4M3 scale; one fp32 scale per tensor is not counted"),
    _block("nvfp4_ggml", 64, 36, notes="GGUF's NVFP4: four NVIDIA blocks side by side"),
    _block("q4_0", 32, 18),
    _block("q4_1", 32, 20),
    _block("q5_0", 32, 22),
    _block("q5_1", 32, 24),
    _block("q8_0", 32, 34),
    _block("q8_1", 32, 36, notes="for activations, never in files; gguf-py 0.19 says 40 bytes, the C struct has 36"),
    _block("q2_k", 256, 84),
    _block("q3_k", 256, 110),
    _block("q4_k", 256, 144),
    _block("q5_k", 256, 176),
    _block("q6_k", 256, 210),
    _block("q8_k", 256, 292, notes="for activations, never in files"),
    _block("iq2_xxs", 256, 66),
    _block("iq2_xs", 256, 74),
    _block("iq2_s", 256, 82),
    _block("iq3_xxs", 256, 98),
    _block("iq3_s", 256, 110),
    _block("iq1_s", 256, 50),
    _block("iq1_m", 256, 56),
    _block("iq4_nl", 32, 18),
    _block("iq4_xs", 256, 136),
    _block("tq1_0", 256, 54),
    _block("tq2_0", 256, 66),
    _block("q1_0", 128, 18),
    _block("q2_0", 64, 18),
)

TABLE: Final[dict[str, DType]] = {d.name: d for d in (*_PLAIN, *_PACKED, *_BLOCKS)}
"""Every format by its canonical name."""

GGML_TYPES: Final[dict[int, DType]] = {
    i: TABLE[name]
    for first, names in (
        (0, "fp32 fp16 q4_0 q4_1"),
        (6, "q5_0 q5_1 q8_0 q8_1 q2_k q3_k q4_k q5_k q6_k q8_k iq2_xxs iq2_xs iq3_xxs iq1_s iq4_nl"),
        (21, "iq3_s iq2_s iq4_xs int8 int16 int32 int64 fp64 iq1_m bf16"),
        (34, "tq1_0 tq2_0"),
        (39, "mxfp4 nvfp4_ggml q1_0 q2_0"),
    )
    for i, name in enumerate(names.split(), first)
}
"""The format of each type number in a GGUF file (`enum ggml_type` in ggml.h); missing numbers were withdrawn."""

_ALIASES: Final = {
    alias: name
    for name, aliases in {
        # Names in PyTorch (without "torch."), ml_dtypes and safetensors.
        # PyTorch's float4_e2m1fn_x2 is left out, because its elements are pairs.
        "fp64": "float64 double f64",
        "fp32": "float32 float f32",
        "fp16": "float16 half f16",
        "bf16": "bfloat16",
        "fp8_e4m3": "float8_e4m3fn f8_e4m3",
        "fp8_e5m2": "float8_e5m2 f8_e5m2",
        "fp8_e4m3fnuz": "float8_e4m3fnuz f8_e4m3fnuz",
        "fp8_e5m2fnuz": "float8_e5m2fnuz f8_e5m2fnuz",
        "fp8_e8m0": "float8_e8m0fnu f8_e8m0",
        "fp6_e2m3": "float6_e2m3fn f6_e2m3",
        "fp6_e3m2": "float6_e3m2fn f6_e3m2",
        "fp4_e2m1": "float4_e2m1fn f4",
        "complex64": "cfloat c64",
        "complex128": "cdouble",
        "int64": "long i64",
        "int32": "int i32",
        "int16": "short i16",
        "int8": "i8",
        "uint64": "u64",
        "uint32": "u32",
        "uint16": "u16",
        "uint8": "u8",
    }.items()
    for alias in aliases.split()
}

# torch.promote_types: the higher rank wins, but for the pairs whose join is neither of them.
_RANK: Final = {
    dtype: rank
    for rank, dtypes in enumerate(
        (
            (BOOL,),
            (UINT8, INT8),
            (INT16,),
            (INT32,),
            (INT64,),
            (FLOAT16, BFLOAT16),
            (FLOAT32,),
            (FLOAT64,),
            (COMPLEX64,),
            (COMPLEX128,),
        )
    )
    for dtype in dtypes
}
_JOINS: Final = {
    pair: join
    for a, b, join in (
        (UINT8, INT8, INT16),
        (FLOAT16, BFLOAT16, FLOAT32),
        (FLOAT64, COMPLEX64, COMPLEX128),
    )
    for pair in ((a, b), (b, a))
}


def get(name: str) -> DType:
    """The format of that name: ours ("bf16"), PyTorch's ("torch.bfloat16"), safetensors' or GGUF's ("BF16", "Q4_K").

    Upper and lower case are alike. Names that mean several formats ("fp8", "fp4") are unknown, never guessed.

    >>> get("torch.bfloat16"), get("F8_E4M3"), get("Q4_K")
    (<DType bf16>, <DType fp8_e4m3>, <DType q4_k>)

    Raises:
        UnknownNameError: no format, or more than one, has that name.
    """
    lower = name.strip().lower().removeprefix("torch.")
    found = TABLE.get(_ALIASES.get(lower, lower))
    if found is None:
        raise UnknownNameError("dtype", name, TABLE)
    return found


def promote(a: DType, b: DType) -> DType:
    """The format in which PyTorch combines two tensors of at least one dimension each (`torch.promote_types`).

    Numbers and tensors without dimensions take part in PyTorch's rule by kind only, which is for the caller to mind.

    >>> promote(FLOAT16, BFLOAT16), promote(INT64, BFLOAT16)
    (<DType fp32>, <DType bf16>)

    Raises:
        InputError: PyTorch refuses the pair (8-bit floats, wide unsigned integers), or a format is packed.
    """
    if a is b:
        return a
    if joined := _JOINS.get((a, b)):
        return joined
    rank_a, rank_b = _RANK.get(a), _RANK.get(b)
    if rank_a is not None and rank_b is not None:
        return a if rank_a > rank_b else b
    for wide, other, rank in ((a, b, rank_b), (b, a, rank_a)):
        if wide in (UINT16, UINT32, UINT64) and other.kind == "float" and rank is not None:
            return other
    raise InputError(f"PyTorch has no common type for {a} and {b}", hint="Cast one of them first.")
