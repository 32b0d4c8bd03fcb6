"""What the training benchmark trains on: random models, a tokenizer, chats of the library's words."""

from __future__ import annotations

import ast
import json
import random
import re
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

VOCABULARY = 32_064
SPECIAL = ("<s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|user|>", "<|end|>")
SIZES: dict[str, tuple[int, int, int, int]] = {
    "S": (256, 704, 4, 4),
    "M": (768, 2048, 12, 12),
}
"""Hidden, inner, layers, heads."""
TEMPLATE = (
    "{%- for message in messages -%}{{- '<|' + message['role'] + '|>\n' -}}"
    "{%- if message['role'] == 'assistant' -%}{GEN}{{- message['content'] + '<|end|>' -}}{END}"
    "{%- else -%}{{- message['content'] + '<|end|>' -}}{%- endif -%}{{- '\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>\n' -}}{%- else -%}{{- eos_token -}}{%- endif -%}"
)
"""Phi-3-mini's, with room for the marks that tell transformers which tokens the assistant says."""


def sentences() -> list[str]:
    """Sentences from the docstrings of the standard library."""
    found: set[str] = set()
    library = Path(sysconfig.get_path("stdlib"))
    for file in sorted(library.rglob("*.py")):
        if {"site-packages", "test", "tests", "lib2to3"} & set(file.relative_to(library).parts):
            continue
        tree = ast.parse(file.read_text(encoding="utf-8", errors="replace"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                words = " ".join((ast.get_docstring(node) or "").split())
                found |= {part for part in re.split(r"(?<=[.!?]) ", words) if 20 < len(part) < 300}
    return sorted(found)


def make_tokenizer(said: Sequence[str]) -> Any:
    """A byte-level BPE with Phi-3's special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=32_000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(said, trainer)
    raw.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    return raw


def chats(count: int, said: Sequence[str], raw: Any, *, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Chats of about 322 tokens, a quarter of them the assistant's, up to 866."""
    dice = random.Random(seed)  # noqa: S311 - no secret
    sizes = [len(code.ids) for code in raw.encode_batch(list(said))]

    def speak(tokens: float) -> str:
        words: list[str] = []
        while tokens > 0:
            place = dice.randrange(len(said))
            words.append(said[place])
            tokens -= sizes[place]
        return " ".join(words)

    for _ in range(count):
        length = min(866.0, max(60.0, dice.lognormvariate(5.62, 0.43)))
        turns = dice.choice((1, 1, 2, 3))
        messages = []
        for _ in range(turns):
            messages += [
                {"role": "user", "content": speak(length / turns * 0.66)},
                {"role": "assistant", "content": speak(length / turns * 0.19)},
            ]
        yield {"messages": messages}


def make(folder: Path, *, rows: int) -> None:
    """Models S and M, each for us and for the peers, and the rows."""
    said = sentences()
    raw = make_tokenizer(said)
    lines = list(chats(rows, said, raw))
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "chats.jsonl", lines)
    whole = [{"text": render(row["messages"])} for row in lines]
    write_rows(folder / "texts.jsonl", whole)
    for size in SIZES:
        _make_model(folder / size, raw, size, marks=("", ""))
        peer = folder / f"{size}-peer"
        peer.mkdir()
        for file in (folder / size).iterdir():
            (peer / file.name).symlink_to(file.resolve())
        (peer / "chat_template.jinja").unlink()
        (peer / "chat_template.jinja").write_text(
            _template("{%- generation -%}", "{%- endgeneration -%}")
        )


def render(messages: Sequence[dict[str, str]]) -> str:
    """A chat as the template writes it, up to the token that ends a text."""
    return "".join(f"<|{m['role']}|>\n{m['content']}<|end|>\n" for m in messages)


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _template(begin: str, end: str) -> str:
    return TEMPLATE.replace("{GEN}", begin).replace("{END}", end)


def _make_model(folder: Path, raw: Any, size: str, *, marks: tuple[str, str]) -> None:
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM, PreTrainedTokenizerFast

    hidden, inner, layers, heads = SIZES[size]
    config = Phi3Config(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=4096,
        original_max_position_embeddings=4096,
        sliding_window=None,
        bos_token_id=raw.token_to_id("<s>"),
        eos_token_id=raw.token_to_id("<|endoftext|>"),
        pad_token_id=raw.token_to_id("<|endoftext|>"),
    )
    torch.manual_seed(0)
    Phi3ForCausalLM(config).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        **dict(
            zip(("bos_token", "eos_token", "pad_token"), (*SPECIAL[:2], SPECIAL[1]), strict=True)
        ),
    )
    tokenizer.chat_template = _template(*marks)
    tokenizer.save_pretrained(folder)
