"""Batches of images that depend on the data set, a seed and an epoch, and on nothing else."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from planner.training.images.split import indices_by_label
from profiler.errors import UsageError, check_whole_number

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import DataLoader


class LabelledSet(Protocol):
    """A map-style set of (tensor, label), such as an ``ImageSet``.

    Attributes:
        labels: class index of each item.
    """

    @property
    def labels(self) -> Sequence[int]:
        """Class index of each item."""

    def __len__(self) -> int:
        """Return the number of items."""

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor, int]:
        """Return an item by its index, or by (index, draw)."""


def batch_loader(
    image_set: LabelledSet,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    drop_last: bool,
    epoch: int = 0,
    skip: int = 0,
    balance: bool = False,
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Return a loader of (images [B, 3, S, S], labels [B]), or of features [B, D] and labels.

    Each pass over the loader is one epoch, with its own order and augmentations. With ``epoch`` and
    ``skip``, a resumed training gets the same images as an uninterrupted one.

    Args:
        image_set: images to load.
        batch_size: images per batch, B.
        shuffle: whether each epoch has a random order.
        seed: seed of the order and the augmentations.
        drop_last: whether to leave out a last batch with fewer images.
        epoch: number of the first pass.
        skip: number of images left out at the beginning of the first pass.
        balance: whether each class is shown equally often. An epoch then has as many images as
            before, those of small classes several times and those of large classes in part.

    Raises:
        UsageError: the batch size is not positive, no batch is full with ``drop_last``, or
            ``balance`` without ``shuffle``.
    """
    import torch
    from torch.utils.data import DataLoader

    check_whole_number("batch_size", batch_size, least=1)
    if balance and not shuffle:
        raise UsageError("balanced classes need a random order, got shuffle=False")
    if drop_last and len(image_set) < batch_size:
        raise UsageError(
            f"a batch of {batch_size} is larger than the data set of {len(image_set)} images; "
            "use a smaller batch or more images"
        )
    batches: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
        image_set,  # type: ignore[arg-type]  # a map-style data set by protocol, not by subclass
        batch_size=batch_size,
        sampler=_EpochSampler(
            len(image_set),
            shuffle=shuffle,
            seed=seed,
            epoch=epoch,
            skip=skip,
            balanced_labels=image_set.labels if balance else None,
        ),
        drop_last=drop_last,
        # Without a generator of its own the DataLoader draws a number from the global one.
        generator=torch.Generator().manual_seed(seed),
    )
    return batches


class _EpochSampler:
    """Yields (index, draw) for each image of an epoch; ``ImageSet`` describes the draw."""

    def __init__(
        self,
        length: int,
        *,
        shuffle: bool,
        seed: int,
        epoch: int,
        skip: int,
        balanced_labels: Sequence[int] | None,
    ) -> None:
        self._length, self._shuffle, self._seed = length, shuffle, seed
        self._epoch, self._skip = epoch, skip
        self._groups: dict[int, list[int]] | None = None
        if balanced_labels is not None:
            self._groups = indices_by_label(balanced_labels)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = random.Random(f"{self._seed}/{self._epoch}")
        if self._groups:
            order = _balanced_order(self._groups, self._length, rng)
        else:
            order = list(range(self._length))
            if self._shuffle:
                rng.shuffle(order)
        draws = ((index, rng.getrandbits(32)) for index in order)
        skipped = self._skip
        self._epoch, self._skip = self._epoch + 1, 0
        return islice(draws, skipped, None)


def _balanced_order(
    groups: Mapping[int, Sequence[int]], length: int, rng: random.Random
) -> list[int]:
    """Return indices in a random order, equally many of each class.

    The numbers of two classes differ by one at most. An image of a small class is shown again only
    after all images of its class were shown. This varies less than independent draws.

    Args:
        groups: indices of each class.
        length: number of indices to return.
        rng: random generator of the epoch.
    """
    share, rest = divmod(length, len(groups))
    with_one_more = set(rng.sample(sorted(groups), rest))
    order: list[int] = []
    for label, group in groups.items():
        wanted = share + (label in with_one_more)
        while wanted > 0:
            shown = rng.sample(group, min(wanted, len(group)))
            order += shown
            wanted -= len(shown)
    rng.shuffle(order)
    return order
