"""Tests of ``speed_up`` on models of transformers that read the attributes of their layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from helpers.planted_timings import report_of
from helpers.sparse_models import sparsified

pytestmark = pytest.mark.frameworks

transformers: Any = pytest.importorskip("transformers")

VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
          "intermediate_size": 48, "image_size": 16, "patch_size": 4}  # fmt: skip

SIZES: dict[str, dict[str, Any]] = {
    "ViT": VISION,
    "CLIPVision": VISION,
    "T5": {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    "Whisper": {"vocab_size": 50, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
                "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
                "decoder_ffn_dim": 48, "num_mel_bins": 8, "max_source_positions": 20,
                "max_target_positions": 20, "pad_token_id": 0, "bos_token_id": 1,
                "eos_token_id": 2, "decoder_start_token_id": 1},
    "Wav2Vec2": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
                 "intermediate_size": 48, "conv_dim": (16, 16), "conv_stride": (5, 2),
                 "conv_kernel": (10, 3), "num_conv_pos_embeddings": 8,
                 "num_conv_pos_embedding_groups": 2},
}  # fmt: skip


def example(name: str) -> dict[str, Any]:
    """Return random inputs of a model."""
    tokens = torch.randint(3, 50, (2, 5))
    return {
        "T5": {"input_ids": torch.randint(3, 50, (2, 7)), "decoder_input_ids": tokens},
        "Whisper": {"input_features": torch.randn(2, 8, 40), "decoder_input_ids": tokens},
        "Wav2Vec2": {"input_values": torch.randn(2, 400)},
    }.get(name, {"pixel_values": torch.randn(2, 3, 16, 16)})


@pytest.mark.usefixtures("_always_faster")
@pytest.mark.parametrize("name", SIZES)
def test_models_that_read_attributes_of_their_layers_keep_their_outputs(name: str) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(use_cache=False, **SIZES[name])
    model = sparsified(getattr(transformers, f"{name}Model")(config))
    inputs = example(name)
    fast, report = report_of(model, inputs)
    layers = [
        layer_name
        for layer_name, layer in model.named_modules()
        if type(layer) in (nn.Linear, nn.Conv1d, nn.Conv2d)
    ]
    assert list(report.replaced) == layers
    assert not set(report.excluded) & set(layers)
    for each in (inputs, example(name)):
        with torch.no_grad():
            found, expected = fast(**each)[0], model(**each)[0]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
