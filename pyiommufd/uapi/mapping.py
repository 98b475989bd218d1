"""Map and unmap, with the objects that they make: the part of the extension that is written by hand (mapping_type.c).

It is a second module, `pyiommufd._mapping`, in the file of `pyiommufd._uapi` (as PEP 489 has it: several modules in one
library), with which it shares the C code below. mapping.pyi says what is in it.
"""

from importlib.machinery import ExtensionFileLoader, ModuleSpec

from pyiommufd._uapi import __file__ as _library

_loader = ExtensionFileLoader("pyiommufd._mapping", str(_library))
_module = _loader.create_module(ModuleSpec(_loader.name, _loader, origin=_loader.path))
_loader.exec_module(_module)

Held, Mapper, Mapping = _module.Held, _module.Mapper, _module.Mapping
mapped_within, pack_pieces = _module.mapped_within, _module.pack_pieces
