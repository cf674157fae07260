"""Flushed values against the values themselves."""

from __future__ import annotations

import pytest
import torch

from profiler.running.denormals import flushed_denormals


def is_kept() -> bool:
    return bool((torch.full((1,), 1e-41) * 0.5).any())


def test_denormals_are_zero_within_the_context_only() -> None:
    with pytest.raises(ValueError, match="within"), flushed_denormals():
        assert not is_kept()
        with flushed_denormals():
            assert not is_kept()
        assert not is_kept()
        raise ValueError("within")
    assert is_kept()


def test_a_setting_that_was_there_stays_under_any_default_type() -> None:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with flushed_denormals():
            with flushed_denormals():
                pass
            assert not (torch.full((1,), 1e-41, dtype=torch.float32) * 0.5).any()
    finally:
        torch.set_default_dtype(default)
