"""What the commands show of devices: all of one, all at a glance, how they hang together."""
