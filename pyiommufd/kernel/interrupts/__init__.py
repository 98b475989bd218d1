"""Interrupts of devices, and the eventfds that carry them."""
