"""Maps and accesses of registers: the part of the extension that is written by hand (fast.c).

It is a second module, `pyiommufd._fast`, in the file of `pyiommufd._uapi` (as PEP 489 has it: several modules in one
library), with which it shares the C code below. fast.pyi says what is in it.
"""

from importlib.machinery import ExtensionFileLoader, ModuleSpec

from pyiommufd._uapi import __file__ as _library

_loader = ExtensionFileLoader("pyiommufd._fast", str(_library))
_module = _loader.create_module(ModuleSpec(_loader.name, _loader, origin=_loader.path))
_loader.exec_module(_module)

Held, Mapper, Mapping, Registers = _module.Held, _module.Mapper, _module.Mapping, _module.Registers
mapped_within, pack_pieces = _module.mapped_within, _module.pack_pieces
