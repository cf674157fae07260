"""The allocator's options: what PyTorch reads is read, and the environment goes first."""

from __future__ import annotations

import pytest

from profiler.device_rules.caching_allocator import (
    DEFAULT_CONFIGURATION,
    AllocatorSettings,
    configuration,
    configure,
)
from profiler.errors import UsageError
from profiler.units import MIB


def test_parse_reads_what_pytorch_reads() -> None:
    settings = AllocatorSettings.parse(
        " max_split_size_mb:128, expandable_segments:True,garbage_collection_threshold:0.8,"
        "large_segment_size_mb:32,max_non_split_rounding_mb:40,per_process_memory_fraction:0.5,"
        "backend:native,pinned_use_background_threads:True,expandable_segments_reserve:40G"
    )
    assert settings == AllocatorSettings(
        expandable_segments=True,
        max_split_size_bytes=128 * MIB,
        garbage_collection_threshold=0.8,
        large_segment_size_bytes=32 * MIB,
        max_non_split_rounding_bytes=40 * MIB,
        per_process_memory_fraction=0.5,
    )
    assert AllocatorSettings.parse("") == AllocatorSettings()


def test_parse_of_divisions() -> None:
    # the example of c10/test/core/AllocatorConfig_test.cpp, with the values it expects
    text = "roundup_power2_divisions:[64:8,128:2,256:4,512:2,1024:4,>:1]"
    divisions = AllocatorSettings.parse(text).roundup_power2_divisions
    assert divisions == (8, 8, 8, 8, 8, 8, 8, 2, 4, 2, 4, 1, 1, 1, 1, 1)
    assert (
        AllocatorSettings.parse("roundup_power2_divisions:4").roundup_power2_divisions == (4,) * 16
    )


@pytest.mark.parametrize(
    "text",
    [
        "max_split_size_mb:10",
        "max_split_size_mb:30,large_segment_size_mb:32",
        "max_split_size_mb:lots",
        "large_segment_size_mb:10",
        "expandable_segments:true",
        "garbage_collection_threshold:1.0",
        "roundup_power2_divisions:3",
        "roundup_power2_divisions:0",
        "roundup_power2_divisions:[3:4]",
        "backend:cudaMallocAsync",
        "no_such_option:1",
        "max_split_size_mb",
        "max_split_size_mb:40;expandable_segments:True",
    ],
)
def test_parse_refuses_what_pytorch_refuses_or_we_do_not_model(text: str) -> None:
    with pytest.raises(UsageError, match="allocator option"):
        AllocatorSettings.parse(text)


def test_the_environment_goes_before_our_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    assert configuration() == DEFAULT_CONFIGURATION
    assert AllocatorSettings.parse(configuration()).expandable_segments
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    assert configuration() == "max_split_size_mb:64"
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "backend:native")
    assert configuration() == "backend:native"


def test_only_an_environment_that_says_nothing_is_written_to() -> None:
    silent: dict[str, str] = {}
    configure(silent)
    assert list(silent.values()) == [DEFAULT_CONFIGURATION]
    said = {"PYTORCH_ALLOC_CONF": "backend:native"}
    configure(said)
    assert said == {"PYTORCH_ALLOC_CONF": "backend:native"}
