"""A Hugging Face text model that is trained together with the GAN.

It carries all that it takes: architecture and tokenizer in its description, weights in the
checkpoint, so nothing but a checkpoint is needed to draw from it.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from t2i_ray.config import HuggingFace, Storage, UserError
from t2i_ray.encoders.huggingface import check_length, find, hush
from t2i_ray.encoders.interface import Encoder
from t2i_ray.encoders.pretrained import Pretrained, encoding_part, load_pretrained, pool
from t2i_ray.storage.scratch import scratch

PADDING = -1  # no token's id, unlike a tokenizer's own padding
_NAME = re.compile(r"\w[\w.-]*")


class TunedEncoder(Encoder):
    """Tokens -> transformer -> pooling; at the start the same codes as the frozen model's.

    Args:
        pretrained: model, tokenizer and how to pool.
        architecture: the model's config as JSON, of which AutoConfig makes it again.
        files: the tokenizer's files by name, compressed, in base64.
        max_tokens: read of a caption.
        source: what the first weights were, for people.
    """

    trainable = True
    fingerprint = None

    def __init__(
        self,
        pretrained: Pretrained,
        architecture: dict[str, Any],
        files: dict[str, str],
        max_tokens: int,
        source: dict[str, Any],
    ) -> None:
        self._pretrained, self._architecture, self._files = pretrained, architecture, files
        self._source = source
        self.max_tokens = max_tokens
        self.dim = int(pretrained.model.config.hidden_size)
        inputs = [
            name for name in pretrained.tokenize(["a"], max_tokens) if name != "attention_mask"
        ]
        self._inputs = sorted(inputs, key=lambda name: name != "input_ids")
        self.module = PooledTransformer(
            pretrained.model,
            self._inputs,
            pretrained.tokenizer.pad_token_id,
            is_causal=pretrained.is_causal,
        )
        _still(self.module, torch.from_numpy(self.rows(["a"])))

    @classmethod
    def build(cls, config: HuggingFace, storage: Storage | None = None) -> TunedEncoder:
        """The encoder of a config, with the model's weights.

        Raises:
            UserError: there is no such model, or it can't be used.
        """
        found = find(config, storage)
        pretrained = load_pretrained(found.folder, found.model)
        architecture = json.loads(found.settings.to_json_string(use_diff=False))
        return cls(
            pretrained,
            {k: v for k, v in architecture.items() if not k.startswith("_") and k != "auto_map"},
            _packed(pretrained.tokenizer),
            config.max_tokens,
            {"model": found.model, "revision": found.revision, "files": found.files},
        )

    @classmethod
    def load(cls, description: dict[str, Any]) -> TunedEncoder:
        """The encoder of ``describe()``, with random weights: they are still to be loaded."""
        hush()
        architecture, files = description["architecture"], description["tokenizer"]
        settings = transformers.AutoConfig.for_model(**architecture)
        with torch.random.fork_rng(devices=[]):
            model = transformers.AutoModel.from_config(
                settings, trust_remote_code=False, dtype=torch.float32
            )
        pretrained = Pretrained(
            _unpacked(files, architecture), encoding_part(model), description["is_causal"]
        )
        return cls(
            pretrained, architecture, files, description["max_tokens"], description["source"]
        )

    def rows(self, captions: Sequence[str]) -> np.ndarray:
        """int64 [n, k, max_tokens]: ids, then -1; of other inputs, such as types, then 0."""
        encoded = self._pretrained.tokenize(captions, self.max_tokens)
        rows = np.zeros((len(captions), len(self._inputs), self.max_tokens), np.int64)
        rows[:, 0] = PADDING
        for i, name in enumerate(self._inputs):
            for row, values in zip(rows[:, i], encoded[name], strict=True):
                row[: len(values)] = values
        return rows

    def describe(self) -> dict[str, Any]:
        """See Encoder."""
        return {
            "kind": "transformer",
            "architecture": self._architecture,
            "tokenizer": self._files,
            "is_causal": self._pretrained.is_causal,
            "max_tokens": self.max_tokens,
            "dim": self.dim,
            "source": self._source,
        }

    def cut(self, length: int) -> None:
        """See Encoder. Raises UserError if the model can't read so many tokens."""
        check_length(self._pretrained.model.config, length, "this model")
        self.max_tokens = length

    def unreadable(self, caption: str) -> list[str]:
        """Words that its tokenizer knows no part of."""
        return self._pretrained.unknown(caption)


class PooledTransformer(nn.Module):
    """Rows -> codes; padding changes nothing. See pretrained.pool for which states count.

    It stays in evaluation mode: dropout would draw for itself, and a piece's codes must be the
    same whichever worker computes them. Gradients flow all the same.

    Args:
        network: from transformers.
        inputs: what the planes of a row are to it; input_ids come first.
        pad_id: an id to stand where there is no token; it is masked.
        is_causal: whether the last token alone has seen all others.
    """

    def __init__(
        self, network: Any, inputs: Sequence[str], pad_id: int, *, is_causal: bool
    ) -> None:
        super().__init__()
        self.network, self.inputs = network, tuple(inputs)
        self.pad_id, self.is_causal = pad_id, is_causal
        if getattr(network.config, "use_cache", False):
            network.config.use_cache = False  # of no use but to generate text
        self.train()

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002
        """Evaluation mode, whatever is asked for."""
        return super().train(False)

    def forward(self, rows: Tensor) -> Tensor:
        """Rows [b, k, L] of TunedEncoder -> codes [b, dim]."""
        mask = rows[:, 0] != PADDING  # [b, L]
        longest = max(1, int(mask.sum(1).max()))
        mask = mask[:, :longest].long()  # [b, l]: the longest caption of the batch
        given = dict(zip(self.inputs, rows[..., :longest].unbind(1), strict=True))
        given["input_ids"] = torch.where(mask > 0, given["input_ids"], self.pad_id)
        states = self.network(**given, attention_mask=mask).last_hidden_state  # [b, l, dim]
        return pool(states, mask, self.is_causal)  # [b, dim]


def _still(module: nn.Module, rows: Tensor) -> None:
    """Train what a caption reaches: a pooler or XLNet's mask get no gradient, and DDP waits."""
    module.requires_grad_(True)
    with torch.enable_grad():
        module(rows).sum().backward()
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None


def _packed(tokenizer: Any) -> dict[str, str]:
    with scratch() as folder:
        tokenizer.save_pretrained(folder)
        return {
            path.name: base64.b64encode(zlib.compress(path.read_bytes(), 9)).decode()
            for path in sorted(folder.iterdir())
            if path.is_file()
        }


def _unpacked(files: dict[str, str], architecture: dict[str, Any]) -> Any:
    """The tokenizer. Raises UserError: a name is none of a file beside others."""
    with scratch() as folder:
        for name, packed in files.items():
            if not _NAME.fullmatch(name):
                raise UserError(f"encoder.json: {name!r} is no tokenizer's file; it was tampered")
            (folder / name).write_bytes(zlib.decompress(base64.b64decode(packed)))
        (folder / "config.json").write_text(json.dumps(architecture))
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
