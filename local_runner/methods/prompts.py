"""Virtual tokens before a text: how prefix and prompt tuning go into the model's forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor


def has_virtual_tokens(model: Any) -> bool:
    """Whether the model's adapter is virtual tokens."""
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


def hidden_states(model: Any, ids: Tensor, real: Tensor | None) -> Tensor:
    """The last hidden states of a text's own tokens, [rows, longest, hidden].

    Args:
        model: a transformers model, or a `PeftModel` over one.
        ids: [rows, longest].
        real: [rows, longest], 1 where there is a token; None where there is one everywhere.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not has_virtual_tokens(model):
        out = inner.model(input_ids=ids, attention_mask=real, use_cache=False)
        return torch.as_tensor(out.last_hidden_state)
    before, given = _inputs(model, inner, ids)
    if real is not None:
        real = torch.cat((real.new_ones(len(ids), before), real), dim=1)
    out = inner.model(**given, attention_mask=real)
    return torch.as_tensor(out.last_hidden_state)[:, -ids.shape[1] :]


def answer_on(model: Any, ids: Tensor, cache: Any) -> Any:
    """The model's output on more of a text, with the cache to go on with.

    Args:
        model: a transformers model, or a `PeftModel` over one.
        ids: [1, length], what the cache does not hold yet.
        cache: transformers', as the call before returned it; empty at first.
    """
    given: dict[str, Any] = {"input_ids": ids, "past_key_values": cache}
    if has_virtual_tokens(model):
        inner = model.get_base_model()
        if cache.get_seq_length() == 0:  # later on they are in the cache
            _, given = _inputs(model, inner, ids)
        model = inner
    return model(**given, use_cache=True, logits_to_keep=1)


def _inputs(model: Any, inner: Any, ids: Tensor) -> tuple[int, dict[str, Any]]:
    """How many virtual tokens there are, and the inputs with them."""
    count = model.active_peft_config.num_virtual_tokens
    if model.active_peft_config.peft_type == "PREFIX_TUNING":
        return count, {"input_ids": ids, "past_key_values": model.get_prompt(len(ids))}
    embedded = inner.get_input_embeddings()(ids)
    virtual = model.get_prompt(len(ids)).to(embedded.dtype)
    return count, {"inputs_embeds": torch.cat((virtual, embedded), dim=1)}
