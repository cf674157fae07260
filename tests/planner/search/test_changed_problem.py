"""A study of another problem: the message names an option or the images, and no key of ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from toy_costs import ToyCosts

from planner.search.changed_problem import describe_change
from planner.search.problem import SearchProblem
from planner.search.space import SearchedMethod, Space
from planner.search.study import search
from profiler.devices.table import lookup
from profiler.errors import LONGEST_MESSAGE, InputError
from profiler.units import DeviceBytes
from profiler.workload import Workload

SPACE = Space(
    base=Workload(model="test_vit", image_size=32, num_classes=10),
    methods=(SearchedMethod(name="full"), SearchedMethod(name="head")),
    micro_batches=(1, 4, 16),
    effective_batch=16,
    precisions=("fp32", "bf16"),
)
PROBLEM = SearchProblem(
    space=SPACE,
    device=lookup("rtx-2060-super"),
    limit_bytes=DeviceBytes(2 * 10**9),
    train_images=60,
)
LORA = SearchedMethod(name="lora", ranks=(4, 8), default_rank=8)


def with_base(**changes: object) -> Space:
    return replace(SPACE, base=SPACE.base.replace(**changes))


@pytest.mark.parametrize(
    ("changes", "clause"),
    [
        ({"train_images": 61}, "its training images have changed since it was started"),
        ({"limit_bytes": 3 * 10**9}, "of at most 2.00 GB, not 3.00 GB; use the options"),
        ({"device": lookup("rtx-3060")}, "for the device rtx-2060-super, not rtx-3060"),
        ({"data": "/pets"}, "for the data digits, not /pets"),
        ({"pretrained": False}, "for pretrained weights, not random ones"),
        ({"space": with_base(num_classes=11), "train_images": 61}, "for 10 classes, not 11; rest"),
        ({"space": with_base(image_size=48)}, "for images of 32 px, not 48 px"),
        ({"space": with_base(model="resnet18")}, "for the backbone test_vit, not resnet18"),
        ({"space": with_base(grad_clip=1.0)}, "for a gradient clip of none, not 1.0"),
        ({"space": with_base(frozen_batch_norm=True)}, "for trained statistics of BatchNorm, not"),
        (
            {"space": replace(SPACE, methods=(SPACE.methods[0], LORA))},
            "for other methods or ranks, without lora of rank 4/8 and with head; use the options",
        ),
        ({"space": replace(SPACE, precisions=("fp32",))}, "for other precisions, with bf16; use"),
        ({"space": replace(SPACE, micro_batches=(16, 4, 1))}, "other micro-batches, in another"),
        ({"space": replace(SPACE, effective_batch=32)}, "for an effective batch of 16, not 32"),
    ],
)
def test_a_changed_problem_is_named_as_the_user_knows_it(
    tmp_path: Path, changes: dict[str, object], clause: str
) -> None:
    def go_on(problem: SearchProblem) -> None:
        storage = f"sqlite:///{tmp_path}/toy.db"
        search(problem, ToyCosts(), trials=2, seed=0, study_name="toy", storage=storage)

    go_on(PROBLEM)
    go_on(PROBLEM)  # an equal problem goes on
    with pytest.raises(InputError) as caught:
        go_on(replace(PROBLEM, **changes))
    message = str(caught.value)
    assert message.startswith("study 'toy' belongs to another problem: it")
    assert clause in message
    assert message.endswith("or another --study") or message.endswith("or use another --study")
    assert len(message) < LONGEST_MESSAGE
    assert not {"train images is", "_", "True", "False", "None"} & set(message.split())


def test_every_key_of_a_problem_has_a_clause_whatever_an_edited_study_holds() -> None:
    wanted = PROBLEM.to_json()
    nested = {"space": {key: ["x"] for key in wanted["space"]}}
    for stored in ({}, {key: {"a": 1} for key in wanted}, wanted | nested, wanted | {"space": 1}):
        clause = describe_change(stored, wanted)
        assert clause.startswith("it")
        assert clause.endswith("--study")
    assert describe_change(wanted | {"later": 1}, wanted).startswith("it has settings")
