"""A model of PyTorch's CUDA caching allocator, fed by requests and frees.

`torch.cuda.max_memory_allocated()` and `max_memory_reserved()` do not report the sum of the
tensors. Sizes are rounded, small and large requests are served from separate pools, and memory is
taken from the driver in segments that are returned only when memory runs out. This package follows
those rules without a GPU and without torch.

    settings    options of ``PYTORCH_CUDA_ALLOC_CONF``
    sizes       block size of a request, segment size of a block
    blocks      blocks and pools: how a block is split, merged, mapped and unmapped
    allocator   `CachingAllocator`: which free block serves a request, and when memory is fetched
                or given back

Source of the rules: ``c10/cuda/CUDACachingAllocator.cpp``, struct ``DeviceCachingAllocator``, read
at pytorch commit 001074d25084 and compared with the source of torch 2.15; constants and options:
``c10/core/AllocatorConfig.h`` and ``.cpp`` of torch 2.15. Torch 2.15 turned the constant
``kLargeBuffer`` (20 MiB) into the option ``large_segment_size_mb``.

    rule                                                    function in PyTorch
    sizes are multiples of 512 B                            round_size
    ... or of a fraction of a power of two                  roundup_power2_next_division
    requests up to 1 MiB use the small pool                 get_pool
    segments have 2 MiB, 20 MiB, or a multiple of 2 MiB     get_allocation_size
    the smallest free block that fits serves a request,
    the lowest address first                                get_free_block, BlockComparatorSize
    oversize blocks serve oversize requests only            get_free_block
    when a block is split                                   should_split, alloc_found_block
    free neighbours are merged                              free_block, try_merge_blocks
    expandable segments grow and shrink by pages            find_expandable_block, map_block,
                                                            try_allocate_expandable_block,
                                                            unmap_block
    old blocks are given back before memory is fetched      garbage_collect_cached_blocks
    under a cap: release, retry, out of memory              malloc, alloc_block,
                                                            release_available_cached_blocks,
                                                            release_cached_blocks

Limitations. The addresses that the driver returns are not known; they are assumed to ascend, so
among free blocks of equal size the one in the older segment is used. Not modelled are a second
stream, CUDA graphs and private pools, ``backend:cudaMallocAsync``, and the memory of other
processes.
"""

from profiler.device_rules.caching_allocator.allocator import (
    CachingAllocator,
    SimulatedOutOfMemory,
)
from profiler.device_rules.caching_allocator.blocks import Segment
from profiler.device_rules.caching_allocator.settings import (
    DEFAULT_CONFIGURATION,
    AllocatorSettings,
    configuration,
    configure,
)
from profiler.device_rules.caching_allocator.sizes import (
    LARGE_SEGMENT_BYTES,
    MIN_BLOCK_BYTES,
    round_size,
    segment_size,
)

__all__ = [
    "DEFAULT_CONFIGURATION",
    "LARGE_SEGMENT_BYTES",
    "MIN_BLOCK_BYTES",
    "AllocatorSettings",
    "CachingAllocator",
    "Segment",
    "SimulatedOutOfMemory",
    "configuration",
    "configure",
    "round_size",
    "segment_size",
]
