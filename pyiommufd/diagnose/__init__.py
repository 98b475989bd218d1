"""Diagnosis of refused requests: ranked causes, each with evidence and a fix."""

from pyiommufd.errors import Cause, explain_with


def _general(request: str, errno: int) -> tuple[Cause, ...]:
    from pyiommufd.diagnose.explain import general_causes  # imported here: the table is needed only after a refusal

    return general_causes(request, errno)


# errors is a lower layer and must not import diagnose, so diagnose registers its function there.
explain_with(_general)
