"""A tiny random Phi-3-small with a byte tokenizer, made in a second from nothing. For tests.

Everything that sets the architecture apart is in it: a block-sparse layer and a dense one, dummy tokens,
small's special tokens and template. Its blocks are short, so that a text of a hundred bytes is sparse.
"""

from __future__ import annotations

from pathlib import Path

from local_runner.models import tiny
from maas_client.spec.home import OWN_BASES, home

LABEL = "tiny random Phi-3-small (for tests; knows nothing)"
NAME = OWN_BASES["tiny-phi-3-small"]
_VERSION = 1

_FIRST = 256
"""Ids are the published ones less 100,000: 256 bytes stand for the 100,256 pieces of text."""
_WORDS = {
    257: "<|endoftext|>",
    258: "<|fim_prefix|>",
    259: "<|fim_middle|>",
    260: "<|fim_suffix|>",
    261: "<|system|>",
    262: "<|user|>",
    263: "<|assistant|>",
    266: "<|end|>",
}
SPECIAL = tuple(_WORDS.get(i, f"<|dummy_{i}|>") for i in range(_FIRST, 272))
_SAID = (257, 261, 262, 263, 266)
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
"""Phi-3-small's."""


def install() -> Path:
    """The folder of the model; made on first use."""
    return tiny.install_at(home() / f"tiny-phi-3-small-{_VERSION}", _write)


def _write(folder: Path) -> None:
    import torch
    from transformers.utils import logging

    from local_runner.models.phi3_small import Phi3SmallForCausalLM
    from local_runner.models.phi3_small_config import Phi3SmallConfig

    logging.disable_progress_bar()
    roles = dict.fromkeys(("bos_token", "eos_token", "pad_token"), _WORDS[257])
    vocabulary = tiny.write_tokenizer(folder, SPECIAL, roles, TEMPLATE)
    config = Phi3SmallConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        ff_intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        blocksparse_block_size=16,
        blocksparse_num_local_blocks=4,
        blocksparse_vert_stride=4,
        # muP's width is that over a model 64 wide, and so 1; with 8 a frozen head could say little.
        mup_width_multiplier=1.0,
        initializer_range=0.15,
        dummy_token_indices=[i for i in range(_FIRST, vocabulary) if i not in _SAID],
        bos_token_id=257,
        eos_token_id=257,
        pad_token_id=257,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Phi3SmallForCausalLM(config)
    model.generation_config.eos_token_id = [257, 266]
    model.save_pretrained(folder)
