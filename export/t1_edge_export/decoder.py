"""What a decoder family is: its shape, and which tensors it has.

Tensors go by the names that Hugging Face checkpoints of the family use, whatever file they were
read from; `Checkpoint` translates. Shapes are [out_features, in_features], as PyTorch keeps them.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from t1_edge.build import Decoder
from t1_edge.errors import CheckpointError

Role = Literal["embedding", "linear", "norm", "head"]

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"

_FAMILIES = {
    "LlamaForCausalLM": "llama",
    "LlamaModel": "llama",  # saved without its head, as encoders are
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3Model": "qwen3",
}


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One tensor of a decoder.

    Attributes:
        name: Hugging Face name.
        shape: [out, in] of a matrix, [n] of a norm.
        role: What it does, which decides how it is quantized.
    """

    name: str
    shape: tuple[int, ...]
    role: Role

    @property
    def size(self) -> int:
        """How many weights it has."""
        return math.prod(self.shape)


def tensors(decoder: Decoder) -> Iterator[TensorSpec]:
    """Every tensor of a decoder, in the order that builds store them."""
    table = (decoder.vocabulary, decoder.hidden)
    yield TensorSpec(name=EMBEDDING, shape=table, role="embedding")
    for layer in range(decoder.layers):
        yield from layer_tensors(decoder, layer)
    yield TensorSpec(name=FINAL_NORM, shape=(decoder.hidden,), role="norm")
    if not decoder.tied:
        yield TensorSpec(name=HEAD, shape=table, role="head")


def linear_weight_count(decoder: Decoder) -> int:
    """How many weights its linear layers have: what tokens pass through, but for the head."""
    return sum(spec.size for spec in linear_layers(decoder))


def weight_count(decoder: Decoder) -> int:
    """How many weights a decoder has."""
    return sum(spec.size for spec in tensors(decoder))


def matrices(decoder: Decoder) -> Iterator[TensorSpec]:
    """Every tensor that is no norm."""
    return (spec for spec in tensors(decoder) if spec.role != "norm")


def projection(name: str) -> str:
    """Which of a block's linear layers a tensor is, as "q_proj"."""
    return name.split(".")[-2]


def linear_layers(decoder: Decoder) -> Iterator[TensorSpec]:
    """The tensors of all blocks that multiply: what is quantized hardest."""
    return (spec for spec in tensors(decoder) if spec.role == "linear")


def layer_tensors(decoder: Decoder, layer: int) -> Iterator[TensorSpec]:
    """The tensors of one block, in the order in which a forward pass meets them."""
    for part, shape in _parts(decoder):
        role: Role = "norm" if len(shape) == 1 else "linear"
        yield TensorSpec(name=layer_name(layer, part), shape=shape, role=role)


def _parts(decoder: Decoder) -> list[tuple[str, tuple[int, ...]]]:
    hidden, inner, head = decoder.hidden, decoder.intermediate, decoder.head_dim
    q, kv = decoder.heads * head, decoder.kv_heads * head
    qk_norm = [("self_attn.q_norm", (head,)), ("self_attn.k_norm", (head,))]
    return [
        ("input_layernorm", (hidden,)),
        ("self_attn.q_proj", (q, hidden)),
        ("self_attn.k_proj", (kv, hidden)),
        ("self_attn.v_proj", (kv, hidden)),
        *(qk_norm if decoder.qk_norm else []),
        ("self_attn.o_proj", (hidden, q)),
        ("post_attention_layernorm", (hidden,)),
        ("mlp.gate_proj", (inner, hidden)),
        ("mlp.up_proj", (inner, hidden)),
        ("mlp.down_proj", (hidden, inner)),
    ]


def layer_name(layer: int, part: str) -> str:
    """Hugging Face name of a block's tensor: part is, say, "self_attn.q_proj"."""
    return f"model.layers.{layer}.{part}.weight"


def decoder_from_config(config: Mapping[str, Any], where: str) -> Decoder:
    """Read a Hugging Face config.json.

    Args:
        config: The parsed file.
        where: What to call the file in messages.

    Raises:
        CheckpointError: If the family, activation, rope or a bias is one that t1-edge does not
            write, or a value is missing.
    """
    try:
        family = _family(config, where)
        _refuse_unsupported(config, where)
        heads = config["num_attention_heads"]
        decoder = {
            "family": family,
            "hidden": config["hidden_size"],
            "layers": config["num_hidden_layers"],
            "heads": heads,
            "kv_heads": config.get("num_key_value_heads") or heads,
            "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
            "intermediate": config["intermediate_size"],
            "vocabulary": config["vocab_size"],
            "positions": config["max_position_embeddings"],
            "rope_theta": _rope_theta(config),
            "norm_epsilon": config["rms_norm_eps"],
            "tied": config.get("tie_word_embeddings", False),
        }
        return checked_decoder(decoder, where)
    except KeyError as e:
        raise CheckpointError(f"{where} has no {e.args[0]!r}: it is not a decoder's config") from e
    except (ValueError, TypeError, AttributeError, ZeroDivisionError) as e:
        raise CheckpointError(f"{where} is damaged: {e}") from e


def checked_decoder(shape: Mapping[str, Any], where: str) -> Decoder:
    """A decoder, whose heads are such that attention and rotation work.

    Args:
        shape: The values of `Decoder`, by its names.
        where: What to call the file in messages.

    Raises:
        CheckpointError: If they are not, or a value is of another type or out of range.
    """
    try:
        decoder = msgspec.convert(shape, Decoder)
    except msgspec.ValidationError as e:
        raise CheckpointError(f"{where} is damaged: {e}") from e
    if decoder.heads % decoder.kv_heads or decoder.head_dim % 2:
        raise CheckpointError(
            f"{where} asks for {decoder.heads} heads of {decoder.head_dim} over "
            f"{decoder.kv_heads} keys and values: these must divide the heads, and 2 a head's width"
        )
    return decoder


def _family(config: Mapping[str, Any], where: str) -> str:
    names = config.get("architectures") or ["(none)"]
    if names[0] not in _FAMILIES:
        known = ", ".join(sorted(_FAMILIES))
        raise CheckpointError(f"{where} names the architecture {names[0]}; known are {known}")
    return _FAMILIES[names[0]]


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Transformers 4 says rope_scaling, 5 says rope_parameters."""
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def _rope_theta(config: Mapping[str, Any]) -> float:
    theta = config.get("rope_theta") or _rope(config).get("rope_theta")
    if theta is None:
        raise KeyError("rope_theta")
    return float(theta)


def _refuse_unsupported(config: Mapping[str, Any], where: str) -> None:
    rope = _rope(config)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise CheckpointError(f"{where} asks for rope scaling {kind!r}; only plain rope is written")
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise CheckpointError(f"{where} asks for the activation {activation!r}; known is silu")
    if config.get("partial_rotary_factor") not in (None, 1):
        raise CheckpointError(f"{where} rotates a part of each head, which t1-edge does not write")
    for flag in ("attention_bias", "mlp_bias", "use_sliding_window"):
        if config.get(flag):
            raise CheckpointError(f"{where} sets {flag}, which t1-edge does not write")
