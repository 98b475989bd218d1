"""Whether this machine is ready for passthrough, and what is in its way."""
