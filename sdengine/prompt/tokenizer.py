"""CLIP's byte-pair tokenizer, from a checkpoint's vocab.json and merges.txt.

Source: the tokenizer that the CLIP paper's text encoders were trained with, in the form that
diffusers checkpoints carry: Unicode NFC, white space collapsed, lower case, split into words,
numbers' digits and runs of punctuation, then byte-level BPE whose words end in `</w>`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdengine.errors import BundleError
from sdengine.storage.regular_file import open_regular

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BOS_TOKEN = "<|startoftext|>"
EOS_TOKEN = "<|endoftext|>"
WORD_END = "</w>"
_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>"
    r"|'s|'t|'re|'ve|'m|'ll|'d"
    r"|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
)
_MAX_FILE_BYTES = 64 << 20


class ClipTokenizer:
    """Turn text into the token ids that a CLIP text encoder reads.

    Args:
        vocab_file: vocab.json, token -> id.
        merges_file: merges.txt, one pair a line by rank.
        pad_token: what fills the sequence after the end token. Like the start and end tokens, it
            means itself where a text holds it.

    Raises:
        BundleError: a file is unreadable or not a vocabulary or list of merges.
    """

    def __init__(
        self,
        vocab_file: str | os.PathLike[str],
        merges_file: str | os.PathLike[str],
        pad_token: str = EOS_TOKEN,
    ) -> None:
        vocab = _read_vocab(Path(vocab_file))
        merges = _read_merges(Path(merges_file), vocab)
        for token in (BOS_TOKEN, EOS_TOKEN, pad_token):
            if token not in vocab:
                raise BundleError(f"{vocab_file}: the vocabulary lacks {token!r}.")
        self.vocab_size = len(vocab)
        self.bos_token_id = vocab[BOS_TOKEN]
        self.eos_token_id = vocab[EOS_TOKEN]
        self.pad_token_id = vocab[pad_token]
        self.comma_token_id = vocab.get("," + WORD_END)
        self._tokenizer = _make_tokenizer(vocab, merges, pad_token)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a valid Unicode text of any length, without start, end and padding."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def token(self, token_id: int) -> str:
        """Return a token as vocab.json spells it, in which `</w>` ends a word."""
        return str(self._tokenizer.id_to_token(token_id))


def _make_tokenizer(
    vocab: dict[str, int], merges: list[tuple[str, str]], pad_token: str
) -> Tokenizer:
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    model = models.BPE(
        vocab=vocab,
        merges=merges,
        continuing_subword_prefix="",
        end_of_word_suffix=WORD_END,
        unk_token=EOS_TOKEN,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    # A special token written out in a prompt means the token, as in the original.
    special = dict.fromkeys((BOS_TOKEN, EOS_TOKEN, pad_token))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return tokenizer


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise BundleError(f"{path}: larger than {_MAX_FILE_BYTES} bytes.")
        with open_regular(path) as file:
            return file.read().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} cannot be read: {error}.") from None


def _read_vocab(path: Path) -> dict[str, int]:
    try:
        vocab: Any = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not valid JSON: {str(error)[:120]}.") from None
    if not isinstance(vocab, dict) or any(type(number) is not int for number in vocab.values()):
        raise BundleError(f"{path}: expected an object of token -> id.")
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise BundleError(f"{path}: the ids are not 0 to {len(vocab) - 1}, each once.")
    return vocab


def _read_merges(path: Path, vocab: dict[str, int]) -> list[tuple[str, str]]:
    merges = []
    for number, line in enumerate(_read(path).split("\n"), 1):
        if not line.strip() or line.startswith("#version"):
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2 or not all(t in vocab for t in (*pair, pair[0] + pair[1])):
            raise BundleError(f"{path}, line {number}: not two tokens whose sum is a token.")
        merges.append((pair[0], pair[1]))
    return merges
