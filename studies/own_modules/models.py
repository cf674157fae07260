"""Models that are no image classifiers of timm, small, with random weights and a batch each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers as tf
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models as vision
from torchvision.models import detection, segmentation, video

Made = dict[str, Any]
"""Arguments of ``planner.estimate``: module, batch, loss."""

TOKENS, WORDS = 64, 500


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class UNet(nn.Module):
    """A U-Net of three levels."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([_block(3, 16), _block(16, 32), _block(32, 64)])
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)]
        )
        self.join = nn.ModuleList([_block(64, 32), _block(32, 16)])
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to scores of pixels."""
        kept = []
        for block in self.down:
            x = block(functional.max_pool2d(x, 2) if kept else x)
            kept.append(x)
        for up, join, skip in zip(self.up, self.join, kept[-2::-1], strict=True):
            x = join(torch.cat([up(x), skip], dim=1))
        return self.head(x)


class Head(nn.Module):
    """A feature pyramid and a detection head."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.backbone = vision.resnet18(weights=None)
        self.pyramid = vision.detection.backbone_utils.FeaturePyramidNetwork([128, 256, 512], 64)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of all outputs of the head as a loss."""
        net = self.backbone
        x = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(x)))))
        levels = {}
        for name in ("layer2", "layer3", "layer4"):
            x = levels[name] = getattr(net, name)(x)
        out = self.head(list(self.pyramid(levels).values()))
        flat = out.values() if isinstance(out, Mapping) else [t for part in out for t in part]
        return sum(t.square().mean() for t in flat)


class Autoencoder(nn.Module):
    """A convolutional autoencoder; with ``is_variational`` one that samples."""

    def __init__(self, *, is_variational: bool) -> None:
        super().__init__()
        self.is_variational = is_variational
        self.encode = nn.Sequential(
            nn.Conv2d(3, 16, 4, 2, 1), nn.GELU(), nn.Conv2d(16, 32, 4, 2, 1), nn.GELU()
        )
        self.mean, self.spread = nn.Conv2d(32, 8, 1), nn.Conv2d(32, 8, 1)
        self.decode = nn.Sequential(
            nn.ConvTranspose2d(8, 16, 4, 2, 1), nn.GELU(), nn.ConvTranspose2d(16, 3, 4, 2, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the loss."""
        hidden = self.encode(x)
        code = self.mean(hidden)
        loss = 0.0
        if self.is_variational:
            spread = self.spread(hidden)
            loss = -0.5 * (1 + spread - code.square() - spread.exp()).mean()
            code = code + torch.randn_like(code) * (0.5 * spread).exp()
        return functional.mse_loss(self.decode(code), x) + loss


class TwoTower(nn.Module):
    """An image tower and a text tower with a contrastive loss."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(
            _block(3, 32), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, 64)
        )
        self.text = nn.Sequential(nn.EmbeddingBag(WORDS, 128), nn.ReLU(), nn.Linear(128, 64))

    def forward(self, images: Tensor, words: Tensor) -> Tensor:
        """Return the loss."""
        a = functional.normalize(self.image(images), dim=-1)
        b = functional.normalize(self.text(words), dim=-1)
        scores = a @ b.T / 0.07
        labels = torch.arange(len(images), device=images.device)
        return functional.cross_entropy(scores, labels) + functional.cross_entropy(scores.T, labels)


class Recurrent(nn.Module):
    """A text classifier on a recurrent layer."""

    def __init__(self, layer: Callable[..., nn.Module], **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 64)
        self.layer = layer(64, 96, batch_first=True, **options)
        self.head = nn.Linear(96 * (2 if options.get("bidirectional") else 1), 4)

    def forward(self, words: Tensor) -> Tensor:
        """Return scores of classes."""
        return self.head(self.layer(self.embed(words))[0].mean(dim=1))


class Encoder(nn.Module):
    """A language model on PyTorch's own Transformer encoder."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.1, batch_first=True)
        self.embed, self.layers = nn.Embedding(WORDS, 64), nn.TransformerEncoder(layer, 3)
        self.head = nn.Linear(64, WORDS)

    def forward(self, words: Tensor) -> Tensor:
        """Return the loss of the next word."""
        mask = nn.Transformer.generate_square_subsequent_mask(words.shape[1], device=words.device)
        scores = self.head(self.layers(self.embed(words), mask=mask, is_causal=True))
        return functional.cross_entropy(scores[:, :-1].flatten(0, 1), words[:, 1:].flatten())


class PointNet(nn.Module):
    """A network on sets of points."""

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Sequential(
            nn.Conv1d(3, 64, 1), nn.BatchNorm1d(64), nn.ReLU(), nn.Conv1d(64, 256, 1), nn.ReLU()
        )
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores of classes."""
        return self.head(self.point(x).amax(dim=-1))


class Graph(nn.Module):
    """Two graph convolutions with a dense adjacency matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 128), nn.Linear(128, 7)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        """Return scores of nodes."""
        return edges @ self.second(functional.relu(edges @ self.first(nodes)))


class Recommender(nn.Module):
    """Sparse features through embeddings, dense ones through a perceptron, and their products."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(2000, 32) for _ in range(6)])
        self.dense = nn.Sequential(nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, 32))
        self.top = nn.Linear(32 + 49, 1)

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        """Return a score."""
        first = self.dense(dense)
        parts = [first, *(t(sparse[:, i]) for i, t in enumerate(self.tables))]
        stacked = torch.stack(parts, dim=1)
        products = (stacked @ stacked.transpose(1, 2)).flatten(1)
        return self.top(torch.cat([first, products], dim=1)).squeeze(1)


class Residual1d(nn.Module):
    """Dilated convolutions on audio."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 32, 1)
        self.layers = nn.ModuleList(
            [nn.Conv1d(32, 64, 3, padding=2**i, dilation=2**i) for i in range(6)]
        )
        self.head = nn.Conv1d(32, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores of samples."""
        x = self.first(x)
        for layer in self.layers:
            a, b = layer(x).chunk(2, dim=1)
            x = x + a.tanh() * b.sigmoid()
        return self.head(x)


class Triplet(nn.Module):
    """A shared network and a triplet loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(_block(3, 24), nn.MaxPool2d(2), _block(24, 48), nn.Flatten())

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """Return the loss."""
        return functional.triplet_margin_loss(self.net(a), self.net(b), self.net(c))


def _images(count: int = 4, size: int = 64) -> Tensor:
    return torch.rand(count, 3, size, size)


def _words(count: int = 8) -> Tensor:
    return torch.randint(0, WORDS, (count, TOKENS))


def _dense(name: str, **options: Any) -> Callable[[], Made]:
    def make() -> Made:
        net = getattr(segmentation, name)(
            weights=None, weights_backbone=None, num_classes=5, **options
        )
        return {
            "module": net,
            "batch": (_images(2, 96), torch.randint(0, 5, (2, 96, 96))),
            "loss": lambda out, target: functional.cross_entropy(out["out"], target),
        }

    return make


def _text(model: str, config: str, **options: Any) -> Callable[[], Made]:
    """Return the factory of a model of transformers that returns its own loss."""

    def make() -> Made:
        kind = getattr(tf, model)
        net = kind(getattr(tf, config)(**options)).train()
        words = _words()
        labels = torch.zeros(8, dtype=torch.long) if "Sequence" in model else words
        return {"module": net, "batch": {"input_ids": words, "labels": labels}}

    return make


def _with_loss(module: nn.Module, batch: Any, loss: Any = functional.cross_entropy) -> Made:
    return {"module": module, "batch": batch, "loss": loss}


def _labels(count: int, classes: int) -> Tensor:
    return torch.randint(0, classes, (count,))


_SMALL = {"vocab_size": WORDS, "hidden_size": 64, "num_hidden_layers": 3}
_BERT = _SMALL | {"num_attention_heads": 4, "intermediate_size": 128}

MODELS: Mapping[str, Callable[[], Made]] = {
    "u_net": lambda: _with_loss(UNet(), (_images(), torch.randint(0, 5, (4, 64, 64)))),
    "fcn_resnet50": _dense("fcn_resnet50"),
    "deeplabv3_mobilenet": _dense("deeplabv3_mobilenet_v3_large"),
    "lraspp_mobilenet": _dense("lraspp_mobilenet_v3_large"),
    "retinanet_head": lambda: {
        "module": Head(detection.retinanet.RetinaNetHead(64, 9, 20)),
        "batch": (_images(2, 128),),
    },
    "rpn_head": lambda: {
        "module": Head(detection.rpn.RPNHead(64, 9)),
        "batch": (_images(2, 128),),
    },
    "fcos_head": lambda: {
        "module": Head(detection.fcos.FCOSHead(64, 1, 20)),
        "batch": (_images(2, 128),),
    },
    "autoencoder": lambda: {"module": Autoencoder(is_variational=False), "batch": (_images(),)},
    "vae": lambda: {"module": Autoencoder(is_variational=True), "batch": (_images(),)},
    "two_tower": lambda: {"module": TwoTower(), "batch": (_images(8), _words())},
    "triplet": lambda: {"module": Triplet(), "batch": (_images(), _images(), _images())},
    "gru": lambda: _with_loss(Recurrent(nn.GRU), (_words(), _labels(8, 4))),
    "lstm": lambda: _with_loss(Recurrent(nn.LSTM, num_layers=2), (_words(), _labels(8, 4))),
    "lstm_bidirectional": lambda: _with_loss(
        Recurrent(nn.LSTM, bidirectional=True), (_words(), _labels(8, 4))
    ),
    "rnn": lambda: _with_loss(Recurrent(nn.RNN), (_words(), _labels(8, 4))),
    "encoder": lambda: {"module": Encoder(), "batch": (_words(),)},
    "point_net": lambda: _with_loss(PointNet(), (torch.rand(8, 3, 512), _labels(8, 10))),
    "graph": lambda: _with_loss(
        Graph(), ((torch.rand(400, 64), torch.rand(400, 400)), _labels(400, 7))
    ),
    "recommender": lambda: _with_loss(
        Recommender(),
        ((torch.rand(64, 13), torch.randint(0, 2000, (64, 6))), torch.rand(64)),
        functional.binary_cross_entropy_with_logits,
    ),
    "dilated_audio": lambda: _with_loss(
        Residual1d(), (torch.rand(2, 1, 2000), torch.randint(0, 16, (2, 2000)))
    ),
    "video_r3d_18": lambda: _with_loss(
        video.r3d_18(weights=None, num_classes=5), (torch.rand(1, 3, 8, 48, 48), _labels(1, 5))
    ),
    "bert_classifier": _text("BertForSequenceClassification", "BertConfig", **_BERT),
    "distilbert": _text(
        "DistilBertForSequenceClassification", "DistilBertConfig",
        vocab_size=WORDS, dim=64, n_layers=3, n_heads=4, hidden_dim=128,
    ),
    "roberta_masked": _text("RobertaForMaskedLM", "RobertaConfig", **_BERT),
    "electra": _text("ElectraForSequenceClassification", "ElectraConfig", **_BERT),
    "albert": _text("AlbertForSequenceClassification", "AlbertConfig", embedding_size=32, **_BERT),
    "gpt2": _text("GPT2LMHeadModel", "GPT2Config", vocab_size=WORDS, n_embd=64, n_layer=3, n_head=4),
    "opt": _text(
        "OPTForCausalLM", "OPTConfig", ffn_dim=128, word_embed_proj_dim=64, num_attention_heads=4,
        **_SMALL,
    ),
    "llama": _text("LlamaForCausalLM", "LlamaConfig", **_BERT),
    "qwen2": _text("Qwen2ForCausalLM", "Qwen2Config", num_key_value_heads=2, **_BERT),
    "t5": _text(
        "T5ForConditionalGeneration", "T5Config",
        vocab_size=WORDS, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4,
        decoder_start_token_id=0,
    ),
    "segformer": lambda: {
        "module": tf.SegformerForSemanticSegmentation(
            tf.SegformerConfig(  # type: ignore[call-arg]
                num_labels=5, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1]
            )
        ).train(),
        "batch": {"pixel_values": _images(2), "labels": torch.randint(0, 5, (2, 64, 64))},
    },
    "swin2sr": lambda: {
        "module": _SuperResolution(),
        "batch": (_images(1, 32), _images(1, 64)),
        "loss": functional.l1_loss,
    },
}  # fmt: skip


class _SuperResolution(nn.Module):
    """Swin2SR, with its reconstruction alone as output."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tf.Swin2SRForImageSuperResolution(
            tf.Swin2SRConfig(image_size=32, embed_dim=36, depths=[2, 2], num_heads=[3, 3])
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return images of twice the size."""
        return self.net(pixel_values=x).reconstruction
