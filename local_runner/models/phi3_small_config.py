"""Phi-3-small's shape, by the names of the published config.json; what is not known is refused."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from local_runner.models.rotary import Rotary, check_scaling

DUMMY_IDS = (100256, *range(100258, 100261), 100264, 100265, *range(100267, 100352))
"""Rows of the vocabulary that stand for no token; a model never says them."""


class Phi3SmallConfig(PreTrainedConfig):  # type: ignore[misc]
    """The defaults are the 8k variant's."""

    model_type = "phi3small"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - transformers' own form
    attribute_map = {"intermediate_size": "ff_intermediate_size"}  # noqa: RUF012

    vocab_size: int = 100352
    hidden_size: int = 4096
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    ff_intermediate_size: int = 14336
    ff_dim_multiplier: int | None = None
    hidden_act: str = "gegelu"
    gegelu_limit: float | None = 20.0
    layer_norm_epsilon: float = 1e-5
    max_position_embeddings: int = 8192
    original_max_position_embeddings: int | None = None
    rope_embedding_base: float = 1e6
    rope_position_scale: float = 1.0
    rope_scaling: dict[str, Any] | None = None
    mup_use_scaling: bool = True
    mup_width_multiplier: float | None = 8.0
    mup_embedding_multiplier: float | None = 10.0
    mup_attn_multiplier: float | None = 1.0
    dense_attention_every_n_layers: int | None = 2
    blocksparse_block_size: int = 64
    blocksparse_num_local_blocks: int = 16
    blocksparse_vert_stride: int = 8
    blocksparse_homo_head_pattern: bool = False
    embedding_dropout_prob: float = 0.1
    ffn_dropout_prob: float = 0.1
    attention_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    dummy_token_indices: list[int] | None = None
    use_cache: bool = True
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 100257
    eos_token_id: int | list[int] | None = 100257
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.dummy_token_indices is None:
            self.dummy_token_indices = [i for i in DUMMY_IDS if i < self.vocab_size]
        if self.rope_scaling is not None:
            check_scaling(self.rope_scaling, self.head_dim)
            inside = self.rope_scaling.get("original_max_position_embeddings")
            self.original_max_position_embeddings = (
                self.original_max_position_embeddings or inside or 8192
            )
        for key, wanted in (
            ("hidden_act", "gegelu"),
            ("ff_dim_multiplier", None),
            ("attention_dropout_prob", 0.0),
        ):
            if getattr(self, key) != wanted:
                raise ValueError(
                    f"{key} is {getattr(self, key)!r}; every published Phi-3-small has {wanted!r}"
                )
        super().__post_init__(**kwargs)

    @property
    def head_dim(self) -> int:
        """Features of one head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def rotary(self) -> Rotary:
        """How its heads are turned."""
        return Rotary(
            size=self.head_dim,
            base=self.rope_embedding_base,
            scaling=self.rope_scaling,
            before=self.original_max_position_embeddings or 0,
            longest=self.max_position_embeddings,
            step=self.rope_position_scale,
        )

    def is_dense(self, layer: int) -> bool:
        """Whether a layer, counted from 0, sees all tokens."""
        every = self.dense_attention_every_n_layers
        return bool(every) and (layer + 1) % int(every or 1) == 0
