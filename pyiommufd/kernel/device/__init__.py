"""A device's file: its regions, its attachments, its resets."""
