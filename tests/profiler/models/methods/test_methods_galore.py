"""GaLore's optimizer against the paper's algorithm written plainly, and against AdamW."""

from __future__ import annotations

import pytest
import small_backbones as small
import torch
from torch import Tensor, nn

from profiler.errors import MeasurementError, UsageError
from profiler.models.methods import get_method
from profiler.models.methods.galore import GaLoreAdamW, leading_subspace


def _gradients(shape: tuple[int, ...], steps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(steps)]


def _run(optimizer: torch.optim.Optimizer, weight: Tensor, gradients: list[Tensor]) -> None:
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()


def _plain_galore(weight: Tensor, gradients: list[Tensor], *, rank: int, gap: int) -> Tensor:
    """Algorithm 2 of arXiv 2403.03507 with singular vectors, Adam written out, lr 0.01."""
    first = second = basis = None
    for step, gradient in enumerate(gradients):
        if step % gap == 0:
            left, _, right = torch.linalg.svd(gradient, full_matrices=False)
            basis = right[:rank].T if gradient.shape[0] >= gradient.shape[1] else left[:, :rank]
        tall = gradient.shape[0] >= gradient.shape[1]
        small_gradient = gradient @ basis if tall else basis.T @ gradient
        first = 0.1 * small_gradient if first is None else 0.9 * first + 0.1 * small_gradient
        square = 0.001 * small_gradient**2
        second = square if second is None else 0.999 * second + square
        direction = (first / (1 - 0.9 ** (step + 1))) / (
            (second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
        )
        back = direction @ basis.T if tall else basis @ direction
        weight = weight - 0.01 * 0.25 * back
    return weight


@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (9, 9)])
def test_subspace_is_that_of_the_singular_vectors(shape: tuple[int, int]) -> None:
    matrix = _gradients(shape, 1)[0].float()
    basis = leading_subspace(matrix, 3)
    left, _, right = torch.linalg.svd(matrix)
    expected = right[:3].T if shape[0] >= shape[1] else left[:, :3]
    torch.testing.assert_close(basis @ basis.T, expected @ expected.T, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(12, 7), (7, 12)])
def test_first_update_is_the_papers(shape: tuple[int, int]) -> None:
    # one direction: signs of singular vectors are free, and Adam's square root sees no sign
    weight = nn.Parameter(torch.zeros(shape))
    gradients = [g.float() for g in _gradients(shape, 1)] * 6
    optimizer = GaLoreAdamW([weight], lr=0.01, rank=1, update_gap=4)
    _run(optimizer, weight, gradients)
    expected = _plain_galore(torch.zeros(shape), gradients, rank=1, gap=4)
    torch.testing.assert_close(weight.data, expected, atol=1e-5, rtol=1e-3)


def test_small_parameters_get_plain_adamw() -> None:
    shapes = [(5,), (4, 9), (4, 1, 3, 3)]
    for shape in shapes:
        gradients = _gradients(shape, 5)
        ours, theirs = (nn.Parameter(torch.ones(shape, dtype=torch.float64)) for _ in range(2))
        _run(GaLoreAdamW([ours], lr=0.01, rank=4, weight_decay=0.1), ours, gradients)
        reference = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1, foreach=False)
        _run(reference, theirs, gradients)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("shape", "elements"),
    [((32, 20), 2 * 32 * 4 + 20 * 4), ((20, 32), 2 * 32 * 4 + 20 * 4), ((16, 8, 3, 3), 640)],
)
def test_state_is_low_rank(shape: tuple[int, ...], elements: int) -> None:
    # convolution: [16, 72] at rank 4 -> moments 2 * 72 * 4, basis 16 * 4
    weight = nn.Parameter(torch.zeros(shape))
    optimizer = GaLoreAdamW([weight], rank=4)
    _run(optimizer, weight, [g.float() for g in _gradients(shape, 2)])
    state = optimizer.state[weight]
    stored = [v.untyped_storage().nbytes() // 4 for v in state.values() if torch.is_tensor(v)]
    assert sum(stored) == elements


def test_projection_is_kept_between_updates() -> None:
    weight = nn.Parameter(torch.zeros(6, 5))
    optimizer = GaLoreAdamW([weight], rank=2, update_gap=3)
    bases = []
    for gradient in _gradients((6, 5), 4):
        _run(optimizer, weight, [gradient.float()])
        bases.append(optimizer.state[weight]["projection"])
    assert bases[0] is bases[1] is bases[2]
    assert not torch.equal(bases[2], bases[3])


def test_other_optimizers_are_refused() -> None:
    load = small.workload("galore", optimizer="sgd")
    with pytest.raises(UsageError, match="does not combine with sgd"):
        get_method("galore").apply(small.make("resnet"), load)


def test_gradients_that_are_not_finite_are_said_in_one_line() -> None:
    weight = nn.Parameter(torch.zeros(6, 5))
    optimizer = GaLoreAdamW([{"params": [weight]}], lr=0.1, rank=2)
    weight.grad = torch.full((6, 5), float("nan"))
    with pytest.raises(MeasurementError, match="not finite; try a lower --learning-rate"):
        optimizer.step()


def test_a_projection_that_fails_in_single_precision_is_found_in_double(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = torch.linalg.eigh

    def fails_in_single(matrix: Tensor) -> tuple[Tensor, Tensor]:
        if matrix.dtype is torch.float32:
            raise torch.linalg.LinAlgError("the algorithm failed to converge")  # type: ignore[attr-defined]
        return own(matrix)

    matrix = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    expected = leading_subspace(matrix, 2)
    monkeypatch.setattr(torch.linalg, "eigh", fails_in_single)
    found = leading_subspace(matrix, 2)
    assert found.dtype is torch.float32
    torch.testing.assert_close((expected.T @ found).abs(), torch.eye(2), rtol=0, atol=1e-5)
