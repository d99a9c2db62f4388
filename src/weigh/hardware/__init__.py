"""The machines that models run on. Devices only so far: no nodes, no networks, no roofline."""

from weigh.hardware.devices import Device, Figure, all_devices, get_device

__all__ = ["Device", "Figure", "all_devices", "get_device"]
