"""SmolLM2 with a LoRA adapter and rows of its own for the new tokens, as torch trains it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from t1_edge.build import Decoder
from t1_edge_export.checkpoint import Checkpoint
from t1_edge_export.decoder import EMBEDDING, tensors

ADAPTER: Final = "adapter_model.safetensors"
CONFIG: Final = "adapter_config.json"

_ATTENTION: Final = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP: Final = ("gate_proj", "up_proj", "down_proj")
_PREFIX: Final = "base_model.model."
_ROWS: Final = f"{_PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta"
"""PEFT's names, so that its tools and `t1-edge export --adapter` read the file."""


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


class Student(nn.Module):
    """A Llama decoder of frozen bfloat16 weights, with what is trained in float32.

    Args:
        checkpoint: The float weights, new tokens included as the last rows of the embedding.
        new: The new tokens' ids.
        rank: Of the adapter.
        alpha: Of the adapter.
        first_layer: Blocks below it stay as they are. Above 0, what stands below it is not
            differentiated, and a new token's row learns as a row of the head alone.
    """

    def __init__(
        self, checkpoint: Checkpoint, new: Sequence[int], *, rank: int, alpha: int, first_layer: int
    ) -> None:
        super().__init__()
        self.decoder: Final = checkpoint.decoder
        self.rank, self.alpha, self.first_layer = rank, alpha, first_layer
        self.model = _load(checkpoint)
        self.first_new = min(new)
        rows = self.model.embed_tokens.weight[self.first_new : self.first_new + len(new)]
        self.rows = nn.Parameter(rows.detach().float().clone())
        for layer in list(self.model.layers)[first_layer:]:
            for owner, names in ((layer.self_attn, _ATTENTION), (layer.mlp, _MLP)):
                for name in names:
                    setattr(owner, name, LoRALinear(getattr(owner, name), rank, alpha / rank))

    def forward(self, ids: Tensor) -> Tensor:
        """Final hidden states of rows that are padded on the right.

        Args:
            ids: int64 [rows, tokens]. A causal row does not see its padding.

        Returns:
            bfloat16 [rows, tokens, hidden], behind the final norm.
        """
        rows = self.rows if self.first_layer == 0 else self.rows.detach()
        embedded = nn.functional.embedding(ids, self.model.embed_tokens.weight)
        new = (ids >= self.first_new) & (ids < self.first_new + len(rows))
        own = rows[(ids - self.first_new).clamp(0, len(rows) - 1)].to(embedded.dtype)
        embedded = torch.where(new.unsqueeze(-1), own, embedded)
        states: Tensor = self.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        return states

    def vectors(self, rows: Sequence[Sequence[int]], *, most: int = 8192) -> Tensor:
        """Unit vectors at the last token of each row, float32 [rows, hidden].

        Args:
            rows: Token ids.
            most: Tokens, padding included, that are read together.
        """
        device = self.rows.device
        found, order = [], sorted(range(len(rows)), key=lambda at: len(rows[at]))
        for chosen in _chunks(order, rows, most):
            ids = pad([rows[at] for at in chosen]).to(device)
            last = torch.tensor([len(rows[at]) - 1 for at in chosen], device=device)
            found.append(self(ids)[torch.arange(len(chosen), device=device), last])
        back = torch.empty(len(order), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(order))
        return nn.functional.normalize(torch.cat(found)[back.to(device)].float(), dim=-1)

    def logits(self, states: Tensor) -> Tensor:
        """Scores of the next token, float32 [..., vocabulary], by the tied head."""
        weight = self.model.embed_tokens.weight
        behind = self.first_new + len(self.rows)
        head = torch.cat([weight[: self.first_new], self.rows.to(weight.dtype), weight[behind:]])
        return nn.functional.linear(states, head).float()

    def trained(self) -> dict[str, nn.Parameter]:
        """What learns, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def save(self, folder: Path, base: str) -> None:
        """Write the adapter in PEFT's layout, float16, with the new tokens' rows beside it.

        Args:
            folder: Made if it is missing.
            base: Name of the checkpoint that it adapts.
        """
        folder.mkdir(parents=True, exist_ok=True)
        found = {
            self._key(name): parameter.detach().half().cpu().contiguous()
            for name, parameter in self.trained().items()
        }
        save_file(found, folder / ADAPTER)
        config = {
            "peft_type": "LORA",
            "base_model_name_or_path": base,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "target_modules": [*_ATTENTION, *_MLP],
            "layers_to_transform": list(range(self.first_layer, self.decoder.layers)),
            "trainable_token_indices": {
                "embed_tokens": [self.first_new + at for at in range(len(self.rows))]
            },
            "task_type": "CAUSAL_LM",
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")

    def load(self, folder: Path) -> None:
        """Take the adapter of a folder that `save` wrote."""
        stored = load_file(folder / ADAPTER)
        with torch.no_grad():
            for name, parameter in self.trained().items():
                parameter.copy_(stored[self._key(name)])

    @staticmethod
    def _key(name: str) -> str:
        return _ROWS if name == "rows" else f"{_PREFIX}{name}.weight"


def pad(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows padded on the right with id 0, int64 [rows, longest]."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *([0] * (longest - len(row)))] for row in rows])


def _chunks(
    order: Sequence[int], rows: Sequence[Sequence[int]], most: int
) -> Iterator[Sequence[int]]:
    """Stretches of an order by length, each of at most `most` tokens with its padding."""
    start = 0
    for at in range(1, len(order) + 1):
        if at == len(order) or len(rows[order[at]]) * (at + 1 - start) > most:
            yield order[start:at]
            start = at


def _load(checkpoint: Checkpoint) -> LlamaModel:
    config = LlamaConfig(**_config(checkpoint.decoder), attn_implementation="sdpa")
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
