"""Which families have no sdpa: what the classes of transformers say of themselves."""

import pytest
import transformers
from architectures import ARCHITECTURES, Architecture

from weigh.errors import WeighError
from weigh.models import EAGER_ONLY


def _runs(architecture: Architecture) -> bool:
    try:
        return not architecture.build().unmodelled
    except WeighError:
        return False


RUNNING = [a for a in {a.model_type: a for a in ARCHITECTURES}.values() if _runs(a)]


@pytest.mark.parametrize("architecture", RUNNING, ids=lambda a: a.name)
def test_transformers_says_the_same(architecture: Architecture) -> None:
    supports = getattr(transformers, architecture.name)._supports_sdpa
    assert supports == (architecture.model_type not in EAGER_ONLY)
