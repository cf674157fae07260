"""Choose the recipe of a training by method, backbone, weights and number of training images.

    default_recipe   the recipe that ``recommend`` writes into a plan
    paper_recipe     that of the code of arXiv 2607.02158 (``--recipe paper``)
    earlier_recipe   that of plans written before plans had recipes

The default recipe has a linear warm-up, a cosine to zero and no decay of norms and biases. On
pretrained weights a new classifier starts at zero, as in BiT (arXiv 1912.11370): timm's random
classifier of EfficientNet-Lite0 is so large that a linear probe of digits at 64 px reached 90.0 %
in four epochs, and 93.9 % from zero (``studies/recipes``).

Learning rates on pretrained weights are AdamW's for about 32 images per step. They are not scaled
to other batches, which no study here compared; ``source`` says so. Those of convolutional backbones
were compared on EfficientNet-Lite0 (``studies/recipes``): three times as much diverges for ``full``
and ``lora``. Those of transformers are published ones and ones that were compared on two small nets
(``studies/transformer_rates``), since no package holds pretrained weights of a large one. Random
weights have rates of their own, compared on digits at 64 px with random ViT-S and ResNet-18.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from planner.methods.kinds import MethodKind, method_kind
from planner.recipe import WARM_UP_SHARE, InitialWeights, Recipe
from profiler.training_step import WEIGHT_DECAY, default_learning_rate
from profiler.workload import Workload

if TYPE_CHECKING:
    from torch import nn

PAPER_CODE = "the code of arXiv 2607.02158"

BackboneKind = Literal["convolutional", "normalised by layer"]

PUBLISHED_1E_3 = "AdamW at 1e-3, the rate of FacT (arXiv 2212.03145) and of MambaPEFT (2411.03855)"


@dataclass(frozen=True, slots=True)
class _Rate:
    """AdamW's learning rate, its source, and the classifier's rate over it."""

    value: float
    source: str
    head_ratio: float = 1.0


def _tried(method: str) -> str:
    return f"near the best of the rates tried for {method} on EfficientNet-Lite0 (studies/recipes)"


def _tried_on_letters(method: str) -> str:
    return f"near the best of the rates tried for {method} (studies/transformer_rates)"


RATES: dict[tuple[BackboneKind, MethodKind], _Rate] = {
    ("convolutional", "full"): _Rate(5e-4, _tried("full")),
    ("convolutional", "affine"): _Rate(1e-2, _tried("bn_head and bitfit")),
    ("convolutional", "low rank"): _Rate(3e-3, _tried("lora")),
    ("convolutional", "added"): _Rate(3e-3, "the rate of low-rank methods; not tried"),
    ("convolutional", "head"): _Rate(1e-2, _tried("head")),
    ("normalised by layer", "full"): _Rate(
        3e-4,
        "from MAE's 2e-3 for 1,024 images (arXiv 2111.06377), taken to 32 by the root of the batch "
        "size (2205.10287)",
        head_ratio=10.0,
    ),
    ("normalised by layer", "affine"): _Rate(1e-2, _tried_on_letters("bitfit and ssf")),
    ("normalised by layer", "low rank"): _Rate(1e-3, PUBLISHED_1E_3),
    ("normalised by layer", "added"): _Rate(3e-3, _tried_on_letters("adaptformer")),
    ("normalised by layer", "head"): _Rate(1e-2, _tried_on_letters("head")),
}

TRIED_BATCH = 32
"""Images of a step with which the rates for pretrained weights were tried."""

TRIED_RANK = 8
"""Rank of the low-rank methods whose rates were tried or published."""

TRIED_WIDTH = 384
"""Width of the narrowest transformer whose rates were published: ViT-S and Vim-S."""

WIDTH_METHODS: frozenset[MethodKind] = frozenset({"full", "low rank", "added", "head"})
"""Kinds of methods that train matrices of the backbone's width."""

BEIT = "arXiv 2106.08254"

LAYER_DECAY = 0.75
"""Layer decay of full training, that of BEiT-B (``BEIT``, table 9 of the appendix)."""

SGD_FACTOR = 10.0
"""Ratio of SGD's rate (momentum 0.9) to AdamW's; assumed, not published."""

SGD_CLAUSE = f", times {SGD_FACTOR:g} for SGD (assumed)"

WARM_UP_STEPS = 10
"""Steps of warm-up; fewer in a short training."""

TARGET_STEPS = 300
"""Optimizer steps of a training on a small data set."""

FEWEST_EPOCHS, MOST_EPOCHS = 5, 50

RANDOM_WEIGHTS_RATE, RANDOM_WEIGHTS_BATCH = 5e-4, 512
"""AdamW's rate and batch size for full training of random weights, from DeiT (arXiv 2012.12877).

The rate is scaled by the square root of the batch size, as for Adam (arXiv 2205.10287); for 32
images it is 1.25e-4. After 44 steps ViT-S reached 47 % at 1e-4, 33 % at 5e-4 and 11 % at 1e-3.
"""

RANDOM_WITHOUT_LAYER_NORM_RATE = 1e-3
"""AdamW's rate for full training of random weights without LayerNorm: Adam's own (1412.6980).

After 44 steps ResNet-18 reached 87 % at this rate and 54 % at 1e-4.
"""

RANDOM_ADDITION_RATE = 2e-3
"""AdamW's rate on random weights for methods that only add modules.

After 88 steps ViT-S reached, at this rate and at the paper's 5e-4: head 46 and 36 %, side tuning
55 and 36 %, AdaptFormer 62 and 37 %, prefix 46 and 35 %. Methods that change the backbone's weights
do not gain: BitFit 38 and 41 %, SSF 43 and 43 %, LoRA 16 and 57 % (44 steps).
"""

PAPER_EPOCHS = 10

RANDOM_ADDITION_METHODS = frozenset({"head", "adaptformer", "prefix", "side"})


def default_recipe(
    workload: Workload,
    backbone: nn.Module,
    *,
    weights: InitialWeights,
    train_images: int,
    balance: bool = False,
) -> Recipe:
    """Return the recipe for a workload on a data set of a given size.

    Args:
        workload: method, optimizer and batch.
        backbone: the backbone; its weights may be on ``meta``.
        weights: weights that the training begins with.
        train_images: number of training images, the selection part not included.
        balance: whether each class is drawn equally often.
    """
    steps_per_epoch = max(1, train_images // workload.effective_batch)
    epochs = min(MOST_EPOCHS, max(FEWEST_EPOCHS, math.ceil(TARGET_STEPS / steps_per_epoch)))
    warm_up = min(WARM_UP_STEPS, int(WARM_UP_SHARE * epochs * steps_per_epoch))
    kind = _backbone_kind(backbone)
    is_random = weights == "random"
    # AdaLoRA's ranks are those of its whole schedule, so no earlier epoch can be restored.
    selects_epoch = workload.method != "adalora"
    if is_random:
        rate = _random_weights_rate(workload, kind)
    else:
        rate = _pretrained_weights_rate(workload, backbone, kind)
    return Recipe(
        learning_rate=rate.value,
        head_rate_ratio=rate.head_ratio,
        layer_decay=LAYER_DECAY if not is_random and _decays_by_layer(workload, kind) else 1.0,
        schedule="cosine",
        warm_up_steps=warm_up,
        weight_decay=_weight_decay(workload),
        # GaLore's first projections are of the first gradients, which a zero classifier makes zero.
        zero_head=weights == "pretrained" and workload.method != "galore",
        epochs=epochs,
        patience_epochs=max(3, math.ceil(epochs / 3)) if selects_epoch else None,
        selects_epoch=selects_epoch,
        balance=balance,
        weights=weights,
        source=f"{rate.source}; {epochs} epochs for {train_images} images",
    )


def _pretrained_weights_rate(workload: Workload, backbone: nn.Module, kind: BackboneKind) -> _Rate:
    """Return the rate on pretrained weights; its source names every change of the tried rate."""
    method = method_kind(workload.method)
    rate = _of_width(_of_rank(RATES[kind, method], workload, method), backbone, kind, method)
    rate = _of_optimizer(rate, workload)
    source = rate.source
    if _decays_by_layer(workload, kind):
        source += f", with the layer decay of BEiT ({BEIT})"
    elif method == "full" and kind == "normalised by layer":
        source += ", but without the layer decay that it was compared with"
    if workload.effective_batch != TRIED_BATCH:
        source += f", not scaled to the {workload.effective_batch} images of a step"
    return replace(rate, source=source)


def _of_optimizer(rate: _Rate, workload: Workload) -> _Rate:
    """Return the rate of the workload's optimizer from AdamW's."""
    if workload.optimizer != "sgd":
        return rate
    return replace(
        rate,
        value=rate.value * SGD_FACTOR,
        source=rate.source + SGD_CLAUSE,
    )


def _of_rank(rate: _Rate, workload: Workload, method: MethodKind) -> _Rate:
    """Return the rate of a low-rank method at a rank above ``TRIED_RANK``.

    The scaling alpha / rank is 2 at every rank, so the change of a weight in a step grows about as
    the root of the rank. It is stable over ranks with the scaling alpha / sqrt(rank) (rsLoRA, arXiv
    2312.03732). Dividing the rate by the root of the rank has the same effect.
    """
    rank = workload.rank
    if method != "low rank" or rank is None or rank <= TRIED_RANK or workload.alpha is not None:
        return rate
    return replace(
        rate,
        value=rate.value * math.sqrt(TRIED_RANK / rank),
        source=f"{rate.source}, divided by the root of rank / {TRIED_RANK} (arXiv 2312.03732)",
    )


def _of_width(rate: _Rate, backbone: nn.Module, kind: BackboneKind, method: MethodKind) -> _Rate:
    """Return the rate for the width of a backbone that is narrower than ``TRIED_WIDTH``.

    Adam's best rate for matrices falls as one over their width; that of biases and scales does not
    depend on it (arXiv 2203.03466, table 3).
    """
    width = getattr(backbone, "num_features", TRIED_WIDTH)
    if kind == "convolutional" or method not in WIDTH_METHODS or width >= TRIED_WIDTH:
        return rate
    return replace(
        rate,
        value=rate.value * TRIED_WIDTH / width,
        source=f"{rate.source}, times {TRIED_WIDTH} / {width} for the width (arXiv 2203.03466)",
    )


def paper_recipe(workload: Workload, *, weights: InitialWeights = "pretrained") -> Recipe:
    """Return the recipe of the code of arXiv 2607.02158, as ``profiler.training_step`` cites it."""
    return Recipe(
        learning_rate=default_learning_rate(workload),
        schedule="constant",
        weight_decay=_weight_decay(workload),
        decay_norms_and_biases=True,
        epochs=PAPER_EPOCHS,
        selects_epoch=False,
        weights=weights,
        source=PAPER_CODE + (SGD_CLAUSE if workload.optimizer == "sgd" else ""),
    )


def earlier_recipe(workload: Workload, backbone: nn.Module, *, weights: InitialWeights) -> Recipe:
    """Return the recipe of plans that were written before plans had recipes.

    It is the paper's for pretrained weights. Random weights have rates of their own and a warm-up.
    """
    recipe = paper_recipe(workload)
    if weights == "pretrained":
        return recipe
    rate = _random_weights_rate(workload, _backbone_kind(backbone, rms_norm=False))
    return Recipe(
        learning_rate=rate.value,
        schedule="constant",
        warm_up_steps=WARM_UP_STEPS,
        weight_decay=recipe.weight_decay,
        decay_norms_and_biases=True,
        epochs=PAPER_EPOCHS,
        selects_epoch=False,
        weights="random",
        source=rate.source,
    )


def _backbone_kind(backbone: nn.Module, *, rms_norm: bool = True) -> BackboneKind:
    """Return ``normalised by layer`` if there is a LayerNorm or RMSNorm, else ``convolutional``.

    Args:
        backbone: the backbone.
        rms_norm: whether RMSNorm counts; it did not before plans had recipes.
    """
    from torch import nn

    norms = (nn.LayerNorm, nn.RMSNorm) if rms_norm else (nn.LayerNorm,)
    has_norm = any(isinstance(module, norms) for module in backbone.modules())
    return "normalised by layer" if has_norm else "convolutional"


def _decays_by_layer(workload: Workload, kind: BackboneKind) -> bool:
    """Return whether the layers of a backbone have different rates."""
    return kind == "normalised by layer" and workload.method == "full"


def _random_weights_rate(workload: Workload, kind: BackboneKind) -> _Rate:
    """Return the rate on random weights."""
    if workload.method in RANDOM_ADDITION_METHODS:
        source = "compared for modules added to random weights of ViT-S, on digits"
        rate = _Rate(RANDOM_ADDITION_RATE, source)
    elif workload.method != "full":
        adamw = workload.replace(optimizer="adamw")
        rate = _Rate(default_learning_rate(adamw), f"{PAPER_CODE}, random weights")
    elif kind == "convolutional":
        source = "Adam's own rate (arXiv 1412.6980), for full training of random weights"
        rate = _Rate(RANDOM_WITHOUT_LAYER_NORM_RATE, source)
    else:
        batch = workload.effective_batch
        rate = _Rate(
            RANDOM_WEIGHTS_RATE * math.sqrt(batch / RANDOM_WEIGHTS_BATCH),
            f"from DeiT's {RANDOM_WEIGHTS_RATE:g} for {RANDOM_WEIGHTS_BATCH} images (arXiv "
            f"2012.12877), taken to {batch} images by the root of the batch size (2205.10287), "
            "for full training of random weights",
        )
    return _of_optimizer(rate, workload)


def _weight_decay(workload: Workload) -> float:
    """Return AdamW's weight decay; the SGD of ``make_optimizer`` has none."""
    return 0.0 if workload.optimizer == "sgd" else WEIGHT_DECAY
