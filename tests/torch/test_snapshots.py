"""The visualizer that comes with PyTorch opens the snapshots that weigh writes."""

import pickle
from pathlib import Path

import pytest
from torch.cuda import _memory_viz

import weigh
from weigh.trace.allocator_settings import AllocatorSettings
from weigh.trace.snapshot import write_snapshot


@pytest.mark.parametrize("conf", ["", "expandable_segments:True"])
def test_pytorch_draws_our_snapshots(tmp_path: Path, conf: str) -> None:
    report = weigh.train("gpt2", batch=1, sequence=64)
    write_snapshot(report.run.trace, str(tmp_path / "x.pickle"), AllocatorSettings.parse(conf))
    data = pickle.loads((tmp_path / "x.pickle").read_bytes())
    assert "segments:" in _memory_viz.segsum(data)
    assert "Device 0" in _memory_viz.trace(data)
    assert "Active Memory Timeline" in _memory_viz.trace_plot(data)
    assert "Allocator State History" in _memory_viz.segment_plot(data)
