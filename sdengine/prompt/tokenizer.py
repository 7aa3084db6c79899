"""CLIP's byte-pair tokenizer, from a checkpoint's vocab.json and merges.txt.

Source: the tokenizer that the CLIP paper's text encoders were trained with, in the form that
diffusers checkpoints carry: Unicode NFC, white space collapsed, lower case, split into words,
numbers' digits and runs of punctuation, then byte-level BPE whose words end in `</w>`. Tokens that
a fine-tune added are looked for before all that.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdengine.errors import BundleError
from sdengine.prompt.added_tokens import AddedToken, parse_added_tokens
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
        added_file: JSON list of the tokens that the vocabulary lacks; None for none.

    Raises:
        BundleError: a file is unreadable or not a vocabulary, list of merges or of added tokens.
    """

    def __init__(
        self,
        vocab_file: str | os.PathLike[str],
        merges_file: str | os.PathLike[str],
        pad_token: str = EOS_TOKEN,
        added_file: str | os.PathLike[str] | None = None,
    ) -> None:
        vocab = _read_vocab(Path(vocab_file))
        merges = _read_merges(Path(merges_file), vocab)
        added = [] if added_file is None else _read_added(Path(added_file), vocab)
        self.comma_token_id = vocab.get("," + WORD_END)
        vocab |= {token.content: token.id for token in added}
        for token in (BOS_TOKEN, EOS_TOKEN, pad_token):
            if token not in vocab:
                raise BundleError(f"{vocab_file}: the vocabulary lacks {token!r}.")
        self.vocab_size = max(vocab.values()) + 1
        self.bos_token_id = vocab[BOS_TOKEN]
        self.eos_token_id = vocab[EOS_TOKEN]
        self.pad_token_id = vocab[pad_token]
        self._added = {token.id: token.content for token in added}
        self._tokenizer = _make_tokenizer(vocab, merges, pad_token, added)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a valid Unicode text of any length, without start, end and padding."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def token(self, token_id: int) -> str:
        """Return a token as its file spells it; in vocab.json `</w>` ends a word."""
        return self._added.get(token_id) or str(self._tokenizer.id_to_token(token_id))


def _make_tokenizer(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    pad_token: str,
    added: Sequence[AddedToken],
) -> Tokenizer:
    """Make the tokenizer; the vocabulary names added tokens too, so that they keep their ids."""
    import tokenizers
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    model = models.BPE(
        vocab=dict(vocab),
        merges=list(merges),
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
    own = [AddedToken(t, vocab[t], normalized=False, special=True) for t in (BOS_TOKEN, EOS_TOKEN)]
    if pad_token not in {token.content for token in (*own, *added)}:
        own.append(AddedToken(pad_token, vocab[pad_token], normalized=False, special=True))
    tokenizer.add_tokens(
        [tokenizers.AddedToken(token.content, **token.flags) for token in (*own, *added)]
    )
    return tokenizer


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise BundleError(f"{path}: larger than {_MAX_FILE_BYTES} bytes.")
        with open_regular(path) as file:
            return file.read().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} cannot be read: {error}.") from None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not valid JSON: {str(error)[:120]}.") from None


def _read_vocab(path: Path) -> dict[str, int]:
    vocab = _read_json(path)
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
    made = [token for token in vocab if len(token.removesuffix(WORD_END)) > 1]
    if not merges and set(made) - {BOS_TOKEN, EOS_TOKEN}:
        raise BundleError(
            f"{path} holds no merges, so that every word would fall into letters; the vocabulary "
            f"has {len(made)} longer tokens. The file is empty or incomplete; get it again."
        )
    return merges


def _read_added(path: Path, vocab: Mapping[str, int]) -> list[AddedToken]:
    try:
        return parse_added_tokens(_read_json(path), vocab)
    except ValueError as error:
        raise BundleError(f"{path}: {error}.") from None
