"""Pretrained encoders: a folder with encoder.json and encoder.safetensors, and runs from it.

Where pictures were matched with captions, their tower lies there too: tower.json, which says of
what sizes it is, and tower.safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from t2i_ray.config import CharCnnRnn, Custom, EncoderConfig, HuggingFace, Storage, UserError
from t2i_ray.encoders.frozen import FrozenEncoder
from t2i_ray.encoders.interface import Encoder
from t2i_ray.encoders.load import from_document, to_document
from t2i_ray.encoders.places import hash_files, local_folder
from t2i_ray.storage import LocalStore, Store

FILES = ("encoder.json", "encoder.safetensors")
TOWER = ("tower.json", "tower.safetensors")


def save_pretrained_encoder(encoder: Encoder, place: Store | Path) -> None:
    """Write a trained encoder, with its module's present weights, for ``encoder.init_from``.

    Raises:
        ValueError: it is a frozen one.
        StorageError: the place can't be written to.
    """
    if not encoder.trainable:
        raise ValueError("a frozen encoder has nothing that was trained; save the one within")
    store = LocalStore(place.absolute()) if isinstance(place, Path) else place
    for name, data in pretrained_files(encoder, encoder.module.state_dict()).items():
        store.write(name, data)


def pretrained_files(encoder: Encoder, weights: Mapping[str, Tensor]) -> dict[str, bytes]:
    """What ``encoder.init_from`` reads: by name, the one that makes it whole last."""
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in weights.items()}
    document = json.dumps(to_document(encoder), indent=1, ensure_ascii=False) + "\n"
    return {"encoder.safetensors": save(tensors), "encoder.json": document.encode()}


def tower_files(sizes: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, bytes]:
    """What ``read_tower`` reads, by name."""
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in weights.items()}
    return {"tower.safetensors": save(tensors), "tower.json": (json.dumps(sizes) + "\n").encode()}


def read_tower(
    section: EncoderConfig, storage: Storage | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The sizes and the weights of the tower that lies at a section's ``init_from``.

    Raises:
        UserError: there is none, or it can't be read.
    """
    place = str(section.init_from)
    folder = _folder(place, storage)
    try:
        sizes = json.loads((folder / TOWER[0]).read_bytes())
        return dict(sizes), load_file(folder / TOWER[1])
    except FileNotFoundError:
        raise UserError(
            f"train.pretrained_matching with encoder.init_from={place}: there is no {TOWER[0]} or "
            f"{TOWER[1]}; give what 't2i-ray pretrain-encoder --objective matching' made"
        ) from None
    except (ValueError, TypeError, SafetensorError) as error:
        raise UserError(
            f"encoder.init_from={place}: its tower can't be read: {str(error).splitlines()[0]}; "
            "save it again"
        ) from error


def pin(section: EncoderConfig, storage: Storage | None = None) -> str:
    """Sha256 of what lies at a section's ``init_from``.

    Raises:
        UserError: nothing is saved there, or it is not what ``init_sha256`` says.
    """
    return _pinned(section, _folder(str(section.init_from), storage))


def _pinned(section: EncoderConfig, folder: Path) -> str:
    """Sha256 of all that lies there. Raises UserError if ``init_sha256`` is another."""
    files = [folder / name for name in (*FILES, *TOWER)]
    found = hash_files(path for path in files if path.is_file())
    if section.init_sha256 not in (None, found):
        raise UserError(
            f"encoder.init_from={section.init_from}: its sha256 is {found}, not init_sha256="
            f"{section.init_sha256}; put back what was there, or leave init_sha256 out"
        )
    return found


def start_from(section: EncoderConfig, storage: Storage | None = None) -> Encoder:
    """The encoder of a section whose ``init_from`` is set, with the weights that are there.

    Raises:
        UserError: nothing is saved there, it is not what ``init_sha256`` says, or it does not fit
            the section.
    """
    place = str(section.init_from)
    folder = _folder(place, storage)
    sha256 = _pinned(section, folder)
    try:
        document = json.loads((folder / FILES[0]).read_bytes())
        _check_fit(section, document, place)
        encoder = from_document(document, section.target if isinstance(section, Custom) else None)
        encoder.module.load_state_dict(load_file(folder / FILES[1]))
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"encoder.init_from={place}: can't be read: {reason}; save it again"
        ) from error
    if isinstance(section, CharCnnRnn):
        encoder.cut(section.max_characters)
    elif not isinstance(section, Custom):
        encoder.cut(section.max_tokens)
    encoder.origin = sha256
    return FrozenEncoder(encoder, filled=True) if section.frozen else encoder


def _folder(place: str, storage: Storage | None) -> Path:
    folder = local_folder(place, (*FILES, *TOWER), "encoder.init_from", storage)
    for name in FILES:
        if not (folder / name).is_file():
            raise UserError(
                f"encoder.init_from={place}: there is no {name}; give the encoder/ of a "
                "run of 't2i-ray pretrain-encoder', or make one"
            )
    return folder


def _check_fit(section: EncoderConfig, description: dict[str, Any], place: str) -> None:
    """Sizes are the folder's, and the config must tell the truth about them. Raises UserError."""
    kind = "transformer" if isinstance(section, HuggingFace) else section.kind
    if description["kind"] != kind:
        raise UserError(
            f"encoder.init_from={place}: a {description['kind']} encoder lies there, and "
            f"encoder.kind={section.kind}; change one of the two"
        )
    free = {"kind", "max_tokens", "max_characters"}
    there = {name: description[name] for name in type(section).model_fields if name in description}
    different = [
        f"encoder.{name}={json.dumps(value)}"
        for name, value in there.items()
        if name not in free and getattr(section, name) != value
    ]
    if different:
        raise UserError(f"encoder.init_from={place}: of other sizes; set {' '.join(different)}")
