"""Tests of ``compact`` on models of Hugging Face transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .round_trips import compact_and_reload

pytestmark = pytest.mark.frameworks

transformers: Any = pytest.importorskip("transformers")

SIZES: dict[str, dict[str, Any]] = {
    "Bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 48, "max_position_embeddings": 16},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16, "bos_token_id": 1,
             "eos_token_id": 2},
    "Bart": {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 40,
             "decoder_ffn_dim": 40, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
             "max_position_embeddings": 32},
    "Llama": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32},
}  # fmt: skip

DEAD: dict[str, dict[str, tuple[Any, ...]]] = {
    "Bert": {
        "encoder.layer.0.attention.output.dense": (slice(None), slice(8, 16)),
        "encoder.layer.1.intermediate.dense": (slice(0, 20),),
    },
    "GPT2": {
        "h.0.attn.c_proj": (slice(8, 16),),  # its weight is transposed
        "h.1.mlp.c_fc": (slice(None), slice(0, 40)),
    },
    "Bart": {
        "encoder.layers.0.self_attn.out_proj": (slice(None), slice(8, 16)),
        "decoder.layers.0.fc1": (slice(0, 13),),
    },
    "Llama": {
        "layers.0.self_attn.o_proj": (slice(None), slice(0, 16)),  # the two heads that share a key
        "layers.1.mlp.down_proj": (slice(None), slice(0, 11)),
    },
}

SMALLER = {
    "Bert": {"encoder.layer.0.attention.self.query": (24, 32),
             "encoder.layer.1.output.dense": (32, 28)},
    "GPT2": {"h.0.attn.c_attn": (32, 72), "h.1.mlp.c_proj": (88, 32)},
    "Bart": {"encoder.layers.0.self_attn.v_proj": (24, 32), "decoder.layers.0.fc2": (32, 27)},
    "Llama": {"layers.0.self_attn.k_proj": (8, 32), "layers.1.mlp.up_proj": (37, 32)},
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_dead_heads_and_neurons_are_removed_and_outputs_kept(name: str) -> None:
    config = getattr(transformers, f"{name}Config")(vocab_size=50, **SIZES[name])
    model: Any = getattr(transformers, f"{name}Model")(config).eval()
    with torch.no_grad():
        for layer, index in DEAD[name].items():
            model.get_submodule(layer).weight[index] = 0
        for parameter in model.parameters():  # zero biases would hide mistakes
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    tokens = torch.randint(50, (2, 7))
    options = {} if name == "Bert" else {"use_cache": False}
    small: Any = compact_and_reload(model, {"input_ids": tokens, **options})
    for layer, shape in SMALLER[name].items():
        assert tuple(small.get_submodule(layer).weight.shape) == shape, layer
    # The outputs also match for other lengths, and with padding.
    tokens, attended = torch.randint(50, (3, 11)), torch.ones(3, 11, dtype=torch.long)
    attended[0, 8:] = 0
    for mask in ({}, {"attention_mask": attended}):
        with torch.no_grad():
            expected = model(input_ids=tokens, **mask, **options).last_hidden_state
            found = small(input_ids=tokens, **mask, **options).last_hidden_state
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
