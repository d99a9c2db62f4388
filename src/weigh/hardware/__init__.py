"""The machines that models run on: devices, and how fast work could run on one; no nodes, no networks."""

from weigh.hardware.devices import Device, Figure, all_devices, get_device, named

__all__ = ["Device", "Figure", "all_devices", "get_device", "named"]
