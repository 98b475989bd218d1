"""From a refused request to what is behind it: ranked causes, each with evidence and a way out."""

from pyiommufd.errors import Cause, explain_with


def _general(request: str, errno: int) -> tuple[Cause, ...]:
    from pyiommufd.diagnose.explain import general_causes  # here: nobody pays for the table before something is refused

    return general_causes(request, errno)


# The layers point the other way: errors knows nothing of diagnose, and is told.
explain_with(_general)
