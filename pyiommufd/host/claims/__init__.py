"""Claims of devices: planned, made, taken back, and recovered after what cut them off."""
