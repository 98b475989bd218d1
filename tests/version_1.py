"""Records in the version 1 format: a claim's devices in one file, the rest of a kept claim in another."""

from __future__ import annotations

import json
from typing import Any

from pyiommufd.host.claims import journal
from pyiommufd.host.claims.record import ClaimRecord

CLAIM = ("id", "state", "pid", "start_time", "groups", "devices", "wanted", "boot", "created", "doing", "waiting")
KEPT = ("pid", "start_time", "boot", "file", "user", "uid", "nodes")


def rewrite(record: ClaimRecord, stage: str = "kept", *, known: bool = True, owns_file: bool = True) -> None:
    """Have a claim on record as that version would.

    Args:
        record: The claim.
        stage: How far it had come: ``making``, ``kept`` or ``releasing``.
        known: Whether the one file had the id of the other, as it has once the drivers have been moved.
        owns_file: Whether the claim made its file, and was not made at boot by that.
    """
    path = journal.RUN / f"{record.id}.json"
    data: dict[str, Any] = json.loads(path.read_text())
    for device in (one for state in data["devices"] for one in (state, *state["vfs"])):
        del device["power"]
    path.write_text(json.dumps({key: data[key] for key in CLAIM}))
    (journal.RUN / "kept").mkdir(mode=0o700, exist_ok=True)
    kept = {key: data[key] for key in KEPT} | {
        "id": f"kept{record.id}",
        "stage": stage,
        "devices": sorted(record.names),
        "earlier": [],
        "entry": record.id if known else None,
        "owns_file": owns_file,
    }
    (journal.RUN / "kept" / f"{kept['id']}.json").write_text(json.dumps(kept))
