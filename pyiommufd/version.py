"""The version of this package, said once: the build reads it from this file without importing anything."""

__version__ = "0.1.0"
