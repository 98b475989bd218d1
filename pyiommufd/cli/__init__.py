"""The command line, ``pyiommufd``: one module a command, which registers itself with the group."""
