from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from profiler.errors import UnknownNameError
from profiler.models.backbones.mambavision import MambaVision
from profiler.models.backbones.timm_interface import create_model
from profiler.models.backbones.vim import Vim
from profiler.models.checkpointable_units import find_blocks, find_units
from profiler.models.unit_parts import branches_of, layers_of, parts_of_unit
from profiler.models.unit_runs import modules_of, with_runs

# Name, image edge, and what its units must be (None: only the properties are checked).
TIMM = [
    ("vit_tiny_patch16_224", 224, [f"blocks.{i}" for i in range(12)]),
    ("vit_small_patch14_dinov2", 518, [f"blocks.{i}" for i in range(12)]),
    ("vit_base_patch16_siglip_224", 224, [f"blocks.{i}" for i in range(12)]),
    (
        "tiny_vit_5m_224",
        224,
        [
            *("patch_embed", "stages.0.blocks.0", "stages.0.blocks.1"),
            *("stages.1.downsample", "stages.1.blocks.0", "stages.1.blocks.1"),
            *("stages.2.downsample", *(f"stages.2.blocks.{i}" for i in range(6))),
            *("stages.3.downsample", "stages.3.blocks.0", "stages.3.blocks.1"),
        ],
    ),
    (
        "resnet18",
        64,
        ["conv1+bn1+act1+maxpool", *(f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1))],
    ),
    ("resnet50d", 64, None),
    (
        "mobilenetv2_100",
        64,
        [
            "conv_stem+bn1",
            *(f"blocks.{i}.{j}" for i, n in enumerate((1, 2, 3, 4, 3, 3, 1)) for j in range(n)),
            "conv_head+bn2",
        ],
    ),
    (
        "mobilenetv3_small_100",
        64,
        [
            "conv_stem+bn1",
            *(f"blocks.{i}.{j}" for i, n in enumerate((1, 2, 3, 2, 3, 1)) for j in range(n)),
        ],
    ),
    (
        "convnext_atto",
        64,
        [
            "stem",
            *(
                name
                for i, n in enumerate((2, 2, 6, 2))
                for name in (
                    *([f"stages.{i}.downsample"] if i else []),
                    *(f"stages.{i}.blocks.{j}" for j in range(n)),
                )
            ),
        ],
    ),
    ("swin_tiny_patch4_window7_224", 224, None),
    ("levit_128s", 224, None),
    ("mambaout_femto", 64, None),
    ("pvt_v2_b0", 64, None),
    ("fastvit_t8", 64, None),
    ("edgenext_xx_small", 64, None),
    ("eva02_tiny_patch14_224", 224, None),
    ("regnetx_002", 64, ["stem", "s1", "s2", "s3", "s4"]),
    # registered in another order than they run in, or not called, or called inside another block
    (
        "coat_lite_mini",
        224,
        [
            name
            for i in (1, 2, 3, 4)
            for name in (f"patch_embed{i}", f"serial_blocks{i}.0", f"serial_blocks{i}.1")
        ],
    ),
    ("fasternet_t0", 64, None),
    ("xception41", 64, None),
    ("twins_svt_small", 224, None),
    ("vit_srelpos_small_patch16_224", 224, [f"blocks.{i}" for i in range(12)]),
]


def on_meta(build) -> nn.Module:
    with torch.device("meta"):
        return build().eval()


def check_against_a_forward(model: nn.Module, units: tuple[str, ...], edge: int) -> None:
    """Every unit runs once, in order, tensor to tensor, and none runs inside another."""
    ran: list[str] = []
    open_units: list[str] = []

    def before(name):
        def hook(module, args):
            assert isinstance(args[0], torch.Tensor)
            assert not open_units, f"{name} runs inside {open_units}"
            open_units.append(name)

        return hook

    def after(name):
        def hook(module, args, output):
            assert isinstance(output, torch.Tensor)
            open_units.remove(name)
            ran.append(name)

        return hook

    for name in units:
        modules_of(model, name)[0].register_forward_pre_hook(before(name))
        modules_of(model, name)[-1].register_forward_hook(after(name))
    with torch.no_grad():
        model(torch.empty(1, 3, edge, edge, device="meta"))
    assert tuple(ran) == units


@pytest.mark.parametrize(("name", "edge", "expected"), TIMM, ids=[t[0] for t in TIMM])
def test_units_run_once_in_order_tensor_to_tensor(name, edge, expected):
    model = on_meta(lambda: create_model(name))
    units = find_units(model)
    assert units
    if expected is not None:
        assert list(units) == expected
    check_against_a_forward(model, units, edge)


def test_a_constructor_that_reads_numbers_is_run_on_meta(monkeypatch):
    def constructor(name, *, classes):
        # as RegNet of timm 1.0.21
        widths = torch.unique(torch.arange(classes) // 2).tolist()
        return nn.Linear(len(widths), int(torch.tensor([classes])[0]))

    monkeypatch.setattr(timm, "create_model", constructor)
    model = on_meta(lambda: create_model("any", classes=6))
    assert model.weight.shape == (6, 3)
    assert model.weight.is_meta


def test_vim_units_are_its_layers():
    model = on_meta(lambda: Vim(dim=32, depth=3, img_size=64))
    assert find_units(model) == ("layers.0", "layers.1", "layers.2")
    check_against_a_forward(model, find_units(model), 64)


def test_mambavision_units_are_stem_blocks_and_downsampling():
    model = on_meta(lambda: MambaVision(dim=16, stem_dim=8, depths=(1, 1, 2, 2), img_size=64))
    assert find_units(model) == (
        "patch_embed",
        *("levels.0.blocks.0", "levels.0.downsample"),
        *("levels.1.blocks.0", "levels.1.downsample"),
        *("levels.2.blocks.0", "levels.2.blocks.1", "levels.2.downsample"),
        *("levels.3.blocks.0", "levels.3.blocks.1"),
    )
    check_against_a_forward(model, find_units(model), 64)


def test_a_tower_inside_a_wrapper_is_found():
    with torch.device("meta"):
        inner = timm.create_model("vit_tiny_patch16_224", depth=2)
        model = nn.ModuleDict({"vision_tower": nn.ModuleDict({"encoder": inner})})
    assert find_units(model) == (
        "vision_tower.encoder.blocks.0",
        "vision_tower.encoder.blocks.1",
    )


def test_most_parameters_of_convolutional_backbones_are_in_units():
    for name in ("tiny_vit_5m_224", "mobilenetv2_100", "convnext_atto", "resnet18"):
        model = on_meta(lambda name=name: timm.create_model(name, num_classes=0))
        inside = sum(
            p.numel()
            for unit in find_units(model)
            for module in modules_of(model, unit)
            for p in module.parameters()
        )
        assert inside > 0.75 * sum(p.numel() for p in model.parameters()), name


class ReadsItsInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.sum())


class Siblings(nn.Module):
    """A stem and a neck of loose layers around blocks; ``use`` says how forward joins them."""

    def __init__(self, use: str) -> None:
        super().__init__()
        self.use = use
        self.conv, self.norm, self.act = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        self.blocks = nn.Sequential(*(self.block() for _ in range(2)))
        self.neck, self.neck_norm = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)
        self.pool, self.squeeze = nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 6, 1)
        self.squeeze_norm = nn.BatchNorm2d(6)

    @staticmethod
    def block() -> nn.Module:
        return nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)))[0]

    def forward(self, x):
        convolved = self.conv(x)
        x = self.norm(convolved * 2 if self.use == "between" else convolved)
        if self.use == "beside":
            return self.blocks(self.act(x)).mean() + convolved.mean()
        if self.use == "as argument":
            x = self.act(input=x)
        elif self.use == "again":
            x = self.act(self.act(x))
        else:
            x = self.act(x)
        x = self.neck_norm(self.neck(self.blocks(x)))
        return self.squeeze_norm(self.squeeze(self.pool(x)))


@pytest.mark.parametrize(
    ("use", "runs"),
    [
        ("in a row", ["conv+norm+act", "neck+neck_norm"]),
        ("between", ["neck+neck_norm"]),  # norm and act alone hold no weight
        ("beside", []),
        ("as argument", ["conv+norm", "neck+neck_norm"]),
        ("again", ["conv+norm", "neck+neck_norm"]),
    ],
)
def test_a_run_is_called_in_a_row_and_seen_by_nobody_else(use, runs):
    model = Siblings(use).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    units = find_units(model)
    assert [unit for unit in units if unit not in find_blocks(model)] == runs
    if use == "in a row":
        assert units == ("conv+norm+act", "blocks.0", "blocks.1", "neck+neck_norm")
    # looking leaves weights, statistics, mode and hooks alone
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.norm.training
    assert not model.conv._forward_hooks


class Shares(nn.Module):
    """A block that calls another block of the model."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.own, self.other = Siblings.block(), other

    def forward(self, x):
        return self.other(self.own(x))


class Crossed(nn.Module):
    """A block registered before one that runs first, one inside another, one twice, one unused."""

    def __init__(self) -> None:
        super().__init__()
        self.late, self.early, self.inside, self.twice, self.unused = (
            Siblings.block() for _ in range(5)
        )
        self.blocks = nn.Sequential(Shares(self.inside))

    def forward(self, x):
        x = self.twice(self.early(x[:, :1].expand(-1, 4, -1, -1)))
        return self.twice(self.late(self.blocks(x)))


def test_units_are_in_the_order_of_calls_and_called_once_outside_others():
    model = Crossed()
    blocks = ("late", "early", "inside", "twice", "unused", "blocks.0")
    assert with_runs(model, blocks) == ("early", "blocks.0", "late")
    # a chain runs in order, which costs no forward
    vit = on_meta(lambda: timm.create_model("vit_tiny_patch16_224", depth=2))
    forwards: list[object] = []
    vit.register_forward_pre_hook(lambda module, _: forwards.append(module))
    assert find_units(vit) == ("blocks.0", "blocks.1")
    assert not forwards


def test_a_forward_that_meta_tensors_cannot_run_has_no_runs():
    model = Siblings("in a row")
    model.set_submodule("act", ReadsItsInput())
    assert find_units(model) == find_blocks(model)


def test_lora_changes_no_unit_and_no_parts():
    peft = pytest.importorskip("peft")
    linear = ["qkv", "fc1", "fc2", "proj"]
    for name, targets in (
        ("vit_tiny_patch16_224", linear),
        ("tiny_vit_5m_224", [*linear, "conv1.conv", "conv3.conv"]),
        ("resnet18", ["conv1"]),
        ("mobilenetv2_035", ["conv_stem", "conv_head"]),
    ):
        plain = timm.create_model(name, num_classes=3)
        units = find_units(plain)
        parts = [parts_of_unit(plain, unit) for unit in units]
        config = peft.LoraConfig(target_modules=targets)
        wrapped = peft.get_peft_model(plain, config).get_base_model()
        assert find_units(wrapped) == units
        assert [parts_of_unit(wrapped, unit) for unit in units] == parts


def test_parts_are_the_branches():
    with torch.device("meta"):
        vit = timm.create_model("vit_tiny_patch16_224", depth=1)
        convnext = timm.create_model("convnext_atto")
        mobile = timm.create_model("mobilenetv3_small_100")
        resnet = timm.create_model("resnet18")
    assert branches_of(vit, "blocks.0") == ("attn", "mlp")
    assert branches_of(convnext, "stages.0.blocks.0") == ("mlp",)
    assert branches_of(mobile, "blocks.1.0") == ()
    assert branches_of(resnet, "layer2.0") == ()
    assert branches_of(resnet, "conv1+bn1+act1+maxpool") == ()


def test_layers_are_in_the_order_of_what_a_value_costs_without_the_costliest():
    with torch.device("meta"):
        vit = timm.create_model("vit_tiny_patch16_224", depth=1)
        bottleneck = timm.create_model("resnet50", layers=(1, 1, 1, 1))
        basic = timm.create_model("resnet18")
        mobile = timm.create_model("mobilenetv3_small_100")
        norm_first = timm.create_model("convnext_atto")
    # 192 each, and 768 for fc2
    assert layers_of(vit, "blocks.0") == ("attn.qkv", "attn.proj", "mlp.fc1")
    # 128 values in for the expansion, 256 for the reduction and the shortcut, 9 x 128 between
    assert layers_of(bottleneck, "layer2.0") == ("conv3", "conv1", "downsample.0")
    assert layers_of(basic, "layer2.1") == ("conv1",)  # as dear as conv2, and before it
    # neither the depthwise convolution nor the gate
    assert layers_of(mobile, "blocks.1.0") == ("conv_pw",)
    assert parts_of_unit(mobile, "blocks.1.0").has_depthwise
    assert parts_of_unit(vit, "blocks.0").token_mixer == "attn"
    assert layers_of(norm_first, "stages.0.blocks.0") == ("mlp.fc1",)
    assert layers_of(basic, "conv1+bn1+act1+maxpool") == ()


def test_override_is_taken_and_checked():
    with torch.device("meta"):
        model = timm.create_model("resnet18")
    assert find_units(model, override=["layer1", "layer2"]) == ("layer1", "layer2")
    assert find_units(model, override=["conv1+bn1", "layer1"]) == ("conv1+bn1", "layer1")
    with pytest.raises(UnknownNameError, match=r"unknown unit 'layer9'.*layer1"):
        find_units(model, override=["layer9"])
