"""Names read from timm's source text against timm's own registry."""

from __future__ import annotations

from copy import deepcopy

import pytest
import timm
from timm.models import get_deprecated_models

from profiler.models.backbones.mambavision import MAMBAVISION_MODELS
from profiler.models.backbones.model_names import OWN_MODELS, is_timm_name, own_and_timm_names
from profiler.models.backbones.vim import VIM_MODELS


def test_the_names_are_those_of_timm_s_registry_in_its_order() -> None:
    assert own_and_timm_names()[len(OWN_MODELS) :] == timm.list_models()


def test_the_models_written_here_are_listed() -> None:
    assert (*VIM_MODELS, *MAMBAVISION_MODELS) == OWN_MODELS


def test_deprecated_names_are_accepted_and_not_listed() -> None:
    deprecated = get_deprecated_models()
    assert deprecated
    assert all(is_timm_name(name) for name in deprecated)
    assert not {*deprecated} & {*own_and_timm_names()}


def test_a_model_that_a_user_registers_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    def users_own_net(pretrained: bool = False) -> None:
        """Stand for a model of a user."""

    users_own_net.__module__ = "timm.models.resnet"
    registry = timm.models._registry
    with monkeypatch.context() as patched:
        for table in ("_model_entrypoints", "_model_to_module", "_module_to_models"):
            patched.setattr(registry, table, deepcopy(getattr(registry, table)))
        timm.models.register_model(users_own_net)
        assert is_timm_name("users_own_net")
    assert not is_timm_name("users_own_net")
