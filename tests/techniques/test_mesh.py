"""Devices that share a job."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weigh.errors import UsageError
from weigh.techniques.mesh import Mesh

SIZES = st.sampled_from([1, 2, 3, 4, 8])


@given(SIZES, SIZES, SIZES, SIZES, SIZES)
def test_axes_multiply_to_the_world(data: int, tensor: int, pipeline: int, context: int, replicas: int) -> None:
    mesh = Mesh(data * replicas * tensor * pipeline * context, tensor, pipeline, context, replicas=replicas)
    assert mesh.data == data * replicas
    assert mesh.shard * mesh.replicas * mesh.tensor * mesh.pipeline == mesh.world


@pytest.mark.parametrize(
    ("axes", "where"),
    [
        ({"world": 6, "tensor": 4}, "mesh"),
        ({"world": 8, "replicas": 3}, "replicas"),
        ({"world": 8, "tensor": 4, "expert": 8}, "expert"),
        ({"world": 0}, "world"),
    ],
)
def test_what_does_not_divide_is_refused(axes: dict[str, int], where: str) -> None:
    with pytest.raises(UsageError) as caught:
        Mesh(**axes)
    assert caught.value.where == where
