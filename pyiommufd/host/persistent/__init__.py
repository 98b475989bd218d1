"""Claims that outlive their process: at every boot, and for a user."""
