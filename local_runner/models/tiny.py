"""A tiny random Phi-3 with a small tokenizer, made in a second from nothing. For tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp

from maas_client.spec.home import OWN_BASES, home

LABEL = "tiny random Phi-3 (for tests; knows nothing)"
NAME = OWN_BASES["tiny"]
_VERSION = 1

SPECIAL = ("<s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|user|>", "<|end|>")
ROLES = dict(zip(("bos_token", "eos_token", "pad_token"), (*SPECIAL[:2], SPECIAL[1]), strict=True))
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
"""Phi-3-mini-4k's, for the roles that have a token here."""


def install() -> Path:
    """The folder of the model; made on first use."""
    return install_at(home() / f"tiny-{_VERSION}", _write)


def install_at(folder: Path, write: Callable[[Path], None]) -> Path:
    """A folder in which `write` makes a model, the same wherever it runs; whole, or not there."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(mkdtemp(prefix="tiny-", dir=folder.parent))
        write(staged)
        try:
            staged.rename(folder)
        except OSError:  # another process was quicker; its files are the same
            shutil.rmtree(staged)
    return folder


def _write(folder: Path) -> None:
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    vocabulary = write_tokenizer(folder, SPECIAL, ROLES, TEMPLATE)
    config = Phi3Config(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        original_max_position_embeddings=512,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=257,
        sliding_window=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Phi3ForCausalLM(config)
    model.generation_config.eos_token_id = [257, 261]
    model.save_pretrained(folder)


def write_tokenizer(
    folder: Path, special: Sequence[str], roles: Mapping[str, str], template: str
) -> int:
    """Bytes, and behind them special tokens; returns the size of the vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in special])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **roles)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return len(alphabet) + len(special)
