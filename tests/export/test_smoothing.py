"""Smoothing moves what makes channels differ into the weights, and changes no product."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray

from t1_edge.build import Decoder
from t1_edge_export import slabs
from t1_edge_export.checkpoint import open_checkpoint
from t1_edge_export.decoder import layer_name, linear_layers, projection, tensors
from t1_edge_export.quantize.smooth_quant import smooth
from t1_edge_export.quantize.smoothing import Smoothing, activation_aware
from t1_edge_export.reference import Reference
from tiny import Family, Tiny, first_reader, noise_importance

Float32Array = NDArray[np.float32]

DECODER = Decoder(
    family="llama",
    hidden=24,
    layers=1,
    heads=4,
    kv_heads=2,
    head_dim=6,
    intermediate=32,
    vocabulary=10,
    positions=16,
    norm_epsilon=1e-5,
    rope_theta=1e4,
    tied=True,
)


class _Weights:
    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        self.held = {
            spec.name: draw.standard_normal(spec.shape).astype(np.float32)
            * np.exp(draw.normal(0, 1, spec.shape[1])).astype(np.float32)
            for spec in linear_layers(DECODER)
        }

    def rows(self, name: str, start: int, stop: int) -> Float32Array:
        return self.held[name][start:stop]


def _name(part: str) -> str:
    return layer_name(0, part)


def _importance(inputs: dict[str, Float32Array]) -> dict[str, Float32Array]:
    means = {part: np.mean(np.square(values), axis=0) for part, values in inputs.items()}
    return {
        spec.name: means[projection(first_reader(spec.name))] for spec in linear_layers(DECODER)
    }


def _inputs() -> dict[str, Float32Array]:
    draw = np.random.default_rng(1)
    widths = {"q_proj": 24, "gate_proj": 24, "down_proj": 32, "o_proj": 24}
    return {
        part: (draw.standard_normal((50, width)) * np.exp(draw.normal(0, 2, width))).astype(
            np.float32
        )
        for part, width in widths.items()
    }


Way = Callable[[dict[str, Float32Array]], Smoothing]


def _smooth(importance: dict[str, Float32Array]) -> Smoothing:
    return smooth(DECODER, _Weights(), importance)


@pytest.fixture(params=[_smooth, partial(activation_aware, DECODER)], ids=["smooth", "aware"])
def way(request: pytest.FixtureRequest) -> Way:
    """Each way to find factors."""
    found: Way = request.param
    return found


@pytest.mark.parametrize(
    ("norm", "readers", "given"),
    [
        ("input_layernorm", ("q_proj", "k_proj", "v_proj"), "q_proj"),
        ("post_attention_layernorm", ("gate_proj", "up_proj"), "gate_proj"),
    ],
)
def test_what_a_norm_is_divided_by_its_readers_are_multiplied_by(
    way: Way, norm: str, readers: tuple[str, ...], given: str
) -> None:
    weights, inputs = _Weights(), _inputs()
    smoothing = way(_importance(inputs))
    values = inputs[given]
    normed = smoothing.rows(_name(norm), np.ones(24, np.float32), 0) * values
    assert np.ptp(np.log(np.square(normed).mean(0))) < np.ptp(np.log(np.square(values).mean(0)))
    block = "self_attn" if given == "q_proj" else "mlp"
    for reader in readers:
        name = _name(f"{block}.{reader}")
        plain = weights.held[name]
        rows = smoothing.rows(name, plain, 0) * smoothing.outputs.get(name, np.ones(1))[..., None]
        np.testing.assert_allclose(normed @ rows.T, values @ plain.T, rtol=1e-4, atol=1e-3)


def test_an_mlp_gives_what_it_gave(way: Way) -> None:
    weights = _Weights()
    smoothing = way(_importance(_inputs()))
    gate, values = np.random.default_rng(2).standard_normal((2, 5, 32)).astype(np.float32)
    up, down = _name("mlp.up_proj"), _name("mlp.down_proj")
    before = (gate * values) @ weights.held[down].T
    after = (gate * values / smoothing.outputs[up]) @ smoothing.rows(down, weights.held[down], 0).T
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-3)


def test_heads_that_read_one_value_share_its_factors(way: Way) -> None:
    weights = _Weights()
    smoothing = way(_importance(_inputs()))
    value, output = _name("self_attn.v_proj"), _name("self_attn.o_proj")
    values = np.random.default_rng(3).standard_normal((5, 2, 6)).astype(np.float32)

    def attended(given: Float32Array) -> Float32Array:
        return given.repeat(2, axis=1).reshape(5, 24)  # each head takes its value whole

    before = attended(values) @ weights.held[output].T
    divided = values / smoothing.outputs[value].reshape(2, 6)
    after = attended(divided) @ smoothing.rows(output, weights.held[output], 0).T
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-3)


def test_rows_are_taken_from_where_they_stand(way: Way) -> None:
    weights = _Weights()
    smoothing = way(_importance(_inputs()))
    name = _name("mlp.up_proj")
    whole = smoothing.rows(name, weights.held[name], 0)
    np.testing.assert_array_equal(smoothing.rows(name, weights.rows(name, 7, 20), 7), whole[7:20])


def test_channels_through_which_nothing_passes_stay_finite() -> None:
    inputs = _inputs()
    inputs["q_proj"][:, 3] = 0
    inputs["down_proj"][:] = 0
    weights = _Weights()
    weights.held[_name("mlp.gate_proj")][:, 5] = 0
    weights.held[_name("mlp.up_proj")][:, 5] = 0
    smoothing = smooth(DECODER, weights, _importance(inputs))
    for factors in (*smoothing.inputs.values(), *smoothing.outputs.values()):
        assert np.isfinite(factors).all()
        assert (factors > 0).all()
    norm = smoothing.outputs[_name("input_layernorm")]
    assert norm.max() / norm[3] < 1000  # what was silent may speak, and is not to drown the rest


def test_slabs_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = smooth(DECODER, _Weights(), _importance(_inputs()))
    monkeypatch.setattr(slabs, "SLAB_WEIGHTS", DECODER.head_dim * DECODER.hidden)
    parts = smooth(DECODER, _Weights(), _importance(_inputs()))
    for name, factors in whole.inputs.items():
        np.testing.assert_array_equal(parts.inputs[name], factors)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_smoothed_checkpoint_computes_the_same(family: Family, tiny: Callable[..., Tiny]) -> None:
    plain = open_checkpoint(tiny(family).folder)
    smoothing = activation_aware(plain.decoder, noise_importance(plain.decoder))
    smoothed = smoothing.applied(plain)
    rows = [(3, 7, 11, 2), (5, 1)]
    np.testing.assert_allclose(
        Reference(smoothed).hidden_states(rows), Reference(plain).hidden_states(rows), atol=1e-4
    )
    for spec in tensors(plain.decoder):
        size = spec.shape[0]
        changed = not np.array_equal(
            smoothed.rows(spec.name, 0, size), plain.rows(spec.name, 0, size)
        )
        assert changed == (spec.name in smoothing.inputs or spec.name in smoothing.outputs)
    assert smoothed.tokenizer == plain.tokenizer
    assert smoothed.source() == plain.source()
    assert smoothed.stored_bytes == plain.stored_bytes


def test_squares_are_those_of_what_was_divided(way: Way) -> None:
    inputs = _inputs()
    importance = _importance(inputs)
    smoothing = way(importance)
    name = _name("mlp.down_proj")
    divided = inputs["down_proj"] / smoothing.inputs[name]
    np.testing.assert_allclose(
        smoothing.importance(importance)[name], np.square(divided).mean(axis=0), rtol=1e-4
    )


def test_blocks_lose_least_where_channels_are_divided_by_the_root_of_their_size() -> None:
    name = _name("mlp.down_proj")
    means = np.exp(np.random.default_rng(0).normal(0, 1, 32)).astype(np.float32)
    importance = _importance(_inputs()) | {name: means}
    best = activation_aware(DECODER, importance).inputs[name]

    def loss(factors: Float32Array) -> float:
        return float(np.square(factors).sum() * (means / np.square(factors)).sum())

    around = np.exp(np.random.default_rng(1).normal(0, 0.1, (100, 32)))
    assert loss(best) < min(loss(best * some) for some in around)
    assert loss(best) < 0.9 * loss(np.ones(32, np.float32))


def test_without_statistics_nothing_is_smoothed() -> None:
    assert smooth(DECODER, _Weights(), {}) == Smoothing() == activation_aware(DECODER, {})
    rows = np.ones((2, 3), np.float32)
    assert Smoothing().rows("x", rows, 0) is rows
