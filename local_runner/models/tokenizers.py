"""A model folder's tokenizer: made whole where the folder lacks files, and compared with the catalogue.

What a folder brings is used. What it lacks, a chat template, a tokenizer.json, stop tokens, comes from
the catalogue's entry for the model. What differs from the catalogue is said.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from local_runner.models import ranks
from maas_client.spec.catalog import catalog, find_model, template_text, token_facts
from maas_client.spec.catalog_entry import ModelEntry, TokenFacts
from maas_client.spec.home import home

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

TOKENIZER, SETTINGS, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
_VERSION = 1
"""Goes up when what is made changes, so that it is made anew."""


def identify(folder: Path, model: str = "") -> ModelEntry | None:
    """The catalogue's entry for the weights in a folder.

    Args:
        folder: with config.json.
        model: the job's model: it decides between those that the weights could be.
    """
    config = read_settings(folder / "config.json")
    could_be = [
        entry
        for entry in catalog().values()
        if entry.architecture == config.get("model_type")
        and entry.shape.vocabulary == config.get("vocab_size")
    ]
    if (named := find_model(model)) is not None and named in could_be:
        return named

    def nearness(entry: ModelEntry) -> tuple[bool, ...]:
        return (
            entry.hub_id.lower() == str(config.get("_name_or_path", "")).lower(),
            entry.shape.hidden == config.get("hidden_size"),
            entry.shape.layers == config.get("num_hidden_layers"),
            entry.context == config.get("max_position_embeddings"),
        )

    return max(could_be, key=nearness, default=None)


def whole(folder: Path, *, model: str = "") -> Path:
    """The folder with a tokenizer and a template: the model's own, or one of ours that adds what it lacks.

    A folder that nothing is known of is returned as it is.

    Raises:
        BaseModelError: the tokenizer is to be made of ranks that are not there.
    """
    has_tokenizer = (folder / TOKENIZER).is_file()
    if has_tokenizer and own_template(folder) is not None:
        return folder
    entry = identify(folder, model)
    if entry is None:
        return folder
    facts = token_facts(entry)
    if not has_tokenizer and not facts.ranks:
        return folder
    settings = {**_settings(facts, entry), **read_settings(folder / SETTINGS)}
    template = own_template(folder) or template_text(entry)
    source = (
        (folder / TOKENIZER).read_bytes() if has_tokenizer else ranks.find(facts.ranks, folder)[0]
    )
    parts = (str(_VERSION), repr(facts), json.dumps(settings, sort_keys=True), template)
    name = hashlib.sha256("\0".join(parts).encode() + source).hexdigest()[:24]
    made = home() / "tokenizers" / name
    if not made.exists():
        _write(made, source if has_tokenizer else build(facts, source), settings, template)
    return made


def build(facts: TokenFacts, data: bytes) -> bytes:
    """A family's tokenizer.json, made of its encoding's ranks and the catalogue's special tokens."""
    pattern = ranks.PATTERNS[facts.ranks]
    raw = ranks.tokenizer(ranks.read(data), pattern, facts.all_tokens())
    add_specials(raw, facts)
    return raw.to_str().encode()


def add_specials(raw: Tokenizer, facts: TokenFacts) -> None:
    """Tell a tokenizer which of its words are the family's special tokens, and what white space they take."""
    raw.add_special_tokens([_added(token, facts) for token in facts.all_tokens()])


def _added(token: str, facts: TokenFacts) -> AddedToken:
    from tokenizers import AddedToken

    both = facts.strip_numbered and token not in facts.tokens
    return AddedToken(
        token,
        special=True,
        normalized=False,
        lstrip=both or token in facts.strip_left,
        rstrip=both or token in facts.strip_right,
    )


def stop_ids(
    folder: Path, raw: Tokenizer, *, model: str = "", eos: int | None = None
) -> frozenset[int]:
    """Tokens that end an answer: generation_config.json's, else the catalogue's, else `eos`."""
    own = own_stops(folder)
    if own:
        return own
    if (entry := identify(folder, model)) is not None:
        found = (raw.token_to_id(token) for token in entry.stop_tokens)
        return frozenset(number for number in found if number is not None)
    given = _ids(read_settings(folder / "config.json").get("eos_token_id"))
    return given or frozenset(() if eos is None else (eos,))


def own_template(folder: Path) -> str | None:
    file = folder / TEMPLATE
    if file.is_file():
        return file.read_text(encoding="utf-8")
    given = read_settings(folder / SETTINGS).get("chat_template")
    return given if isinstance(given, str) else None


def own_stops(folder: Path) -> frozenset[int]:
    return _ids(read_settings(folder / "generation_config.json").get("eos_token_id"))


def _ids(given: Any) -> frozenset[int]:
    listed = given if isinstance(given, list) else [given]
    return frozenset(number for number in listed if isinstance(number, int))


def _settings(facts: TokenFacts, entry: ModelEntry) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": facts.bos,
        "eos_token": facts.eos,
        "pad_token": facts.pad,
        "clean_up_tokenization_spaces": False,
        "model_max_length": entry.context,
    }


def _write(folder: Path, tokenizer: bytes, settings: Mapping[str, Any], template: str) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(mkdtemp(prefix="tokenizer-", dir=folder.parent))
    (staged / TOKENIZER).write_bytes(tokenizer)
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (staged / SETTINGS).write_text(text, encoding="utf-8")
    (staged / TEMPLATE).write_text(template, encoding="utf-8")
    staged.chmod(0o755)
    try:
        staged.rename(folder)
    except OSError:  # another process was quicker; its files are the same
        if not folder.exists():
            raise
        shutil.rmtree(staged)


def read_settings(file: Path) -> dict[str, Any]:
    """What a JSON file says; nothing where it is not there. A broken one is another's to name."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
