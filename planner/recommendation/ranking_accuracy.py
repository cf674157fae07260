"""Decides whether an accuracy can rank candidates, and so whether it is shown to people."""

from __future__ import annotations

from collections.abc import Mapping

from planner.plan import Plan
from planner.recommendation.choose import LONG_RUN_IMAGES, LONG_RUN_STEPS


def ranks_candidates(plan: Plan) -> bool:
    """Return whether the accuracy of a plan can distinguish it from other plans.

    An accuracy measured after a few steps, or on a few images, shows only that training works. It
    stays in the plan file and is not shown, and neither are the scores computed from it.
    """
    if plan.accuracy.value is None:
        return False
    if plan.accuracy.kind != "measured":
        return True
    run = plan.provenance.get("run")
    if not isinstance(run, Mapping):
        return False
    losses, images = run.get("losses"), run.get("accuracy_images")
    is_long = isinstance(losses, list | tuple) and len(losses) >= LONG_RUN_STEPS
    return is_long and isinstance(images, int) and images >= LONG_RUN_IMAGES
