"""The few names of `typing` that are used while modules run, for those that every program imports.

`typing` itself takes a third as long to import as Python takes to start. For type checkers these are its own names.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NewType as NewType
    from typing import Protocol as Protocol
    from typing import cast as cast
    from typing import final as final
else:

    def _same(one):
        return one

    def _new_type(*_name_and_kind):
        return _same

    def _cast(_kind, one):
        return one

    Protocol, NewType, cast, final = object, _new_type, _cast, _same
