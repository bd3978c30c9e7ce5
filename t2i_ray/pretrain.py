"""What a text encoder can be trained on before it meets a GAN: pictures, or captions alone."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from t2i_ray.config import Config
from t2i_ray.family import Objective, Piece, mark_last
from t2i_ray.learner import Learner
from t2i_ray.losses import matching_loss, structured_loss
from t2i_ray.models import Matcher, Trunk

PADDING = 0  # among the ids of an encoder's rows


class Matching(Objective):
    """Pictures and captions that belong together are to have codes that are alike.

    Each picture is to find its caption among the piece's, and each caption its picture, by
    ``train.pretraining_loss``: the symmetric contrastive loss over the pieces' pairs (Radford et
    al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", section
    2.3), with a fixed temperature, for which all other pairs of the piece are wrong ones; or the
    structured joint embedding by which Reed et al. 2016 trained GAN-CLS's encoder, for which only
    those of other classes are (`structured_loss`). Wrong captions that are harder than those of
    any other class (``data.wrong``) are among the contrastive loss's.
    """

    def make_networks(self, config: Config, text_in: int) -> dict[str, nn.Module]:
        """The tower of pictures, with its average."""
        tower = make_tower(config, text_in)
        return {"tower": tower, "tower_ema": copy.deepcopy(tower).requires_grad_(False)}

    def make_learners(self, config: Config) -> dict[str, Learner]:
        """One for both towers."""
        networks = {"tower": self.networks["tower"], "encoder": self.encoder}
        rates = {"tower": config.optim.lr_d, "encoder": config.optim.lr_encoder}
        # Those of any other class are as easy to tell as the other captions of the piece.
        is_contrastive = config.train.pretraining_loss == "contrastive"
        self.hard = is_contrastive and config.data.wrong != "other_class"
        self.learner = Learner(networks, rates, config.optim)
        return {"optimizer": self.learner}

    def update(self, pieces: Sequence[Piece], scale: float) -> list[dict[str, Tensor]]:
        """One step of both towers."""
        outcomes = []
        for last, piece in mark_last(pieces):
            right, wrong = (
                self.encode(piece) if self.hard else (self.encode_rows(piece.right), None)
            )
            with self.autocast():
                logits = self.networks["tower"](piece.images, right, wrong)
            if self.train.pretraining_loss == "structured":
                loss = structured_loss(logits, piece.classes)
            else:
                loss = matching_loss(logits)
            self.learner.backward(loss * scale, last)
            outcomes.append({"loss": loss.detach(), "found": _found(logits[:, : len(logits)])})
        self.learner.update()
        return outcomes

    @torch.no_grad()
    def measure(self, pieces: Iterable[Piece]) -> dict[str, float]:
        """``found``: how often a picture finds its caption among the piece's, and back."""
        tower = self.networks["tower_ema"]
        shares = [
            float(_found(tower(piece.images, self.encoder_ema(piece.right))))
            for piece in map(self.place, pieces)
        ]
        return {"found": sum(shares) / len(shares)}


class Tower(nn.Module):
    """Pictures by captions: how alike they are.

    Args:
        channels: of the trunk, as the discriminator's.
        text_in: width of a caption's code.
        dim: width in which picture and caption are compared.
        cosine: whether by cosine, over a temperature; else by inner product.

    Attributes:
        sizes: these arguments by name.
    """

    def __init__(self, channels: Sequence[int], text_in: int, dim: int, cosine: bool) -> None:
        super().__init__()
        self.sizes = {"channels": channels, "text_in": text_in, "dim": dim, "cosine": cosine}
        self.trunk = Trunk(channels)
        self.matcher = Matcher(text_in, dim, channels[-1], cosine)

    def forward(self, images: Tensor, code: Tensor, wrong: Tensor | None = None) -> Tensor:
        """Pictures [b, 3, S, S], codes [n, text_in] -> logits [b, n].

        With ``wrong`` [b, text_in] another column: each picture with its own wrong caption.
        """
        logits: Tensor = self.matcher(self.trunk(images), code, wrong)
        return logits

    def pictures(self, images: Tensor) -> Tensor:
        """Pictures [b, 3, S, S] -> their codes [b, dim], of length 1."""
        return self.matcher.pictures(self.trunk(images))


class Pair(nn.Module):
    """A pretrained encoder and its tower, by which a GAN's pictures are judged; both stay so.

    Args:
        encoder: rows [b, ...] -> codes [b, text_in].
        tower: of pictures.
    """

    def __init__(self, encoder: nn.Module, tower: Tower) -> None:
        super().__init__()
        self.encoder, self.tower = encoder, tower
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor, rows: Tensor, wrong: Tensor | None = None) -> Tensor:
        """Pictures [b, 3, S, S], rows [b, ...] of captions -> logits [b, b].

        With ``wrong``, rows [b, ...] of a wrong caption for each picture: logits [b, b + 1].
        """
        codes = self.encoder(rows if wrong is None else torch.cat([rows, wrong]))
        others = None if wrong is None else codes[len(rows) :]
        logits: Tensor = self.tower(images, codes[: len(rows)], others)
        return logits


def make_tower(config: Config, text_in: int) -> Tower:
    """The tower of a run of `Matching`; the structured loss compares by plain inner products."""
    cosine = config.train.pretraining_loss == "contrastive"
    return Tower(config.model.d_channels, text_in, config.model.text_dim, cosine)


class Autoencode(Objective):
    """The code alone must rebuild its caption, word by word.

    A recurrent decoder is given the code at every place and never the words before (the
    unconditioned decoder of Srivastava et al. 2015, "Unsupervised Learning of Video
    Representations using LSTMs"): what it says right, the code knew.
    """

    def make_networks(self, config: Config, text_in: int) -> dict[str, nn.Module]:
        """The decoder, with its average."""
        decoder = Decoder(text_in, config.model.text_dim, self.words + 1)
        return {"decoder": decoder, "decoder_ema": copy.deepcopy(decoder).requires_grad_(False)}

    def make_learners(self, config: Config) -> dict[str, Learner]:
        """One for both."""
        networks = {"decoder": self.networks["decoder"], "encoder": self.encoder}
        rates = {"decoder": config.optim.lr_encoder, "encoder": config.optim.lr_encoder}
        self.learner = Learner(networks, rates, config.optim)
        return {"optimizer": self.learner}

    def update(self, pieces: Sequence[Piece], scale: float) -> list[dict[str, Tensor]]:
        """One step, on the right captions and the wrong ones: both are captions."""
        outcomes = []
        for last, piece in mark_last(pieces):
            rows = torch.cat([piece.right, piece.wrong])
            words = words_of(rows)
            # A changed caption may have a word that no row of the data has: it is not asked for.
            words = words.where(words <= self.words, PADDING)
            with self.autocast():
                logits = self.networks["decoder"](self.encoder(rows), words.shape[1])
            loss = rebuilding_loss(logits, words)
            self.learner.backward(loss * scale, last)
            outcomes.append({"loss": loss.detach(), "rebuilt": _rebuilt(logits, words)})
        self.learner.update()
        return outcomes

    @torch.no_grad()
    def measure(self, pieces: Iterable[Piece]) -> dict[str, float]:
        """``rebuilt``: the share of words, paddings apart, that the decoder names rightly."""
        shares, decoder = [], self.networks["decoder_ema"]
        for piece in map(self.place, pieces):
            words = words_of(piece.right)
            logits = decoder(self.encoder_ema(piece.right), words.shape[1])
            shares.append(float(_rebuilt(logits, words)))
        return {"rebuilt": sum(shares) / len(shares)}


class Decoder(nn.Module):
    """A code to words.

    Args:
        text_in: width of the code.
        hidden_dim: width of the recurrent state.
        words: how many ids there are, padding among them.
    """

    def __init__(self, text_in: int, hidden_dim: int, words: int) -> None:
        super().__init__()
        self.recurrent = nn.GRU(text_in, hidden_dim, batch_first=True)
        self.say = nn.Linear(hidden_dim, words)

    def forward(self, code: Tensor, length: int) -> Tensor:
        """Codes [b, text_in] -> logits [b, length, words]."""
        states, _ = self.recurrent(code.unsqueeze(1).expand(-1, length, -1))
        logits: Tensor = self.say(states)
        return logits


def words_of(rows: Tensor) -> Tensor:
    """An encoder's rows -> ids [b, length] of what it reads, padded with 0.

    Rows are [b, length], padded with 0, or of a text model [b, inputs, length], whose first input
    is the tokens, padded with -1.
    """
    return (rows[:, 0] + 1 if rows.dim() == 3 else rows).long()


def rebuilding_loss(logits: Tensor, words: Tensor) -> Tensor:
    """Minus the mean log likelihood of a caption's words; paddings do not count.

    Args:
        logits: [b, length, words].
        words: [b, length] ids.
    """
    flat = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(flat, words.flatten(), ignore_index=PADDING)


def _rebuilt(logits: Tensor, words: Tensor) -> Tensor:
    inside = words != PADDING
    right = (logits.argmax(2) == words) & inside
    return (right.sum() / inside.sum().clamp(min=1)).to(logits.dtype).detach()


def _found(logits: Tensor) -> Tensor:
    own = torch.arange(len(logits), device=logits.device)
    hits = (logits.argmax(1) == own).to(logits.dtype) + (logits.argmax(0) == own).to(logits.dtype)
    return (hits / 2).mean().detach()
