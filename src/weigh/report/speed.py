"""How fast a model is served: the time to the first token, tokens a second for each user and in all.

Modelled, by the roofline over the same run that gives the memory and what the program was measured to reach
(`weigh.hardware.efficiency`). The range is that of the measured cases about their predictions.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from weigh import dtypes
from weigh.errors import NotModelledError, WeighError
from weigh.hardware.efficiency import EXPERTS, PROMPTS, USERS, Measured, measured
from weigh.hardware.roofline import balance, rate
from weigh.recipes.keeping import Keeping, keep
from weigh.recipes.pace import Machine, Pace
from weigh.recipes.work import Pass, Weights, passes, weights_of
from weigh.records import dataclass
from weigh.report.assumption import MODELLED, Assumption
from weigh.report.text import Style, table, wrap
from weigh.runtimes.engine import WEIGHTS

if TYPE_CHECKING:
    from weigh.dtypes import DType
    from weigh.report.serving import ServingReport

ENGINES = {"sglang": "SGLang", "tensorrt-llm": "compiled"}
"""What was measured of each engine, or of one like it: "compiled" is TensorRT-LLM, and PyTorch with CUDA graphs."""
VLLM = {False: "vLLM V0", True: "vLLM V1"}
"""By whether its release runs the engine that was written anew, which overlaps the host's work with the device's."""
VLLM_V1 = (0, 8)
"""The first release that does so where nobody says otherwise."""
LLAMA_CPP = {"NVIDIA": "llama.cpp CUDA, 2025", "Apple": "llama.cpp Metal"}
"""By the device's maker; of the others it was measured with Vulkan."""
LLAMA_CPP_PROGRAMS = ("llama.cpp", "lm-studio", "ollama")
"""Engines that run it."""
APART = ("draft", "LoRA", "drafting")
"""In the names of parts whose weights a step of the model does not read."""


@dataclass(frozen=True, slots=True)
class Prefill:
    """Reading one prompt on an idle device."""

    prompt: int
    """Tokens."""
    pace: Pace


@dataclass(frozen=True, slots=True)
class Decode:
    """A step of writing for so many requests at once."""

    users: int
    context: int
    """Tokens that each has."""
    pace: Pace
    flops: int
    """Floating-point operations of the step."""

    @property
    def each(self) -> float:
        """Tokens a second for each."""
        return 1 / self.pace.seconds

    @property
    def together(self) -> float:
        """Tokens a second of all."""
        return self.users * self.each


class Speed:
    """How fast a launched engine is."""

    def __init__(self, report: ServingReport) -> None:
        self._report = report
        self.program, _, _ = report.runtime.partition(" ")
        self._kept_by: dict[int, float] = {}

    @cached_property
    def unsaid(self) -> str | None:
        """Why nothing is said of its speed; None where it is."""
        if self._report.place.device is None:
            return "no device is named"
        try:
            self._check()
            _ = self.decode(1, self._report.context)
        except WeighError as error:
            return str(error)
        return None

    def _check(self) -> None:
        job, options = self._report.job, self._report.options
        drafts = any(getattr(options, name, None) for name in ("speculative_method", "speculative_algorithm"))
        if self._report.served.draft is not None or drafts:
            raise NotModelledError("the speed of speculative decoding", hint="It depends on how many drafts are right.")
        if getattr(options, "runner", None) == "pooling":
            raise NotModelledError("the speed of models that embed", hint="They answer in one pass.")
        if self._report.launch.at_host or getattr(options, "cpu_offload_gb", None):
            raise NotModelledError("the speed of layers in host memory", hint="The host's bandwidth is not known.")
        if getattr(options, "enforce_eager", False) or getattr(options, "disable_cuda_graph", False):
            raise NotModelledError("the speed without CUDA graphs", hint="It depends on the host's processor.")
        if job.pipeline > 1:
            raise NotModelledError("the speed of pipeline stages", hint="It depends on how requests overlap.")

    @cached_property
    def measured(self) -> Measured:
        """What was measured of the program, or of those like it."""
        device = self._report.place.device
        assert device is not None
        if self.program in LLAMA_CPP_PROGRAMS:
            return measured()[LLAMA_CPP.get(device.maker, "llama.cpp Vulkan")]
        if self.program == "vllm":
            release = tuple(map(int, self._report.runtime.partition(" ")[2].split(".")))
            return measured()[VLLM[release >= VLLM_V1]]
        return measured()[ENGINES[self.program]]

    @cached_property
    def machine(self) -> Machine:
        """The devices of one replica."""
        device = self._report.place.device
        assert device is not None
        return Machine(device, self.arithmetic, self.measured.on(device), self._report.job.tensor)

    @cached_property
    def arithmetic(self) -> DType:
        """The format of the products: fp8's where weights and activations are in it, else 16 bits.

        llama.cpp sums in fp16, the others in fp32, as bf16 does.
        """
        device = self._report.place.device
        assert device is not None
        config = self._report.served.config.get("quantization_config") or {}
        method = self._report.job.quantization or config.get("quant_method")
        if method == "fp8":
            found = next((name for name in ("fp8_e4m3", "fp8_e4m3fnuz") if name in device.flops), None)
            if found is not None:
                return dtypes.get(found)
        return dtypes.get("fp16" if self.program in LLAMA_CPP_PROGRAMS else "bf16")

    # -- figures
    @cached_property
    def prefills(self) -> tuple[Prefill, ...]:
        """Of a prompt of 1,024 tokens, and of one that leaves room for one token more."""
        longest = max(1, self._report.context - 1)
        return tuple(self.prefill(prompt) for prompt in sorted({min(1024, longest), longest}))

    @cached_property
    def decodes(self) -> tuple[Decode, ...]:
        """Of one request, of those asked for, and of as many as there is room for, each with its whole context."""
        job = self._report.job
        counts = {1, self.of_replica(job.concurrency)}
        most = self._report.launch.most_users(self._report.context)
        if most is not None and self._report.verdict == "yes":
            limit = self._report.launch.most_sequences
            counts.add(max(1, self.of_replica(min(most, limit or most))))
        return tuple(self.decode(users, self._report.context) for users in sorted(counts))

    def of_replica(self, users: int) -> int:
        """Of so many requests, those that one replica has at most."""
        return -(-users // self._report.job.data)

    def prefill(self, prompt: int) -> Prefill:
        """Reading so many tokens."""
        first, _ = self._passes(prompt)
        return Prefill(prompt, self.machine.pace(first, self._kept(prompt), self._stored))

    def decode(self, users: int, context: int) -> Decode:
        """A step of so many requests of one replica, each with so many tokens."""
        step = self._step(users, context)
        pace = self.machine.pace(step, users * self._kept(context), self._stored)
        return Decode(users, context, pace, step.flops)

    def _passes(self, prompt: int) -> tuple[Pass, Pass]:
        """Of one request; others beside it do the same, on whatever device."""
        served = self._report.served
        key = ("passes", prompt)
        if key not in served.memo:
            served.memo[key] = passes(served.config, served.dtype, 1, prompt, served.source.where)
        found: tuple[Pass, Pass] = served.memo[key]
        return found

    def _step(self, users: int, context: int) -> Pass:
        """Of so many requests, on whatever device."""
        memo, key = self._report.served.memo, ("step", users, context)
        if key not in memo:
            memo[key] = self._passes(max(1, context - 1))[1].times(users)
        found: Pass = memo[key]
        return found

    def _kept(self, tokens: int) -> float:
        """Bytes of keys, values and states of one request on one rank."""
        if tokens not in self._kept_by:
            job, served = self._report.job, self._report.served
            kv_dtype = self._report.launch.kv_dtype or job.kv_dtype
            held = keep(served.layers, Keeping(tokens, kv_dtype=kv_dtype, tensor=job.tensor), served.dtype)
            self._kept_by[tokens] = sum(layer.num_bytes for layer in held)
        return self._kept_by[tokens]

    @cached_property
    def _stored(self) -> Weights:
        """How many times the bytes of the run's format the engine's weights are."""
        whole, launch, tensor = (
            weights_of(self._report.served.model.parameters()),
            self._report.launch,
            self._report.job.tensor,
        )
        parts = [part for share in launch.shares if share.device != "host" for part in share.parts]
        weights = (part for part in parts if part.of == WEIGHTS and not any(word in part.what for word in APART))
        held: float = sum(part.num_bytes for part in weights) * tensor
        if self.program not in LLAMA_CPP_PROGRAMS:  # which leave in host memory what is only looked up
            held -= whole.looked_up
        routed = launch.routed * tensor
        return Weights(held - routed, routed).over(whole)

    # -- words
    def assumptions(self) -> tuple[Assumption, ...]:
        """What it takes for granted."""
        if self.unsaid is not None:
            return ()
        device, reached = self.machine.device, self.machine.reached
        own = device.generation in self.measured.decode
        of, elsewhere = self.measured.program, "" if own else ", as on other devices"
        kernels = self._step(1, self._report.context).kernels
        besides = f"{reached.per_kernel * 1e6:.1f} us besides for each of {kernels:,} kernels"
        ranks = self.machine.tensor
        if ranks > 1 and reached.per_message:
            besides += f" and {(ranks - 1) * reached.per_message * 1e6:.0f} us for each sum over {ranks} ranks"
        ridge = balance(device, self.arithmetic)
        flops, figure = rate(device, self.arithmetic)
        said = [
            Assumption(
                f"{reached.bandwidth:.0%} of the bandwidth, {reached.compute:.0%} of the arithmetic{elsewhere}",
                f"fitted to published measurements of {of}{elsewhere} (docs/speed.md); {besides}",
                f"the measured ones are {reached.low:.2f} to {reached.high:.2f} of what it predicts",
            ),
            Assumption(
                f"products at {flops / 1e12:,.0f} TFLOP/s",
                f"the device's figure for {figure}; what does fewer than {ridge:.0f} operations a byte waits for bytes",
                "prompts are read faster or slower in proportion",
            ),
        ]
        if self._has_experts:
            low, high = self.ends(1)
            said.append(
                Assumption(
                    "every expert equally likely for every token",
                    "how a router spreads tokens depends on the text",
                    "fewer are read where it does not spread them; nothing was fitted to models of experts: "
                    f"published measurements of them are {low:.2f} to {high:.2f} of what it predicts",
                )
            )
        return tuple(said)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        if self.unsaid is not None:
            return {"unsaid": self.unsaid}
        return {
            "unsaid": None,
            "basis": MODELLED,
            "program": self.measured.program,
            "prefill": [
                {"prompt": p.prompt, **self.times(p.pace.seconds, 1, True), "waits_for": p.pace.waits_for}
                for p in self.prefills
            ],
            "decode": [
                {
                    "users": d.users,
                    "context": d.context,
                    **self.times(d.pace.seconds, d.users),
                    "tokens_per_second": {"each": d.each, "together": d.together},
                    "waits_for": d.pace.waits_for,
                    "flops": d.flops,
                }
                for d in self.decodes
            ],
        }

    def ends(self, users: int, of_prompt: bool = False) -> tuple[float, float]:
        """Measured speed over predicted, at the slow end and at the fast one."""
        kind = EXPERTS if self._has_experts else PROMPTS if of_prompt else USERS if users > 1 else None
        if kind in self.measured.ranges:
            return self.measured.ranges[kind]
        return self.machine.reached.low, self.machine.reached.high

    @cached_property
    def _has_experts(self) -> bool:
        return any(row.active_share < 1 for row in self._report.served.model.parameters())

    def times(self, seconds: float, users: int, of_prompt: bool = False) -> dict[str, float]:
        """A time with the range of the measured cases about it."""
        low, high = self.ends(users, of_prompt)
        return {"seconds": seconds, "least_seconds": seconds / high, "most_seconds": seconds / low}

    def lines(self, style: Style) -> list[str]:
        """For a terminal."""
        if self._report.place.device is None:
            return []
        if self.unsaid is not None:
            return [*wrap(f"How fast is not said: {self.unsaid}", style.width, "  "), ""]
        low, high = self.ends(1, of_prompt=True)
        rows = [("first token", "", "", "", "waits for")]
        for p in self.prefills:
            least, most = p.pace.seconds / high, p.pace.seconds / low
            took = f"{format_seconds(p.pace.seconds)}"
            between = f"{format_seconds(least)} to {format_seconds(most)}"
            rows.append((f"  after {p.prompt:,} tokens", took, between, "", p.pace.waits_for))
        rows.append(("tokens/s", "each", "", "in all", ""))
        for d in self.decodes:
            low, high = self.ends(d.users)
            between = f"{few(d.each * low)} to {few(d.each * high)}"
            users = "1 user" if d.users == 1 else f"{d.users:,} users"
            rows.append((f"  {users}, {d.context:,} tokens", few(d.each), between, few(d.together), d.pace.waits_for))
        per = " (each of the replicas)" if self._report.job.data > 1 else ""
        return [f"  speed, modelled{per}", *table(rows, "<>>><"), ""]


def format_seconds(seconds: float) -> str:
    """For people.

    >>> format_seconds(0.0123), format_seconds(2.5)
    ('12.3 ms', '2.50 s')
    """
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def few(number: float) -> str:
    """A rate for people.

    >>> few(12.34), few(1234.5)
    ('12.3', '1,234')
    """
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}"
