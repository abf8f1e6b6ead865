"""What a controller has to say before anything may move: its axes and how far they reach."""

from __future__ import annotations

from .errors import RefusedError
from .moves import Mover
from .position import Box


def survey(mover: Mover) -> Box:
    """The travel of a controller's axes, which have to be the profile's.

    Raises
    ------
    RefusedError
        Other axes, no limits, or limits that are no travel: nothing may move.
    LinkError
        The link failed, or it never says the same limits twice.
    """
    controller = mover.controller
    names = mover.ask(controller.axis_names)
    if tuple(names) != controller.axes:
        raise RefusedError(f"the controller's axes are {names}, expected {list(controller.axes)}: rename them (SAI)")
    try:
        travel_um = Box(mover.agreed("TMN?"), mover.agreed("TMX?"))
    except RefusedError as exc:
        raise RefusedError(
            f"the controller does not tell its limits ({exc}), without which nothing may move: check that a stage is "
            "connected to it and that it knows the stage",
            code=exc.code,
        ) from exc
    if not all(low < high for low, high in zip(*travel_um, strict=True)):
        raise RefusedError(f"the controller's limits are {travel_um}, which is no travel: check its parameters")
    return travel_um
