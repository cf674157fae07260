"""What a call saves on CUDA, as closed forms, seen through the imitation on fake CPU tensors."""

from __future__ import annotations

from math import ceil

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from profiler.device_rules.cpu_kernels import imitate_cpu
from profiler.device_rules.cuda_attention import CUDNN, EFFICIENT, FLASH, MATH, choose_attention
from profiler.device_rules.cuda_autocast import CASTING, LOWER
from profiler.device_rules.cuda_dispatch import imitate_cuda
from profiler.device_rules.cuda_scratch import CudaKernels
from profiler.device_rules.kernel_bytes import bytes_inside
from profiler.devices.table import lookup, multiprocessors

TURING, AMPERE, ADA, HOPPER = (7, 5), (8, 0), (8, 9), (9, 0)
BATCH, HEADS, TOKENS, HEAD = 2, 6, 197, 64
WIDTH = HEADS * HEAD


def imitate(target: str):
    return imitate_cuda(TURING) if target == "cuda" else imitate_cpu()


@pytest.fixture(autouse=True)
def _fake():
    with FakeTensorMode():
        yield


class Saved:
    """Bytes of distinct storages that autograd saves inside, those given left out."""

    def __init__(self, *given: Tensor) -> None:
        self.seen = {t.untyped_storage()._cdata for t in given}
        self.kept: list[Tensor] = []
        self.nbytes = 0

    def pack(self, tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in self.seen:
            self.seen.add(key)
            self.kept.append(tensor)
            self.nbytes += tensor.untyped_storage().nbytes()
        return tensor

    def hooks(self) -> saved_tensors_hooks:
        return saved_tensors_hooks(self.pack, lambda tensor: tensor)


class Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[object, tuple[object, ...], object]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.seen.append((func._overloadpacket, args, out))
        return out


def qkv(dtype: torch.dtype, *, head: int = HEAD) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (
        torch.empty(BATCH, HEADS, TOKENS, head, dtype=dtype, requires_grad=True) for _ in range(3)
    )
    return q, k, v


def up(number: int, multiple: int) -> int:
    return ceil(number / multiple) * multiple


# --- attention


def test_efficient_attention_saves_output_and_padded_logsumexp():
    tensors = qkv(torch.float32)
    saved = Saved(*tensors)
    with imitate_cuda(TURING), saved.hooks():
        out = F.scaled_dot_product_attention(*tensors)
    logsumexp = BATCH * HEADS * up(TOKENS, 32) * 4
    seed_and_offset = 2 * 8
    assert saved.nbytes == BATCH * TOKENS * WIDTH * 4 + logsumexp + seed_and_offset
    assert out.transpose(1, 2).is_contiguous()


def test_flash_attention_saves_output_and_logsumexp():
    tensors = qkv(torch.bfloat16)
    saved = Saved(*tensors)
    with imitate_cuda(AMPERE), saved.hooks():
        F.scaled_dot_product_attention(*tensors)
    logsumexp = BATCH * HEADS * TOKENS * 4
    random_state = 2 * 8 + 8
    assert saved.nbytes == BATCH * TOKENS * WIDTH * 2 + logsumexp + random_state


def test_flash_attention_pads_odd_heads():
    tensors = qkv(torch.float16, head=20)
    saved = Saved(*tensors)
    with imitate_cuda(AMPERE), saved.hooks():
        out = F.scaled_dot_product_attention(*tensors)
    assert out.shape[-1] == 20
    padded = BATCH * HEADS * TOKENS * 24 * 2
    assert saved.nbytes == 4 * padded + BATCH * HEADS * TOKENS * 4 + 24


def test_no_logsumexp_without_gradients():
    q, k, v = (t.detach() for t in qkv(torch.float32))
    with imitate_cuda(TURING), Calls() as calls:
        F.scaled_dot_product_attention(q, k, v)
    packet = torch.ops.aten._scaled_dot_product_efficient_attention
    (out,) = [out for func, _, out in calls.seen if func is packet]
    assert out[1].numel() == 0


def test_bias_rows_are_padded_and_its_gradient_is_full_size():
    batch, heads, tokens = 3, 4, 49
    q, k, v = (torch.empty(batch, heads, tokens, 32, requires_grad=True) for _ in range(3))
    bias = torch.empty(1, heads, tokens, tokens, requires_grad=True)
    saved = Saved(q, k, v)
    with imitate_cuda(TURING):
        with saved.hooks():
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        output = batch * tokens * heads * 32 * 4
        logsumexp = batch * heads * up(tokens, 32) * 4
        assert saved.nbytes == output + logsumexp + 16 + heads * tokens * 56 * 4
        with Calls() as calls:
            out.backward(torch.empty_like(out))
    packet = torch.ops.aten._scaled_dot_product_efficient_attention_backward
    (grads,) = [out for func, _, out in calls.seen if func is packet]
    assert grads[3].untyped_storage().nbytes() == batch * heads * tokens * 64 * 4
    assert bias.grad.shape == bias.shape


@pytest.mark.parametrize(
    ("dtype", "capability", "mask", "head", "expected"),
    [
        (torch.float32, TURING, False, 64, EFFICIENT),
        (torch.float32, HOPPER, False, 64, EFFICIENT),
        (torch.float16, TURING, False, 64, EFFICIENT),
        (torch.bfloat16, TURING, False, 64, MATH),  # no bfloat16 before Ampere
        (torch.bfloat16, AMPERE, False, 64, FLASH),
        (torch.float16, ADA, True, 64, EFFICIENT),  # flash takes no bias
        (torch.float16, ADA, False, 208, EFFICIENT),  # flash cannot train it on sm86-89
        (torch.float16, AMPERE, False, 208, FLASH),
        (torch.bfloat16, HOPPER, False, 64, CUDNN),
        (torch.bfloat16, HOPPER, False, 192, FLASH),
        (torch.bfloat16, HOPPER, True, 64, CUDNN),
        (torch.float16, TURING, False, 20, MATH),  # 16-byte rows for tensor cores
        (torch.float32, TURING, False, 30, EFFICIENT),  # none without tensor cores
        (torch.float32, AMPERE, False, 30, MATH),
    ],
)
def test_choice_of_attention(dtype, capability, mask, head, expected):
    q, k, v = qkv(dtype, head=head)
    bias = torch.empty(1, HEADS, TOKENS, TOKENS, dtype=dtype) if mask else None
    choice = choose_attention(q, k, v, bias, dropout=0.0, learns=True, capability=capability)
    assert choice == expected


def test_cudnn_takes_no_bias_that_learns():
    q, k, v = qkv(torch.bfloat16)
    bias = torch.empty(1, HEADS, TOKENS, TOKENS, dtype=torch.bfloat16, requires_grad=True)
    choice = choose_attention(q, k, v, bias, dropout=0.0, learns=True, capability=HOPPER)
    assert choice == EFFICIENT


def inside(dtype: torch.dtype, capability: tuple[int, int]) -> int:
    with imitate_cuda(capability), Calls() as calls:
        out = F.scaled_dot_product_attention(*qkv(dtype))
        out.backward(torch.empty_like(out))
    kernels = CudaKernels(multiprocessors(lookup("rtx-2060-super")))
    return max(
        bytes_inside(kernels.inside(packet.default, args, {}))
        for packet, args, _ in calls.seen
        if "attention_backward" in str(packet)
    )


def test_bytes_inside_efficient_backward():
    delta = BATCH * HEADS * TOKENS * 4
    tiles = BATCH * HEADS * ceil(TOKENS / 64)  # one 64 x 64 tile is as wide as the head
    assert inside(torch.float32, TURING) == delta + tiles * (64 * 64 * 4 + 16)


def test_bytes_inside_flash_backward():
    rows = BATCH * HEADS * up(TOKENS, 128)
    assert inside(torch.bfloat16, AMPERE) == rows * HEAD * 4 + rows * 4


# --- dropout and norms


@pytest.mark.parametrize(("target", "mask_bytes"), [("cuda", 1), ("cpu", 4)])
def test_dropout_mask(target, mask_bytes):
    image = torch.empty(8, 100, requires_grad=True)
    saved = Saved(image)
    with imitate(target), saved.hooks():
        F.dropout(image, 0.1, training=True)
    assert saved.nbytes == 8 * 100 * mask_bytes


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.5, False)])
def test_dropout_that_does_nothing_saves_nothing(p, training):
    image = torch.empty(8, 100, requires_grad=True)
    saved = Saved(image)
    with imitate_cuda(TURING), saved.hooks():
        F.dropout(image, p, training=training)
    assert saved.nbytes == 0


def test_rms_norm_saves_one_number_a_row():
    image, weight = torch.empty(8, 100, requires_grad=True), torch.empty(100, requires_grad=True)
    saved = Saved(image, weight)
    with imitate_cuda(TURING), saved.hooks():
        F.rms_norm(image, (100,), weight, 1e-6).sum().backward()
    assert saved.nbytes == 8 * 4
    assert image.grad.shape == image.shape


# --- autocast

ROWS, COLUMNS = 32, 48


def saved_under_autocast(target: str, dtype: torch.dtype, call) -> int:
    """Bytes a function saves of a bf16 or fp16 tensor that comes out of a matmul."""
    left, right = torch.empty(ROWS, 8, requires_grad=True), torch.empty(8, COLUMNS)
    with imitate(target), torch.autocast("cpu", dtype=dtype):
        image = left @ right
        saved = Saved(image)
        with saved.hooks():
            call(image)
    return saved.nbytes


def test_layer_norm_under_autocast_keeps_a_cast_copy_on_cuda_only():
    def norm(image: Tensor) -> Tensor:
        return F.layer_norm(image, (COLUMNS,))

    # CPU: fp32 or bf16 statistics of a bf16 input that is there anyway
    assert saved_under_autocast("cpu", torch.bfloat16, norm) < ROWS * COLUMNS * 2
    cast, statistics = ROWS * COLUMNS * 4, 2 * ROWS * 4
    assert saved_under_autocast("cuda", torch.bfloat16, norm) == cast + statistics
    assert saved_under_autocast("cuda", torch.float16, norm) == cast + statistics


def test_softmax_under_autocast_is_fp32_on_cuda_only():
    def softmax(image: Tensor) -> Tensor:
        return image.softmax(-1)

    assert saved_under_autocast("cpu", torch.float16, softmax) == ROWS * COLUMNS * 2
    assert saved_under_autocast("cuda", torch.float16, softmax) == ROWS * COLUMNS * 4


def test_softmax_of_fp16_needs_no_cast_copy_but_bf16_does():
    copies = {}
    for dtype in (torch.float16, torch.bfloat16):
        image = torch.empty(ROWS, COLUMNS, dtype=dtype)
        with imitate_cuda(TURING), torch.autocast("cpu", dtype=dtype), Calls() as calls:
            assert image.softmax(-1).dtype == torch.float32
        copies[dtype] = sum(func is torch.ops.aten._to_copy for func, _, _ in calls.seen)
    assert copies == {torch.float16: 0, torch.bfloat16: 1}


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda x, y: x.sum(-1), torch.float32),
        (lambda x, y: x.exp(), torch.float32),
        (lambda x, y: x**2, torch.float32),
        (lambda x, y: x.norm(), torch.float32),
        (lambda x, y: x.norm(2, -1), torch.float32),
        (lambda x, y: F.softplus(x), torch.float32),
        (lambda x, y: x.cumsum(0), torch.float32),
        (lambda x, y: x.log_softmax(-1), torch.float32),
        (lambda x, y: x.sum(-1, dtype=torch.float64), torch.float64),
        (lambda x, y: F.gelu(x), torch.bfloat16),
        (lambda x, y: torch.addcmul(x, x, y), torch.float32),
        (lambda x, y: torch.mv(y, y[0]), torch.bfloat16),
        (lambda x, y: torch.einsum("ij,kj->ik", x, y), torch.bfloat16),
        (lambda x, y: F.interpolate(x[None, None], scale_factor=2), torch.float32),
        (lambda x, y: F.pad(x[None], (1, 1), mode="reflect"), torch.bfloat16),
        (lambda x, y: torch.cat([x, x]), torch.bfloat16),
        (lambda x, y: F.cross_entropy(x, torch.zeros(ROWS, dtype=torch.long)), torch.float32),
    ],
)
def test_result_precision_under_autocast(call, expected):
    x = torch.empty(ROWS, COLUMNS, dtype=torch.bfloat16)
    y = torch.empty(ROWS, COLUMNS)
    with imitate_cuda(TURING), torch.autocast("cpu", dtype=torch.bfloat16):
        assert call(x, y).dtype == expected


def test_lists_are_those_of_this_build():
    registered = torch._C._dispatch_get_registrations_for_dispatch_key("AutocastCUDA")
    ours = (name for name in registered if name.startswith("aten::"))
    aten = {name.removeprefix("aten::") for name in ours}
    # the overloads of named tensors are gone since torch 2.11
    names = {name for name in aten if "imname" not in name and ".names_" not in name}
    # cuDNN's own operations are not called on the CPU; binary_cross_entropy is refused outright
    beyond = {
        "_cudnn_rnn",
        "cudnn_convolution",
        "cudnn_convolution_transpose",
        "binary_cross_entropy",
        "linalg_matrix_sqrth",
    }
    assert names - beyond <= {*LOWER, *CASTING}
    # torch 2.10 has no rule for rms_norm; the replay gives it none then
    assert {*LOWER, *CASTING} - names <= {"rms_norm"}
    image = torch.empty(ROWS, COLUMNS, dtype=torch.bfloat16)
    with imitate_cuda(TURING), torch.autocast("cpu", dtype=torch.bfloat16):
        normed = F.rms_norm(image, (COLUMNS,))
    assert normed.dtype == (torch.float32 if "rms_norm" in names else torch.bfloat16)


def test_nothing_stays_behind():
    image = torch.empty(4, 4, requires_grad=True)
    with imitate_cuda(TURING):
        pass
    with Calls() as calls, torch.autocast("cpu", dtype=torch.bfloat16):
        F.dropout(image, 0.5, training=True)
        assert image.bfloat16().exp().dtype == torch.bfloat16
    assert torch.ops.aten.native_dropout not in [func for func, _, _ in calls.seen]
