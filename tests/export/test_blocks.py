"""The block formats: error of the scale search, round trips, and ggml as the judge."""

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from t1_edge_export.containers import FOUR_BITS, BlockSize, Slab
from t1_edge_export.decoder import TensorSpec
from t1_edge_export.quantize.blocks import (
    dequantize,
    quantize_4_bits,
    quantize_8_bits,
    round_4_bits,
)
from t1_edge_export.quantize.gptq import gptq_4_bits, inverse_factor

Float32Array = NDArray[np.float32]


def _q4_0(
    weights: Float32Array, importance: Float32Array | None = None, block_size: BlockSize = 32
) -> Float32Array:
    codes, scales = quantize_4_bits(weights, importance, block_size=block_size)
    assert scales.shape == (len(weights), weights.shape[1] // block_size)
    spec, encoding = _linear(weights), FOUR_BITS[block_size]
    return dequantize(Slab(spec=spec, encoding=encoding, start=0, codes=codes, scales=scales))


def _linear(weights: Float32Array) -> TensorSpec:
    return TensorSpec(name="w", shape=weights.shape, role="linear")


def _q8_0(weights: Float32Array) -> Float32Array:
    codes, scales = quantize_8_bits(weights, block_size=32)
    spec = TensorSpec(name="w", shape=weights.shape, role="embedding")
    return dequantize(Slab(spec=spec, encoding="q8_0", start=0, codes=codes, scales=scales))


def _plain_q4_0(weights: Float32Array) -> Float32Array:
    """ggml's own rounding, through the gguf package."""
    packed = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q4_0)
    return np.asarray(gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q4_0))


def _rounded(weights: Float32Array, block_size: BlockSize) -> Float32Array:
    """Plainly, in blocks of any size."""
    codes, scales = round_4_bits(weights, block_size=block_size)
    spec, encoding = _linear(weights), FOUR_BITS[block_size]
    return dequantize(Slab(spec=spec, encoding=encoding, start=0, codes=codes, scales=scales))


def _block_errors(found: Float32Array, weights: Float32Array, block_size: int = 32) -> Float32Array:
    """Squared error of each block."""
    return np.asarray(np.square(found - weights).reshape(-1, block_size).sum(axis=1))


@pytest.fixture(params=["normal", "heavy-tailed", "sparse"])
def weights(request: pytest.FixtureRequest) -> Float32Array:
    random = np.random.default_rng(0)
    values = random.standard_normal((64, 256))
    if request.param == "heavy-tailed":
        values = random.standard_t(3, (64, 256))
    if request.param == "sparse":
        values *= random.random(values.shape) < 0.1
    return (values * 0.02).astype(np.float32)


def test_search_beats_plain_rounding_in_every_block(weights: Float32Array) -> None:
    ours = _block_errors(_q4_0(weights), weights)
    plain = _block_errors(_plain_q4_0(weights), weights)
    rounding = 1e-6 * (weights**2).reshape(-1, 32).sum(axis=1)  # of the stored float16 scale
    assert (ours <= plain + rounding).all()
    assert ours.sum() < 0.95 * plain.sum()


@pytest.mark.parametrize("block_size", [64, 128])
def test_wider_blocks_are_searched_as_a_whole(weights: Float32Array, block_size: BlockSize) -> None:
    ours = _block_errors(_q4_0(weights, None, block_size), weights, block_size)
    plain = _block_errors(_rounded(weights, block_size), weights, block_size)
    rounding = 1e-6 * (weights**2).reshape(-1, block_size).sum(axis=1)
    assert (ours <= plain + rounding).all()
    assert ours.sum() < 0.95 * plain.sum()
    assert ours.sum() > _block_errors(_q4_0(weights), weights).sum()  # what fewer scales cost


@pytest.mark.parametrize("block_size", [64, 128])
def test_a_wide_block_of_8_bits_has_one_scale(weights: Float32Array, block_size: BlockSize) -> None:
    codes, scales = quantize_8_bits(weights, block_size=block_size)
    assert scales.shape == (len(weights), weights.shape[1] // block_size)
    largest = np.abs(codes.astype(int)).reshape(len(weights), -1, block_size).max(axis=-1)
    assert set(largest[scales != 0].tolist()) == {127}


def test_plain_rounding_is_ggmls(weights: Float32Array) -> None:
    ours = _rounded(weights, 32)
    theirs = _plain_q4_0(weights)
    # ggml divides by the scale before it rounds it to float16, so a tie may fall to the other side.
    assert (ours == theirs).mean() > 0.99
    errors = [_block_errors(found, weights).sum() for found in (ours, theirs)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


def test_importance_lowers_the_weighted_error(weights: Float32Array) -> None:
    importance = np.random.default_rng(1).gamma(0.3, size=(weights.shape[1],)).astype(np.float32)
    errors = [np.square(_q4_0(weights, given) - weights) for given in (importance, None)]
    with_it, without = (float(np.sum(importance * error)) for error in errors)
    assert with_it < without


def test_importance_of_ones_changes_nothing(weights: Float32Array) -> None:
    ones = np.ones(weights.shape[1], np.float32)
    np.testing.assert_array_equal(_q4_0(weights, ones), _q4_0(weights))


def test_q8_0_is_ggmls(weights: Float32Array) -> None:
    packed = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
    theirs = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
    step = np.abs(weights).reshape(64, -1, 32).max(axis=-1).repeat(32, axis=-1) / 127
    assert (np.abs(_q8_0(weights) - theirs) <= step * 1.01).all()
    error, their_error = ((x - weights) ** 2 for x in (_q8_0(weights), theirs))
    assert error.sum() <= their_error.sum() * 1.001


def test_what_is_on_the_grid_stays() -> None:
    random = np.random.default_rng(2)
    scales = random.uniform(0.001, 0.1, (16, 4)).astype(np.float16).astype(np.float32)
    codes = random.integers(-127, 128, (16, 4, 32))
    codes[..., 0] = 127
    weights = (codes * scales[..., None]).reshape(16, 128).astype(np.float32)
    np.testing.assert_array_equal(_q8_0(weights), weights)


_blocks = hnp.arrays(
    np.float32,
    (2, 64),
    elements=st.floats(-100, 100, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3),
)


@given(_blocks)
@settings(deadline=None)
def test_errors_are_bounded_by_the_step(weights: Float32Array) -> None:
    largest = np.abs(weights).reshape(2, -1, 32).max(axis=-1).repeat(32, axis=-1)
    assert (np.abs(_q8_0(weights) - weights) <= largest / 127 * 0.51 + 1e-6).all()
    total = _block_errors(_q4_0(weights), weights)
    bound = 32 * (largest.reshape(-1, 32)[:, 0] / 8 * 1.01) ** 2
    assert (total <= bound + 1e-9).all()


def test_zeros_stay_zeros() -> None:
    zeros = np.zeros((1, 32), np.float32)
    np.testing.assert_array_equal(_q4_0(zeros), zeros)
    np.testing.assert_array_equal(_q8_0(zeros), zeros)


def _gram(width: int, tokens: int = 400) -> Float32Array:
    """Of inputs whose channels go together, as those of a decoder do."""
    random = np.random.default_rng(1)
    hidden = random.standard_normal((tokens, width // 4)) @ random.standard_normal(
        (width // 4, width)
    )
    inputs = hidden + 0.3 * random.standard_normal((tokens, width))
    return np.asarray(inputs.T @ inputs, np.float32)


def _gptq(weights: Float32Array, gram: Float32Array, block_size: BlockSize = 32) -> Float32Array:
    codes, scales = gptq_4_bits(weights, inverse_factor(gram), block_size=block_size)
    spec, encoding = _linear(weights), FOUR_BITS[block_size]
    return dequantize(Slab(spec=spec, encoding=encoding, start=0, codes=codes, scales=scales))


def _output_error(found: Float32Array, weights: Float32Array, gram: Float32Array) -> float:
    return float(np.einsum("oi,ij,oj->", found - weights, gram, found - weights, optimize=True))


def test_gptq_makes_up_for_its_errors(weights: Float32Array) -> None:
    gram = _gram(weights.shape[1])
    searched = _q4_0(weights, np.diagonal(gram).copy())
    found = _gptq(weights, gram)
    assert _output_error(found, weights, gram) < 0.9 * _output_error(searched, weights, gram)


@pytest.mark.parametrize("block_size", [64, 128])
@pytest.mark.parametrize("weights", ["normal", "heavy-tailed"], indirect=True)
def test_gptq_makes_up_for_the_errors_of_wider_blocks(
    weights: Float32Array, block_size: BlockSize
) -> None:
    """Where most weights are zeros, a wide block has no code for what they would make up for."""
    gram = _gram(weights.shape[1])
    searched = _q4_0(weights, np.diagonal(gram).copy(), block_size)
    found = _gptq(weights, gram, block_size)
    assert _output_error(found, weights, gram) < 0.9 * _output_error(searched, weights, gram)


def test_gptq_over_inputs_that_go_alone_is_the_search(weights: Float32Array) -> None:
    importance = np.linspace(0.1, 3, weights.shape[1]).astype(np.float32)
    gram = np.diag(importance)
    errors = [
        _output_error(found, weights, gram)
        for found in (_gptq(weights, gram), _q4_0(weights, importance))
    ]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)  # the damping


@pytest.mark.parametrize("silent", [slice(3, 40), slice(None)])
def test_gptq_lives_with_channels_that_are_always_zero(
    weights: Float32Array, silent: slice
) -> None:
    gram = _gram(weights.shape[1])
    gram[silent] = gram[:, silent] = 0
    found = _gptq(weights, gram)
    assert np.isfinite(found).all()
    assert np.abs(found - weights).max() < np.abs(weights).max()


def test_gptq_does_not_touch_what_it_was_given(weights: Float32Array) -> None:
    before = weights.copy()
    _gptq(weights, _gram(weights.shape[1]))
    np.testing.assert_array_equal(weights, before)
