"""Page tables, what is attached to them, and what they report."""
