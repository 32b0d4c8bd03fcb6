"""Phi-3-small: its numbers against loops in float64, its attention against the square, and its verbs."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from local_runner.models import block_sparse
from local_runner.models.family import ARCHITECTURES
from local_runner.models.phi3_small import Phi3SmallForCausalLM, gegelu
from local_runner.models.phi3_small_config import DUMMY_IDS, Phi3SmallConfig
from tests.training import small_by_hand

HEAD_DIM = 8
LONG = {
    "type": "su",
    "short_factor": [1.0, 1.1, 1.3, 1.6],
    "long_factor": [1.0, 2.0, 5.0, 9.0],
    "short_mscale": 1.1,
    "long_mscale": 1.3,
}


def make(**changes: Any) -> Phi3SmallForCausalLM:
    """A model of three layers, sparse from 12 tokens on, that is sure of nothing."""
    shape = {"hidden_size": 64, "ff_intermediate_size": 48, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 90}
    blocks = {"blocksparse_block_size": 4, "blocksparse_num_local_blocks": 3}
    ids = {"dummy_token_indices": [3, 88], "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    plain = {"embedding_dropout_prob": 0.0, "ffn_dropout_prob": 0.0, "initializer_range": 0.3}
    settings = shape | heads | blocks | ids | plain | {"blocksparse_vert_stride": 4} | changes
    torch.manual_seed(0)
    model: Any = Phi3SmallForCausalLM(Phi3SmallConfig(**settings))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias") or "layernorm" in name:
                weight.add_(
                    0.2 * torch.randn_like(weight)
                )  # else a forgotten bias would not be seen
    assert isinstance(model, Phi3SmallForCausalLM)
    return model.eval()


def some_ids(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(4, 88, (1, length), generator=torch.Generator().manual_seed(seed))


def close(a: torch.Tensor, b: torch.Tensor, within: float = 2e-5) -> None:
    torch.testing.assert_close(a, b, atol=within, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"blocksparse_homo_head_pattern": True, "gegelu_limit": 0.5},
        {"blocksparse_vert_stride": 16, "mup_use_scaling": False, "gegelu_limit": None},
        {"rope_scaling": LONG, "original_max_position_embeddings": 64},
        {"rope_scaling": LONG, "original_max_position_embeddings": 32},
        {"dense_attention_every_n_layers": None, "rope_position_scale": 0.5},
    ],
    ids=["as published", "one pattern", "wide stride", "short", "long", "all sparse"],
)
def test_its_logits_are_those_of_loops_in_float64(changes: dict[str, Any]) -> None:
    model = make(**changes)
    ids = some_ids(45)
    weights = {key: tensor.double().numpy() for key, tensor in model.state_dict().items()}
    expected = small_by_hand.logits(weights, model.config, ids[0].tolist())
    with torch.inference_mode():
        made = model(ids).logits[0].double().numpy()
    said = [i for i in range(90) if i not in (3, 88)]
    assert expected[:, said].std() > 0.1
    np.testing.assert_allclose(made[:, said], expected[:, said], atol=3e-5, rtol=1e-5)
    assert (made[:, [3, 88]] == small_by_hand.LOWEST).all()


PATTERN = block_sparse.Pattern(block=4, near=3, stride=4, heads=8)


def squared(query: Any, key: Any, value: Any, pattern: block_sparse.Pattern) -> torch.Tensor:
    """The same attention with the whole square and a mask."""
    at = torch.arange(key.shape[2] - query.shape[2], key.shape[2])[:, None]
    key_at = torch.arange(key.shape[2])
    mine, other = at // pattern.block, key_at // pattern.block
    shift = torch.arange(pattern.heads)[:, None, None] * max(1, pattern.stride // pattern.heads)
    far = (other + shift + 1) % pattern.stride == 0
    seen = (key_at <= at) & ((mine - other < pattern.near) | far)
    key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value))
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, scale=0.3
    )


@pytest.mark.parametrize(("tokens", "length"), [(61, 61), (64, 64), (1, 61), (13, 50), (40, 137)])
def test_blocks_give_what_the_masked_square_gives_forward_and_backward(
    tokens: int, length: int
) -> None:
    dice = torch.Generator().manual_seed(length)
    given = [
        torch.randn(2, heads, count, 8, dtype=torch.double, generator=dice).requires_grad_()
        for heads, count in ((8, tokens), (2, length), (2, length))
    ]
    mine = block_sparse.attend(*given, pattern=PATTERN, scale=0.3)
    expected = squared(*given, PATTERN)
    torch.testing.assert_close(mine, expected, atol=1e-12, rtol=0)
    slope = torch.randn(mine.shape, dtype=torch.double, generator=dice)
    for a, b in zip(
        torch.autograd.grad(mine, given, slope),
        torch.autograd.grad(expected, given, slope),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_a_far_block_that_a_head_does_not_see_changes_nothing_for_it() -> None:
    """Its first head sees the last of each four blocks; a token of another far block is out of its sight."""
    query, key, value = torch.randn(1, 8, 1, 8), torch.randn(1, 2, 60, 8), torch.randn(1, 2, 60, 8)
    before = block_sparse.attend(query, key, value, pattern=PATTERN, scale=0.3)
    key[:, :, 9], value[:, :, 9] = 50.0, 50.0  # in block 2
    after = block_sparse.attend(query, key, value, pattern=PATTERN, scale=0.3)
    changed = (before != after).flatten(2).any(-1)[0].tolist()
    assert changed == [head % 4 == 1 for head in range(8)]


def test_the_bf16_pass_is_the_fp32_pass_but_for_rounding() -> None:
    model, ids = make(), some_ids(45)
    with torch.inference_mode():
        wide = model(ids).logits
        narrow = model.to(torch.bfloat16)(ids).logits
    assert narrow.dtype is torch.float32
    said = [i for i in range(90) if i not in (3, 88)]
    assert float((wide - narrow)[..., said].abs().max()) < 0.1 * float(wide[..., said].std())


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_text(side: str) -> None:
    model = make()
    texts = [some_ids(length, length)[0] for length in (45, 31, 6)]
    ids, real = torch.zeros(3, 45, dtype=torch.long), torch.zeros(3, 45, dtype=torch.long)
    for row, text in enumerate(texts):
        place = slice(45 - len(text), 45) if side == "left" else slice(0, len(text))
        ids[row, place], real[row, place] = text, 1
    with torch.inference_mode():
        out = model(ids, attention_mask=real).logits
        for row, text in enumerate(texts):
            close(out[row][real[row].bool()], model(text[None]).logits[0])


def test_a_prompt_in_parts_is_the_prompt_as_a_whole_and_the_cache_is_no_cache() -> None:
    model, ids = make(), some_ids(47)
    with torch.inference_mode():
        whole = model(ids, use_cache=False)
        assert whole.past_key_values is None
        cache, parts = None, []
        for part in ids.split([17, 1, 20, 1, 1, 7], 1):
            out = model(part, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
    close(torch.cat(parts, 1), whole.logits)


def test_a_hole_in_the_mask_is_not_seen() -> None:
    """Right-padded prompts that go on: the padding stays between."""
    model, text = make(), some_ids(47)
    real = torch.ones(1, 47, dtype=torch.long)
    real[0, 15:18] = 0
    other = text.clone()
    other[0, 15:18] = 40
    with torch.inference_mode():
        outs = [model(ids, attention_mask=real).logits[real.bool()] for ids in (text, other)]
    torch.testing.assert_close(outs[0], outs[1], atol=0, rtol=0)


def test_a_batch_generates_what_each_text_generates_alone() -> None:
    model = make()
    texts = [some_ids(length, length)[0] for length in (30, 21, 9)]
    ids, real = torch.zeros(3, 30, dtype=torch.long), torch.zeros(3, 30, dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, 30 - len(text) :], real[row, 30 - len(text) :] = text, 1
    how: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": 2}
    together = model.generate(input_ids=ids, attention_mask=real, **how)[:, 30:]
    for row, text in enumerate(texts):
        alone = model.generate(
            input_ids=text[None], attention_mask=torch.ones_like(text)[None], **how
        )[0, len(text) :]
        assert together[row, : len(alone)].tolist() == alone.tolist()
    assert not {3, 88} & set(together.flatten().tolist())


def test_a_text_that_outgrows_the_short_factors_is_read_again() -> None:
    model = make(rope_scaling=LONG, original_max_position_embeddings=40)
    ids, made = some_ids(36), []
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False,
        eos_token_id=2,
    )  # fmt: skip
    text = ids
    with torch.inference_mode():
        for _ in range(10):
            made.append(model(text, use_cache=False).logits[:, -1].argmax(-1, keepdim=True))
            text = torch.cat([text, made[-1]], 1)
    assert out.tolist() == text.tolist()


def adapted(model: Any, **how: Any) -> Any:
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        target_modules=sorted(ARCHITECTURES["phi3small"].lora_targets),
        **how,
    )
    with warnings.catch_warnings():
        # peft reads a property that transformers 5 has renamed; nothing is lost.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        return peft.get_peft_model(model, config)


def test_lora_covers_every_projection_and_merges_into_the_same_model() -> None:
    model = adapted(make(), init_lora_weights=False).eval()
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 3 * 4
    ids = some_ids(45)
    with torch.inference_mode():
        before = model(ids).logits
        with model.disable_adapter():
            assert not torch.allclose(before, model(ids).logits)
        close(before, model.merge_and_unload()(ids).logits, within=1e-4)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    found = []
    for checkpointed in (False, True):
        model = adapted(make(ffn_dropout_prob=0.1), init_lora_weights=False).train()
        if checkpointed:
            with warnings.catch_warnings():
                # the name that every transformers 5 has; 6 will have another
                warnings.filterwarnings("ignore", message=".*gradient_checkpointing_enable.*")
                model.gradient_checkpointing_enable({"use_reentrant": False})
            assert model.get_base_model().model.layers[0].gradient_checkpointing
        torch.manual_seed(1)
        ids = some_ids(45)
        model(input_ids=ids, labels=ids).loss.backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert all(grad.abs().max() > 0 for grad in found[0].values())
    for name, grad in found[0].items():
        torch.testing.assert_close(grad, found[1][name], atol=1e-7, rtol=1e-5)


HUB_CONFIG = {
    "_name_or_path": "Phi-3-small-128k-instruct",
    "architectures": ["Phi3SmallForCausalLM"],
    "attention_bias": False,
    "auto_map": {
        "AutoConfig": "configuration_phi3_small.Phi3SmallConfig",
        "AutoModelForCausalLM": "modeling_phi3_small.Phi3SmallForCausalLM",
    },
    "blocksparse_triton_kernel_block_size": 64,
    "gegelu_pad_to_256": True,
    "max_position_embeddings": 128,
    "model_type": "phi3small",
    "original_max_position_embeddings": 40,
    "pad_sequence_to_multiple_of_64": True,
    "reorder_and_upcast_attn": False,
    "rope_scaling": LONG,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.38.1",
}
"""The keys of a published config.json, with a small model's numbers."""


@pytest.mark.parametrize("with_head", [False, True])
def test_a_published_folder_loads_without_its_code_and_saves_the_same_bits(
    tmp_path: Path, *, with_head: bool
) -> None:
    model: Any = make()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    head = state.pop("lm_head.weight")
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    save_file(
        state | ({"lm_head.weight": head} if with_head else {}), tmp_path / "model.safetensors"
    )
    config = json.loads(model.config.to_json_string(use_diff=False)) | HUB_CONFIG
    config.pop("dtype")
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded, report = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype="float32", output_loading_info=True
    )
    assert isinstance(loaded, Phi3SmallForCausalLM)
    assert not any(report.values())
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    loaded.save_pretrained(tmp_path / "again")
    saved = load_file(tmp_path / "again" / "model.safetensors")
    del state["model.layers.0.self_attn.rotary_emb.inv_freq"]
    assert saved.keys() == state.keys()
    assert all(torch.equal(saved[key], state[key]) for key in state)
    again = Phi3SmallForCausalLM.from_pretrained(tmp_path / "again").eval()
    assert again.config.rope_scaling == LONG
    assert again.config.original_max_position_embeddings == 40
    with torch.inference_mode():
        assert torch.equal(again(some_ids(45)).logits, loaded.eval()(some_ids(45)).logits)


def test_the_published_shape_has_the_published_number_of_weights() -> None:
    with torch.device("meta"):
        model: Any = Phi3SmallForCausalLM(Phi3SmallConfig())
    assert sum(p.numel() for p in model.parameters()) == 7_392_272_384
    layer = model.model.layers[0]
    assert tuple(layer.self_attn.query_key_value.weight.shape) == (6144, 4096)
    assert layer.self_attn.scale == 1 / 128
    assert [config.is_dense for config in (block.self_attn for block in model.model.layers[:4])] == [
        False, True, False, True,
    ]  # fmt: skip
    assert model.config.dummy_token_indices == list(DUMMY_IDS)
    assert len(DUMMY_IDS) == 91


def test_the_rotations_are_transformers_longrope() -> None:
    from transformers import Phi3Config
    from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

    factors = {key: LONG[key] for key in ("short_factor", "long_factor")}
    size = {"max_position_embeddings": 512, "original_max_position_embeddings": 64}
    mine: Any = make(rope_scaling={"type": "su", **factors}, **size).config
    theirs = Phi3RotaryEmbedding(
        Phi3Config(
            hidden_size=64, num_attention_heads=8, pad_token_id=0, **size,
            rope_parameters={"rope_type": "longrope", "rope_theta": 1e6, **factors},
        )
    )  # fmt: skip
    for length in (64, 65, 300):
        places = torch.arange(length)[None]
        for a, b in zip(
            mine.rotary.turns(places, torch.float32), theirs(torch.zeros(1), places), strict=True
        ):
            close(a, b, within=1e-6)


def test_an_overflow_is_no_number_that_the_limit_hides() -> None:
    x = torch.tensor([[torch.inf, 0.0, 30.0, -30.0]])
    assert gegelu(x, 20.0).tolist() == [[torch.inf, -19.0 * 20.0]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention_dropout_prob": 0.1}, "attention_dropout_prob is 0.1"),
        ({"hidden_act": "silu"}, "hidden_act is 'silu'"),
        ({"rope_scaling": {"type": "yarn"}}, "'yarn' is not known"),
        ({"rope_scaling": {**LONG, "long_factor": [1.0]}}, "long_factor has 1 numbers; 4"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(**changes)
