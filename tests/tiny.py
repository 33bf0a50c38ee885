"""Tiny random decoders, and what transformers makes of them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from t1_edge.build import Decoder
from t1_edge.contract import Contract
from t1_edge_export.decoder import linear_layers

Family = Literal["llama", "qwen3"]
Float32Array = NDArray[np.float32]

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TINY_CONTRACT = Contract(
    query="<|im_start|>Find: {text}<|im_end|>",
    document="Text: {text}",
    adds=("<think>", "</think>", "<emb_token>"),
    stop=("<|im_end|>",),
    budget=4,
    max_query_tokens=200,
    max_document_tokens=200,
)


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """A random decoder: the folder it was saved in, and transformers' own model of it."""

    folder: Path
    model: Any

    def truth(self, row: Sequence[int]) -> tuple[Float32Array, Float32Array]:
        """Hidden state [hidden] and logits [vocabulary] after a row, by transformers."""
        import torch

        with torch.no_grad():
            states = self.model.model(torch.tensor([list(row)])).last_hidden_state[0, -1]
            return states.numpy(), self.model.lm_head(states).numpy()


def random_model(family: Family, tied: bool, hidden: int = 64) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    torch.set_num_threads(1)  # tiny matrices: a second thread only waits, long on a busy machine
    shape: dict[str, Any] = {
        "hidden_size": hidden,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 2 * hidden,
        "vocab_size": 384,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tied,
        "initializer_range": 0.15,
    }
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**shape))
    else:  # 4 heads of 32: twice as wide as a residual stream of 64
        model = Qwen3ForCausalLM(Qwen3Config(head_dim=32, **shape))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:  # all ones would hide a norm that is left out
                weight.add_(torch.randn_like(weight) * 0.1)
    return model.eval()


def first_reader(name: str) -> str:
    """The first tensor of a block that reads what a linear layer reads."""
    for later, first in (("k_proj", "q_proj"), ("v_proj", "q_proj"), ("up_proj", "gate_proj")):
        name = name.replace(later, first)
    return name


def noise_importance(decoder: Decoder) -> dict[str, Float32Array]:
    """Mean squared inputs, float32 [in], by tensor name: channels of very different sizes."""
    draw = np.random.default_rng(0)
    found: dict[str, Float32Array] = {}
    for spec in linear_layers(decoder):
        means = np.exp(draw.normal(0, 2, spec.shape[1])).astype(np.float32)
        found[spec.name] = found.get(first_reader(spec.name), means)
    return found


@cache
def tokenizer_json() -> str:
    """A real byte-level BPE of 340 tokens that cuts text as SmolLM's does."""
    tokenizer = Tokenizer(models.BPE())
    cuts = [pre_tokenizers.Digits(individual_digits=True)]
    cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(
        ["the weather in the north and the water of the lake"] * 9, trainer
    )
    tokenizer.add_special_tokens(SPECIALS)
    return json.dumps(json.loads(tokenizer.to_str()))


KNOWN = len(json.loads(tokenizer_json())["model"]["vocab"]) + len(SPECIALS)
"""Ids of the tokenizer. Behind them, builds have rows of their own: the added tokens'."""
