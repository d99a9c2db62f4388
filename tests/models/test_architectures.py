"""Every language-model class of transformers 5.23 with its default config: counted exactly, or refused by name.

`tests/data/architectures/` has the default config of 355 classes, and the name and shape of every parameter that
transformers builds from it on the meta device.
"""

import pytest
from architectures import ARCHITECTURES, Architecture, tensors

from weigh.errors import WeighError


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_its_tensors_are_upstreams_or_it_is_refused_by_name(architecture: Architecture) -> None:
    found = architecture.weigh()
    if isinstance(found, WeighError):
        assert architecture.name in str(found) or repr(architecture.model_type) in str(found)
    else:
        assert found == tensors(architecture.name)
        assert sum(map(architecture.count, found.values())) == architecture.parameters


def test_many_are_exact() -> None:
    assert len(ARCHITECTURES) == 355
    assert sum(not isinstance(a.weigh(), WeighError) for a in ARCHITECTURES) >= 223
