"""The techniques that are shown at work: a row each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from weigh.errors import UnknownNameError, UsageError
from weigh.lab.bench import SHARES
from weigh.lab.loops import DISTILLED, EVALUATED, PLAIN, PRUNED, ROW_WISE, Made
from weigh.recipes.settings import make
from weigh.recipes.training import Training
from weigh.records import dataclass, field

if TYPE_CHECKING:
    from weigh.lab.bench import Bench

SCRATCH, STARTED, SPREAD, SERVED = (
    "trained from nothing",
    "trained on, from what fp32 ended with",
    "trained from nothing by two processes, of which one is shown",
    "not trained: what fp32 ended with, read and answered once",
)
"""What a technique is compared with: those of one group."""
BASE, TEACHER, TUNED, READ = "fp32", "teacher", "fine-tuning", "fp32-inference"
"""The first of each group, and the larger model that teaches."""
LORA = {"llama": "8:q_proj,k_proj,v_proj,o_proj", "gpt": "8:c_attn"}
MAGNITUDE, TWO_OF_FOUR, STRUCTURED = "magnitude", "2:4", "structured"


@dataclass(frozen=True, slots=True)
class Technique:
    """One row."""

    name: str
    says: str
    """What it does, in a line."""
    group: str = SCRATCH
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of `weigh.recipes.training.Training`, in words."""
    loop: Made = PLAIN
    """The same work on ghost tensors."""
    surgery: str | None = None
    """What is cut out of the weights before training: one of the prunings."""
    int8: bool = False
    """Matrices are held as codes of 8 bits, with our own layer."""
    rate: float = 3e-3
    """The learning rate at its highest."""
    ranks: int = 1
    """Processes."""
    needs: tuple[str, ...] = ()
    """Packages beside PyTorch and transformers."""
    wants: tuple[str, ...] = ()
    """Techniques whose weights it begins with, or learns from."""

    @property
    def trains(self) -> bool:
        """It takes steps."""
        return self.group != SERVED

    @property
    def compared_with(self) -> str:
        """The technique of which it is a variation."""
        return {STARTED: TUNED, SERVED: READ}.get(self.group, BASE)

    def config(self, bench: Bench) -> dict[str, Any]:
        """The model that is trained."""
        config = (bench.larger() if self.name == TEACHER else bench).config()
        if self.surgery == STRUCTURED:
            config["n_inner" if bench.model == "gpt" else "intermediate_size"] //= 2
        return config

    def recipe(self, bench: Bench) -> Training:
        """How it is trained, on one of its processes."""
        words = dict(self.settings)
        if words.get("lora") is LORA:
            words["lora"] = LORA[bench.model]
        shares = int(words.get("accumulation", 1)) * (1 if words.get("tensor") else self.ranks)
        return make(
            Training,
            {
                "batch": bench.batch // shares,
                "sequence": bench.sequence,
                "kernels": "cpu",
                "labels_are_inputs": True,
                "gpus_per_node": self.ranks,
                **words,
            },
        )


TECHNIQUES = {
    technique.name: technique
    for technique in (
        Technique(BASE, "32-bit weights and arithmetic, AdamW"),
        Technique(
            "bf16-autocast",
            "torch.autocast: matrices are multiplied in bf16, weights stay in fp32",
            settings={"autocast": "bf16"},
        ),
        Technique(
            "checkpointing",
            "every block drops its activations and computes them again in the backward pass",
            settings={"checkpointing": "full"},
        ),
        Technique(
            "accumulation",
            f"{SHARES} micro-batches one after the other, one update",
            settings={"accumulation": SHARES},
        ),
        Technique("sgd", "SGD with momentum: one state instead of two", settings={"optimizer": "sgd", "momentum": 0.9},
                  rate=0.1),
        Technique(
            "adafactor",
            "Adafactor: the second moments as a row and a column, no first",
            settings={"optimizer": "torch_adafactor"},
            rate=1e-1,
        ),
        Technique(
            "adamw-8bit",
            "AdamW with states of 8 bits (bitsandbytes)",
            settings={"optimizer": "adamw_8bit"},
            needs=("bitsandbytes",),
        ),
        Technique(TEACHER, "a model twice as wide, which will teach"),
        Technique(
            "distillation",
            "the small model learns from the teacher's probabilities and from the text, half and half",
            loop=DISTILLED,
            wants=(TEACHER,),
        ),
        Technique(TUNED, "all weights: what the following are compared with", STARTED, rate=1e-3, wants=(BASE,)),
        Technique("lora", "adapters of rank 8 beside attention's frozen weights", STARTED, {"lora": LORA}, rate=1e-2,
                  needs=("peft",), wants=(BASE,)),
        Technique("prune-magnitude", "the smaller half of each layer's weights is zero, and stays zero", STARTED,
                  loop=PRUNED, surgery=MAGNITUDE, rate=1e-3, wants=(BASE,)),
        Technique("prune-2:4", "of every four weights in a row the two smaller ones are zero, and stay zero", STARTED,
                  loop=PRUNED, surgery=TWO_OF_FOUR, rate=1e-3, wants=(BASE,)),
        Technique("prune-structured", "half of the feed-forward neurons are taken out: a smaller model", STARTED,
                  surgery=STRUCTURED, rate=1e-3, wants=(BASE,)),
        Technique("data-parallel", "DistributedDataParallel: each process has everything and half of the batch", SPREAD,
                  ranks=SHARES),
        Technique("fsdp2", "FSDP2: half of weights, gradients and states, half of the batch", SPREAD,
                  {"shard": "fsdp2"}, ranks=SHARES),
        Technique("tensor-parallel", "each layer is cut in two, the whole batch goes through both halves", SPREAD,
                  {"tensor": 2}, ranks=SHARES),
        Technique(READ, "the weights as they are, in fp32", SERVED, {"optimizer": "none"}, EVALUATED, wants=(BASE,)),
        Technique("int8", "linear layers in int8, a scale for every row, made fp32 again for each product", SERVED,
                  {"optimizer": "none"}, ROW_WISE, int8=True, wants=(BASE,)),
        Technique("nf4", "linear layers in NF4, a scale for every 64 weights (bitsandbytes)", SERVED,
                  {"quantization": "nf4", "optimizer": "none"}, EVALUATED, needs=("bitsandbytes",), wants=(BASE,)),
    )
}  # fmt: skip
"""Every technique, in the order in which they are run: whoever is wanted comes first."""


def chosen(names: tuple[str, ...]) -> list[Technique]:
    """The techniques of these names (none: all) and those that they want, in order.

    >>> [t.name for t in chosen(("lora",))]
    ['fp32', 'fine-tuning', 'lora']

    Raises:
        UsageError: there is none of that name; near misses are suggested.
    """
    wanted: set[str] = set()
    for name in names or tuple(TECHNIQUES):
        technique = TECHNIQUES.get(name)
        if technique is None:
            error = UnknownNameError("technique", name, TECHNIQUES)
            raise UsageError(error.what, where="--technique", hint=error.hint)
        wanted |= {name, *technique.wants, technique.compared_with}
        wanted |= set(TECHNIQUES[technique.compared_with].wants)
    return [technique for technique in TECHNIQUES.values() if technique.name in wanted]
