"""Training of the text encoder: name what a caption says, from single positions of its output.

Linear heads at the end-of-text token and at a random padding position predict the scene, so that
every position the U-Net may attend to carries the whole content. The encoder is then frozen.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdengine.models.text_encoder import CLIPTextEncoder, TextEncoderConfig
from sdengine.training.captions import caption
from sdengine.training.loop import Draw
from sdengine.training.scenes import (
    COLORS,
    PLACES,
    SHAPES,
    SIZES,
    Image,
    Scene,
    random_scene,
)

VOCAB_SIZE, BOS, EOS, MAX_LENGTH = 49408, 49406, 49407, 77
DEMO_TEXT_ENCODER = TextEncoderConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=128,
    intermediate_size=512,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=MAX_LENGTH,
    projection_dim=128,
    hidden_act="quick_gelu",
    bos_token_id=BOS,
    eos_token_id=EOS,
)
# Words that carry no content: the shared vector of all untrained tokens must learn to say nothing.
_FILLERS = ("nice", "simple", "flat", "bright", "beautiful", "clean", "detailed", "masterpiece")
_SHORT_LENGTH, _SHORT_UNTIL = 40, 0.5  # most captions are short: begin without the long padding

Tokenize = Callable[[str], Sequence[int]]

_COLOR_NAMES, _PLACE_NAMES = list(COLORS), list(PLACES)
_HEADS = (10, 3, 10, 8, 3, 11, 9, 4, 10)  # classes of the nine labels of `labels`


def labels(scene: Scene) -> list[int]:
    """Return class indices: background, axis, then colour, shape, size of both objects, place.

    Objects are listed left to right or top to bottom, whatever order the caption names them in.
    """
    objects = list(scene.objects)
    if scene.relation in ("right", "below"):
        objects.reverse()
    axis = 0 if scene.relation is None else 1 if scene.relation in ("left", "right") else 2
    described: list[int] = []
    for i, absent in ((0, ()), (1, (10, 8, 3))):
        if i < len(objects):
            o = objects[i]
            described += [_COLOR_NAMES.index(o.color), SHAPES.index(o.shape), SIZES.index(o.size)]
        else:
            described += absent
    place = _PLACE_NAMES.index(scene.place) if scene.place else len(_PLACE_NAMES)
    return [_COLOR_NAMES.index(scene.background), axis, *described, place]


class CaptionEncoder(nn.Module):
    """Wrap the text encoder with a table of only the tokens that captions use.

    All other tokens share one trained vector (row 0), which keeps the table small to train and an
    unknown word nearly without effect.

    Args:
        tokenize: maps a text to its token ids, without start, end or padding.
    """

    def __init__(self, tokenize: Tokenize) -> None:
        super().__init__()
        self.tokenize = tokenize
        self.encoder = CLIPTextEncoder(DEMO_TEXT_ENCODER)
        used = [BOS, EOS, *_caption_tokens(tokenize)]
        self.used = torch.tensor(used)
        self.rows = torch.zeros(VOCAB_SIZE, dtype=torch.long)
        self.rows[self.used] = torch.arange(1, len(used) + 1)
        self.table = nn.Embedding(len(used) + 1, DEMO_TEXT_ENCODER.hidden_size)
        # As small as each other, or positions would drown the tokens.
        nn.init.normal_(self.table.weight, std=0.02)
        nn.init.normal_(self.encoder.text_model.embeddings.position_embedding.weight, std=0.02)
        # The full table is filled from the small one at the end of training.
        self.encoder.requires_grad_(True)
        self.full_table.requires_grad_(False)

    @property
    def full_table(self) -> Tensor:
        """The encoder's own token table [vocab, D]."""
        return self.encoder.text_model.embeddings.token_embedding.weight

    def token_ids(self, texts: Sequence[str], length: int = MAX_LENGTH) -> Tensor:
        """Return [B,length] int64, padded with the end token as Stable Diffusion 1 does."""
        return padded_ids(self.tokenize, texts, length)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return the normalised last hidden state [B,S,D] of token_ids [B,S]."""
        eos = first_end(token_ids)
        _, normed, _ = self.encoder(self.table(self.rows[token_ids]), eos)
        out: Tensor = normed[-1]
        return out

    @torch.no_grad()
    def finish(self) -> CLIPTextEncoder:
        """Return the encoder with its full token table: shared vector, then the trained rows."""
        self.full_table.copy_(self.table.weight[self.rows])
        return self.encoder


def padded_ids(tokenize: Tokenize, texts: Sequence[str], length: int = MAX_LENGTH) -> Tensor:
    """Return [B,length] int64, padded with the end token as Stable Diffusion 1 does."""
    rows = []
    for text in texts:
        ids = [BOS, *tokenize(text)][: length - 1]
        rows.append(ids + [EOS] * (length - len(ids)))
    return torch.tensor(rows)


def first_end(token_ids: Tensor) -> Tensor:
    """Return where each row of token_ids [B,S] has its first end token, [B] int64."""
    return (token_ids == EOS).int().argmax(dim=1)


class TextTask:
    """Train a caption encoder to name the scene; the heads are thrown away afterwards."""

    def __init__(self, encoder: CaptionEncoder, batch: int = 48) -> None:
        self.encoder = encoder
        self.batch = batch
        self.model: nn.Module = nn.ModuleDict(
            {"encoder": encoder, "head": nn.Linear(DEMO_TEXT_ENCODER.hidden_size, sum(_HEADS))}
        )

    def loss(self, draw: Draw, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Return the mean cross-entropy over the labels at two positions of each caption."""
        length = _SHORT_LENGTH if progress < _SHORT_UNTIL else MAX_LENGTH
        ids, wanted = self._batch(draw, self.batch, length)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.encoder(ids)
        hidden = hidden.float()
        eos = first_end(ids)
        padding = eos + (torch.rand(len(ids), generator=draw.torch) * (length - eos)).long()
        total = torch.zeros(())
        for position in (eos, padding):
            parts = self._predict(self.model, hidden, position)
            losses = [F.cross_entropy(p, wanted[:, i]) for i, p in enumerate(parts)]
            total = total + torch.stack(losses).sum() / 2
        return total, {}

    @torch.no_grad()
    def accuracy(self, model: nn.Module, count: int = 500) -> dict[str, float]:
        """Return the percentage of held-out captions of which every label is right, by position."""
        assert isinstance(model, nn.ModuleDict)
        ids, wanted = self._batch(Draw.at(77, 0), count, MAX_LENGTH, held_out=True)
        hidden = model["encoder"](ids)
        eos = first_end(ids)
        result = {}
        for name, position in (("end", eos), ("last", torch.full_like(eos, MAX_LENGTH - 1))):
            parts = self._predict(model, hidden, position)
            right = torch.stack([p.argmax(1) == wanted[:, i] for i, p in enumerate(parts)], dim=1)
            result[name] = 100 * right.all(dim=1).float().mean().item()
        return result

    def sheet(self, model: nn.Module) -> Image:
        """Return a strip with one cell per caption, green where every label is right."""
        share = self.accuracy(model, 100)["last"] / 100
        strip = np.zeros((16, 400, 3), np.uint8)
        strip[:] = (200, 60, 60)
        strip[:, : round(400 * share)] = (60, 160, 60)
        return strip

    def _batch(
        self, draw: Draw, count: int, length: int, *, held_out: bool = False
    ) -> tuple[Tensor, Tensor]:
        scenes = [random_scene(draw.python, held_out=held_out) for _ in range(count)]
        texts = [with_filler(caption(s, draw.python), draw.python) for s in scenes]
        return self.encoder.token_ids(texts, length), torch.tensor([labels(s) for s in scenes])

    @staticmethod
    def _predict(model: nn.Module, hidden: Tensor, position: Tensor) -> list[Tensor]:
        assert isinstance(model, nn.ModuleDict)
        logits = model["head"](hidden[torch.arange(len(hidden)), position])
        return list(logits.split(_HEADS, dim=1))


def with_filler(text: str, rng: random.Random) -> str:
    """Add one or two meaningless words to every eighth caption."""
    if rng.random() > 0.125:
        return text
    words = ", ".join(rng.sample(_FILLERS, rng.choice((1, 2))))
    return f"{words} {text}" if rng.random() < 0.5 else f"{text}, {words}"


def _caption_tokens(tokenize: Tokenize) -> list[int]:
    """Return every token that captions are made of, in order of first use."""
    rng = random.Random(0)
    texts = (caption(random_scene(rng), rng) for _ in range(20_000))
    return list(dict.fromkeys(token for text in texts for token in tokenize(text)))
