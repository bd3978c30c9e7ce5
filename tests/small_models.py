"""Text models of every family, small and random, as Hugging Face keeps them on disk."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

from t2i_ray.encoders import Encoder

CAPTIONS = [
    "a red flower",
    "this flower has eight narrow purple petals, and a round yellow centre in the middle",
    "the petals are white",
    "",
    "a blue flower with long pointed leaves before a dark green background, seen from above",
]


def small_models(root: Path) -> dict[str, Path]:
    """Random XLNet, GPT-2, BERT and T5 models of a few thousand weights, with a tokenizer each."""
    torch.manual_seed(0)
    words = tokenizers.SentencePieceUnigramTokenizer()
    words.train_from_iterator(
        CAPTIONS * 4,
        vocab_size=120,
        show_progress=False,
        unk_token="<unk>",
        special_tokens=["<unk>", "<s>", "</s>", "<sep>", "<pad>", "<cls>", "<mask>"],
    )
    vocabulary = [tuple(pair) for pair in json.loads(words.to_str())["model"]["vocab"]]
    xlnet = transformers.XLNetTokenizer(vocab=vocabulary, unk_id=0)
    assert xlnet.padding_side == "left"
    no_padding = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="</s>", unk_token="<unk>"
    )
    assert no_padding.pad_token is None
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ","]
    pieces += sorted({word for caption in CAPTIONS for word in caption.replace(",", "").split()})
    bert = transformers.BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)})
    readers = {"xlnet": xlnet, "gpt2": no_padding, "bert": bert, "t5": no_padding}
    for name, (model, config, sizes) in families().items():
        vocab_size = len(bert if name == "bert" else xlnet)
        model(config(vocab_size=vocab_size, **sizes)).save_pretrained(root / name)
        readers[name].save_pretrained(root / name)
    return {name: root / name for name in readers}


def families() -> dict[str, tuple[Callable[..., Any], Callable[..., Any], dict[str, float]]]:
    """Of each family the model, its config, and the sizes by the names which that has for them."""
    lively = {"initializer_range": 0.3}  # with 0.02 such small models hardly look at their input
    # As many on the hub: AutoModel would draw a pooling layer at random.
    bert = functools.partial(transformers.BertModel, add_pooling_layer=False)
    return {
        "xlnet": (
            transformers.XLNetModel,
            transformers.XLNetConfig,
            {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32, **lively},
        ),
        "gpt2": (
            transformers.GPT2Model,
            transformers.GPT2Config,
            {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, **lively},
        ),
        "bert": (
            bert,
            transformers.BertConfig,
            {
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 32,
                **lively,
            },
        ),
        "t5": (
            transformers.T5Model,
            transformers.T5Config,
            {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
        ),
    }


def codes(encoder: Encoder, captions: list[str]) -> torch.Tensor:
    """Of captions [n], codes [n, dim] without gradients."""
    found: torch.Tensor = encoder.module(torch.from_numpy(encoder.rows(captions)))
    return found.detach()
