"""Makes `support` and the recorded architectures importable, in the tests and in the witness that they start."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
sys.path.insert(0, str(Path(__file__).parents[1] / "optimizers"))
settings.register_profile("witness", derandomize=True, deadline=None, database=None)
settings.load_profile("witness")

from support.client import Witness  # noqa: E402  found through the path above


@pytest.fixture(scope="session")
def witness() -> Iterator[Witness]:
    """Real PyTorch in a process of its own."""
    running = Witness()
    yield running
    running.close()
