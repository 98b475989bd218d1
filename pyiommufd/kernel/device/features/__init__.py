"""What vfio drivers offer beside registers and interrupts (VFIO_DEVICE_FEATURE)."""
