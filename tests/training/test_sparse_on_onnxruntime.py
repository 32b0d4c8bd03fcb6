"""Block-sparse attention at Phi-3-small's real geometry beside onnxruntime's own operator for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper

from local_runner.models import block_sparse
from local_runner.models.rotary import Rotary, rotate

TOKENS, ROOM = 1500, 1536
HEADS, GROUPS, SIZE = 32, 8, 128
BLOCK, NEAR, STRIDE = 64, 16, 8
SCALE = 1 / 16
"""Sharper than the model's 1 / 128, so that a block too many or too few shows."""


ROTARY = Rotary(SIZE, base=1e6)


def layouts() -> tuple[np.ndarray, np.ndarray]:
    """The operator's form of eight heads' patterns: where each row of blocks begins, and its columns."""
    begins, columns = [], []
    for head in range(STRIDE):
        begin, column = [0], []
        for mine in range(ROOM // BLOCK):
            column += [
                b for b in range(mine + 1) if mine - b < NEAR or (b + head + 1) % STRIDE == 0
            ]
            begin.append(len(column))
        begins.append(begin)
        columns.append(column)
    longest = max(map(len, columns))
    padded = [column + [-1] * (longest - len(column)) for column in columns]
    return np.array(begins, np.int32), np.array(padded, np.int32)


def by_onnxruntime(query: Any, key: Any, value: Any) -> np.ndarray:
    """com.microsoft.SparseAttention on the CPU, rotation included. [1, tokens, heads * size]"""
    begins, columns = layouts()
    tables = ROTARY.turns(torch.arange(ROOM), torch.float32)
    cos, sin = (x[:, : SIZE // 2].numpy() for x in tables)
    past = np.zeros((1, GROUPS, ROOM, SIZE), np.float32)
    inputs = {
        "query": query,
        "key": key,
        "value": value,
        "past_key": past,
        "past_value": past.copy(),
        "block_row_indices": begins,
        "block_col_indices": columns,
        "total_sequence_length": np.array([TOKENS], np.int32),
        "key_total_sequence_lengths": np.array([TOKENS], np.int32),
        "cos_cache": cos,
        "sin_cache": sin,
    }
    outputs = {"output": query.shape, "present_key": past.shape, "present_value": past.shape}
    node = helper.make_node(
        "SparseAttention",
        list(inputs),
        list(outputs),
        domain="com.microsoft",
        num_heads=HEADS,
        kv_num_heads=GROUPS,
        sparse_block_size=BLOCK,
        do_rotary=1,
        scale=SCALE,
    )
    kinds = {np.dtype("float32"): onnx.TensorProto.FLOAT, np.dtype("int32"): onnx.TensorProto.INT32}
    graph = helper.make_graph(
        [node],
        "sparse",
        [helper.make_tensor_value_info(n, kinds[a.dtype], a.shape) for n, a in inputs.items()],
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in outputs.items()],
    )
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=sets, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    for name, array in inputs.items():
        if name.startswith("past_"):  # the operator writes the cache in place
            value_of = onnxruntime.OrtValue.ortvalue_from_numpy(array)
            binding.bind_ortvalue_input(name, value_of)
            binding.bind_ortvalue_output(name.replace("past", "present"), value_of)
        else:
            binding.bind_cpu_input(name, array)
    binding.bind_output("output")
    session.run_with_iobinding(binding)
    found: np.ndarray = binding.copy_outputs_to_cpu()[-1]
    return found


def test_it_is_onnxruntimes_sparse_attention() -> None:
    dice = np.random.default_rng(0)
    query, key, value = (
        dice.standard_normal((1, TOKENS, count * SIZE), dtype=np.float32)
        for count in (HEADS, GROUPS, GROUPS)
    )
    turns = ROTARY.turns(torch.arange(TOKENS), torch.float32)
    heads = [
        torch.from_numpy(x).view(1, TOKENS, -1, SIZE).transpose(1, 2) for x in (query, key, value)
    ]
    pattern = block_sparse.Pattern(BLOCK, NEAR, STRIDE, HEADS)
    mine = block_sparse.attend(
        rotate(heads[0], *turns), rotate(heads[1], *turns), heads[2], pattern=pattern, scale=SCALE
    )
    expected = by_onnxruntime(query, key, value)
    np.testing.assert_allclose(mine.transpose(1, 2).flatten(2).numpy(), expected, atol=1e-5)
    dense = torch.nn.functional.scaled_dot_product_attention(
        rotate(heads[0], *turns)[:, :, -1:],  # the last token sees all of them
        rotate(heads[1], *turns),
        heads[2],
        scale=SCALE,
        enable_gqa=True,
    )
    off = np.abs(dense.transpose(1, 2).flatten(2).numpy() - expected[:, -1:]).max()
    assert off > 0.01, "the pattern makes no difference: this test would see no fault"
