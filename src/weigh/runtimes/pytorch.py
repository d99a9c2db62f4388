"""A plain PyTorch script: forward, `loss.backward()`, `optimizer.step()`, `optimizer.zero_grad()`.

Around its steps it does as the Trainer where that is usual: `from_pretrained` and `model.to(device)`,
`model.save_pretrained` and `torch.save(optimizer.state_dict())`. It evaluates the batches of its training, and keeps
their losses.
"""

from __future__ import annotations

from collections.abc import Iterator

from weigh.records import dataclass
from weigh.runtimes import Runtime
from weigh.runtimes.phases import EVALUATING, PHASES, JobPhase, Surroundings, unknown


@dataclass(frozen=True, slots=True)
class Script(Runtime):
    """A script that somebody wrote."""

    def phases(self, around: Surroundings) -> Iterator[JobPhase]:
        """Those of a script on one device, or of DistributedDataParallel."""
        from weigh.runtimes import trainer_phases

        r = around.recipe
        batch = r.eval_batch or r.batch
        what = f"batches of {batch} on each device, without a graph"
        evaluated = JobPhase(EVALUATING, around.evaluated(), 0, 0, 0, what, "torch 2.13")
        if r.shard is not None or r.mesh.world > r.mesh.data:
            why = "scripts that share a model load and save it in many ways"
            others = {name: unknown(name, why) for name in PHASES}
        else:
            others = {phase.name: phase for phase in trainer_phases.around_steps(around)}
        for name in PHASES:
            yield evaluated if name == EVALUATING else others[name]


RUNTIME = Script("pytorch", "2.13")
