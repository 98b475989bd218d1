"""Drivers over the public API, for devices that QEMU has."""
