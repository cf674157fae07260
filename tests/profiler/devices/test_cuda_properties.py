"""Which kernels of a build of PyTorch run on a GPU."""

from __future__ import annotations

import pytest

from profiler.devices.cuda_properties import has_kernels_for, kernel_capability

BUILT_FOR = ("sm_75", "sm_80", "sm_86", "sm_90a", "sm_120", "compute_120")


@pytest.mark.parametrize(
    ("capability", "built"),
    [
        ((7, 5), (7, 5)), ((8, 0), (8, 0)), ((8, 6), (8, 6)), ((8, 9), (8, 6)), ((9, 0), (9, 0)),
        ((12, 1), (12, 0)),
        ((13, 0), (12, 0)),  # only PTX, compiled at run time
        ((7, 0), None), ((6, 1), None), ((10, 3), None),
    ],
)  # fmt: skip
def test_kernels_are_those_of_the_nearest_older_gpu_of_the_same_generation(
    capability: tuple[int, int], built: tuple[int, int] | None
) -> None:
    assert kernel_capability(capability, BUILT_FOR) == built
    assert has_kernels_for(capability, BUILT_FOR) == (built is not None)
