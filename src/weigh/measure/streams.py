"""CUDA streams and events that do nothing, for FSDP2 on fake CUDA tensors in a build without CUDA."""

from __future__ import annotations

from typing import Any

import torch

CUDA = 1
"""The place of CUDA in the list of device types (c10/core/DeviceType.h)."""


class Stream:
    """Every op is over when it returns."""

    device = torch.device("cuda", 0)
    device_index = stream_id = cuda_stream = 0
    device_type = CUDA

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def wait_stream(self, _: Any) -> None:
        """Nothing runs elsewhere."""

    wait_event = wait_stream

    def record_event(self, event: Any = None) -> Any:
        return event or Event()

    def synchronize(self) -> None:
        """Nothing runs elsewhere."""

    def query(self) -> bool:
        return True

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Event:
    """Has happened."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, *_: Any) -> None:
        """It has happened already."""

    wait = synchronize = record

    def query(self) -> bool:
        return True


def install(devices: int) -> None:
    """Put them in the place of CUDA's, in this process, until it ends."""
    current = Stream()
    cuda: Any = torch.cuda
    cuda.Stream, cuda.Event, torch.Event = Stream, Event, Event
    cuda.stream = lambda stream: stream or current
    cuda.current_stream = cuda.default_stream = lambda *_, **__: current
    cuda.synchronize = cuda.set_device = lambda *_, **__: None
    cuda.device_count = lambda: devices
    torch.Tensor.record_stream = lambda *_: None
