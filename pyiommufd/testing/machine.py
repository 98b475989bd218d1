"""The devices of a guest, under the name that users import them by."""

from pyiommufd.testing.guest.machine import *  # noqa: F403  (all of them)
