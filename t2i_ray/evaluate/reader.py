"""The reader: a small classifier that reads attributes off pictures, trained on real ones.

It is made once for a data set and a picture size, and kept below ``readers/<hash>/``:

    <sha256>.safetensors   the weights
    reader.json            written last: what it is, and how well it reads real test pictures
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from t2i_ray import config
from t2i_ray.config import UserError
from t2i_ray.data import Prepared, counter_rng
from t2i_ray.evaluate.pictures import batches, real_pictures, samples_of
from t2i_ray.storage import MissingKey, Store

VERSION = 1
PIXELS = 32  # larger and smaller pictures are brought to this size: time is the same for all
FEATURES = 128
EPOCHS = 20  # of a small data set; a large one is seen STEPS times BATCH pictures
STEPS, BATCH, RATE = 1200, 64, 4e-3
Values = Mapping[str, list[str]]


class Network(nn.Module):
    """Five layers of convolution, one hidden layer, and a linear head for every attribute."""

    def __init__(self, values: Values) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *_convolution(3, 32, 5, 2),
            *_convolution(32, 64),
            nn.MaxPool2d(2),
            *_convolution(64, 128),
            *_convolution(128, 128, 3, 2),
            nn.Flatten(),
            nn.Linear(128 * 16, FEATURES),
            nn.ReLU(),
        )
        self.names = list(values)
        self.sizes = [len(options) for options in values.values()]
        self.heads = nn.Linear(FEATURES, sum(self.sizes))

    def forward(self, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """[n, 3, 32, 32] in [-1, 1] to features [n, 128] and, per attribute, logits [n, values]."""
        features = self.trunk(pixels.contiguous(memory_format=torch.channels_last))
        logits = self.heads(features).split(self.sizes, 1)
        return features, dict(zip(self.names, logits, strict=True))


def _convolution(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


@dataclass(frozen=True)
class Reading:
    """What was read off n pictures."""

    values: dict[str, np.ndarray]  # attribute -> int64 [n], index into its values
    features: np.ndarray  # float64 [n, 128], of the last hidden layer


@dataclass(frozen=True)
class Reader:
    """A trained reader, and the share of real test pictures that it reads rightly."""

    data: config.Data
    network: Network
    accuracy: dict[str, float]

    def read(self, images: np.ndarray) -> Reading:
        """Read uint8 pictures [n, S, S, 3]."""
        parts = [self._read(images[at : at + 256]) for at in range(0, len(images), 256)]
        return Reading(
            {name: np.concatenate([part.values[name] for part in parts]) for name in self.accuracy},
            np.concatenate([part.features for part in parts]),
        )

    @torch.inference_mode()
    def _read(self, images: np.ndarray) -> Reading:
        features, logits = self.network(_pixels(images))
        values = {name: score.argmax(1).numpy() for name, score in logits.items()}
        return Reading(values, features.double().numpy())


# ------------------------------------------------------------------------- keeping and finding


def ensure_reader(store: Store, prepared: Prepared, data: config.Data) -> Reader:
    """The reader of this data and picture size, which is trained unless it is there already.

    In one thread, however many there are: another number would give other bits.
    The same data and machine give the same ones; the global random state is left alone.

    Args:
        store: the root of the storage.
        prepared: the data.
        data: its config; image_size is read.

    Raises:
        UserError: the data has no attributes.
    """
    if not prepared.attributes:
        raise UserError(
            f"data.source.kind={data.source.kind}: no attributes in this data: nothing to agree "
            "with; evaluate works on synthetic-flowers, or a folder with attribute columns"
        )
    if reader := _open(store, prepared, data):
        return reader
    with _one_thread():
        network = _train(prepared, data)
        untold = Reader(data, network, dict.fromkeys(prepared.attributes, 0.0))
        reader = replace(untold, accuracy=_accuracy(untold, prepared))
    weights = save({k: v.contiguous() for k, v in network.state_dict().items()})
    document = {
        "version": VERSION,
        "data": prepared.digest,
        "image_size": data.image_size,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "accuracy": reader.accuracy,
    }
    place = store.within(_prefix(prepared, data))
    place.write(f"{document['sha256']}.safetensors", weights)
    place.write("reader.json", json.dumps(document, indent=1).encode())
    return reader


def load_reader(store: Store, prepared: Prepared, data: config.Data) -> Reader:
    """The reader that ensure_reader made.

    Raises:
        UserError: there is none, or it is damaged.
    """
    reader = _open(store, prepared, data)
    if reader is None:
        raise UserError(
            f"reader {store.uri}/{_prefix(prepared, data)}: missing or damaged; run "
            "t2i-ray evaluate, which makes it"
        )
    return reader


def _prefix(prepared: Prepared, data: config.Data) -> str:
    meaning = [VERSION, STEPS, prepared.digest, data.image_size]
    return f"readers/{hashlib.sha256(json.dumps(meaning).encode()).hexdigest()[:16]}"


def _open(store: Store, prepared: Prepared, data: config.Data) -> Reader | None:
    """The reader, or None if it is absent or damaged."""
    place = store.within(_prefix(prepared, data))
    try:
        document = json.loads(place.read("reader.json"))
        weights = place.read(f"{document['sha256']}.safetensors")
        if hashlib.sha256(weights).hexdigest() != document["sha256"]:
            return None
        accuracy = {name: float(document["accuracy"][name]) for name in prepared.attributes}
    except (MissingKey, ValueError, KeyError, TypeError):
        return None
    with torch.random.fork_rng(devices=[]):  # the first weights, soon replaced, are drawn
        network = Network(prepared.attribute_values)
    network.load_state_dict(load(weights))
    network.eval()
    return Reader(data, network, accuracy)


# -------------------------------------------------------------------------------- training


def _train(prepared: Prepared, data: config.Data) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(VERSION)
        network = Network(prepared.attribute_values)
    network.train()
    adam = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.05, fused=True)
    steps = min(STEPS, EPOCHS * len(prepared.ids("train")) // BATCH + 1)
    steps += steps == 5  # of which a fifth is one step, and the schedule would divide by 0
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, RATE, total_steps=steps, pct_start=0.2)
    stream = batches(prepared, data, "train", BATCH)
    labels = {name: torch.from_numpy(truth) for name, truth in prepared.attributes.items()}
    for step in range(steps):
        piece = stream.piece(step, 0)
        samples = torch.from_numpy(samples_of(prepared, piece.right))
        _, logits = network(_spoil(_pixels(piece.images), step))
        losses = [F.cross_entropy(score, labels[name][samples]) for name, score in logits.items()]
        adam.zero_grad()
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        adam.step()
        schedule.step()
    network.eval()
    return network


def _pixels(images: np.ndarray) -> Tensor:
    """uint8 [n, S, S, 3] to float32 [n, 3, 32, 32] in [-1, 1], by averaging areas."""
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float()
    return F.interpolate(pixels / 127.5 - 1, size=(PIXELS, PIXELS), mode="area")


def _spoil(pixels: Tensor, step: int) -> Tensor:
    """Noise and, on some, blur, as generated pictures have them: the reader must bear both."""
    rng = counter_rng(0, "reader", step)
    count = len(pixels)
    noise = torch.from_numpy(rng.standard_normal(pixels.shape, np.float32))
    strength = torch.from_numpy(0.1 * rng.random((count, 1, 1, 1), np.float32) ** 2)
    blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)
    weight = torch.from_numpy(np.clip(1.5 * rng.random((count, 1, 1, 1), np.float32) - 0.9, 0, 1))
    return torch.lerp(pixels + strength * noise, blurred, weight)


def _accuracy(reader: Reader, prepared: Prepared) -> dict[str, float]:
    """Share of real test pictures whose attribute is read rightly."""
    images, captions = real_pictures(prepared, reader.data, "test")
    samples, read = samples_of(prepared, captions), reader.read(images).values
    return {
        name: float((read[name] == truth[samples]).mean())
        for name, truth in prepared.attributes.items()
    }


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
