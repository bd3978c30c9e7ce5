"""A pretrained text model with its tokenizer, and what of its states is a caption's embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from t2i_ray.config import UserError

POOLING = "mean of attended tokens, last attended token if causal"


@dataclass
class Pretrained:
    """A model and its tokenizer."""

    tokenizer: Any
    model: Any
    is_causal: bool

    def tokenize(self, captions: Sequence[str], max_tokens: int) -> dict[str, list[list[int]]]:
        """Model inputs by name, not padded yet; each caption has at least one token."""
        encoded = self.tokenizer(
            list(captions),
            truncation=True,
            max_length=min(max_tokens, self.tokenizer.model_max_length),
            return_attention_mask=True,
        )
        one = {"input_ids": self.tokenizer.pad_token_id, "attention_mask": 1}
        for i, ids in enumerate(encoded["input_ids"]):
            if not ids:  # an empty caption, and a tokenizer that adds nothing of its own
                for name in encoded:
                    encoded[name][i] = [one.get(name, 0)]
        return dict(encoded)

    def unknown(self, caption: str) -> list[str]:
        """Words of which the tokenizer makes its unknown token; byte-level ones know all."""
        unknown = self.tokenizer.unk_token_id
        words = caption.split()
        ids = [self.tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
        return [word for word, of_word in zip(words, ids, strict=True) if unknown in of_word]

    @torch.inference_mode()
    def embed(self, encoded: dict[str, list[list[int]]]) -> np.ndarray:
        """One batch, float32 [b, dim]."""
        padded = self.tokenizer.pad(encoded, return_tensors="pt").to(self.model.device)
        states = self.model(**padded).last_hidden_state  # [b, l, dim]
        embedding: np.ndarray = pool(states, padded["attention_mask"], self.is_causal).cpu().numpy()
        return embedding


def pool(states: Tensor, mask: Tensor, is_causal: bool) -> Tensor:
    """A model's states [b, l, dim] and which tokens are attended [b, l] -> [b, dim].

    Bidirectional models: mean of the states of all attended tokens, special ones included,
    as sentence-transformers trains them. Causal ones: the last attended token's state, the
    only one that has seen the whole caption.
    """
    if is_causal:
        return states[torch.arange(len(mask), device=mask.device), mask.sum(1) - 1]
    return (states * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)


def read_config(folder: Path, name: str) -> Any:
    """The model's config; ``name`` is for the UserError if there is none that is known."""
    try:
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise _unusable(name, error) from None


def load_pretrained(folder: Path, name: str) -> Pretrained:
    """The model in a folder, frozen, in evaluation mode. Raises UserError."""
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        # Loading draws random numbers; a run whose embeddings are cached must draw the same.
        with torch.random.fork_rng(devices=[]):
            model, report = transformers.AutoModel.from_pretrained(
                folder,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except Exception as error:  # each format has its own exceptions
        raise _unusable(name, error) from None
    absent = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if absent or report["mismatched_keys"]:  # they would be random
        raise UserError(
            f"encoder.model={name}: its weights do not fit its config "
            f"({len(absent) + len(report['mismatched_keys'])} tensors, such as "
            f"{(absent or ['of another shape'])[0]}); choose another, or save it again"
        )
    with torch.no_grad():
        for key in report["missing_keys"]:  # a pooler's, which is not used: no random numbers
            model.get_parameter(key).zero_()
    _prepare(tokenizer, name)
    model = encoding_part(model).requires_grad_(False).eval()
    return Pretrained(tokenizer, model, _is_causal(model))


def _prepare(tokenizer: Any, name: str) -> None:
    """Have a tokenizer pad at the end. Raises UserError if it has nothing to pad with."""
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:  # GPT-2 has none, but an end token
        raise UserError(f"encoder.model={name}: its tokenizer has no padding token; give it one")
    # Masked, padding at the end changes nothing: causal models never see it, absolute positions
    # (GPT-2) count from the caption's start, and relative ones (XLNet) don't mind the side.
    tokenizer.padding_side = "right"


def encoding_part(model: Any) -> Any:
    """The model, or, of T5 and its like, what reads."""
    return model.get_encoder() if model.config.is_encoder_decoder else model


@torch.inference_mode()
def _is_causal(model: Any) -> bool:
    """Whether the first token's state ignores the last token; configs don't say so reliably."""
    ids = torch.tensor([[2, 3, 4, 5], [2, 3, 4, 6]], device=model.device)
    one, other = model(input_ids=ids).last_hidden_state[:, 0]
    return torch.allclose(one, other)


def _unusable(name: str, error: Exception) -> UserError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return UserError(f"encoder.model={name}: can't be used: {reason}; choose another model")
