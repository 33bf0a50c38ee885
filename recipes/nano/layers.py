"""The frozen decoder that a student adapts, and the layer that adapts it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from recipes.nano import attention
from t1_edge.build import Decoder
from t1_edge_export.checkpoint import Checkpoint
from t1_edge_export.decoder import EMBEDDING, tensors


class LoRALinear(nn.Module):
    """A frozen linear layer plus scale * B A (LoRA, arXiv 2106.09685).

    Args:
        base: The layer; its weights get no gradient.
        rank: Rows of A.
        scale: Factor of the product, alpha / rank.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.base = base
        self.scale = scale
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out], in the dtype of x."""
        low = nn.functional.linear(x, self.lora_A.to(x.dtype) * self.scale)
        added: Tensor = self.base(x) + nn.functional.linear(low, self.lora_B.to(x.dtype))
        return added


def load_decoder(checkpoint: Checkpoint) -> LlamaModel:
    """The decoder of a checkpoint in bfloat16, without a head and without gradients."""
    kind = "sdpa" if torch.cuda.is_available() else attention.NAME
    config = LlamaConfig(**_config(checkpoint.decoder), attn_implementation=kind)
    weights = {
        spec.name.removeprefix("model."): torch.from_numpy(
            checkpoint.rows(spec.name, 0, spec.shape[0])
        ).bfloat16()
        for spec in tensors(checkpoint.decoder)
    }
    with torch.device("meta"):
        model = LlamaModel(config)
    model.load_state_dict(weights, assign=True)
    model.rotary_emb = type(model.rotary_emb)(config)
    assert f"model.{next(iter(weights))}" == EMBEDDING
    return model.requires_grad_(False)


def _config(decoder: Decoder) -> Mapping[str, object]:
    return {
        "hidden_size": decoder.hidden,
        "intermediate_size": decoder.intermediate,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads,
        "head_dim": decoder.head_dim,
        "vocab_size": decoder.vocabulary,
        "max_position_embeddings": decoder.positions,
        "rope_theta": decoder.rope_theta,
        "rms_norm_eps": decoder.norm_epsilon,
        "tie_word_embeddings": True,
    }
