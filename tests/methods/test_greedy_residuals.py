"""Greedy residuals against an independent straight-line implementation of the published equations, and under the null."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch

from hf_watermark import GreedyResidualsConfig, GreedyResidualsTrainer, GreedyResidualsVerifier, Suspect, WatermarkKey
from hf_watermark.backbones import Carrier, slot_rows
from hf_watermark.keys import SubKey
from hf_watermark.methods.greedy_residuals.residuals import fitting_subkeys, hinge, place_groups, residuals, signs
from hf_watermark.statistics import binomial_min_matches, log2_binomial_tail


def subkey_number(number: int, slot: int = 0) -> SubKey:
    return SubKey(slot, slot, hashlib.sha256(str(number).encode()).digest())


# --- Straight-line NumPy, one bit at a time ---------------------------------------------------------------------------


def words_of(subkey: SubKey):
    stream = subkey.stream("carrier")
    while True:
        yield int.from_bytes(stream.bytes(8), "big")


def straight_greedy_mean(values: np.ndarray, kept_fraction: float) -> float:
    size = len(values)
    zeroed = int(size * (1 - kept_fraction) + 0.5)
    order = sorted(range(size), key=lambda j: abs(values[j]))
    return sum(values[j] for j in order[zeroed:]) / size


def straight_groups(subkey, tensors, bits, size, subkeys):
    """`(tensor, row, columns)` per bit; `tensors` are shapes `(rows, columns)`. The recipe of `place_groups`, in words, by hand."""
    words = words_of(subkey)
    places = [
        (tensor, row, group)
        for tensor, (rows, columns) in enumerate(tensors)
        for row in range(rows)
        if (subkey.slot + tensor) % subkeys == [b for b in range(subkeys) if rows * b // subkeys <= row][-1]
        for group in range(columns // size)
    ]
    for step in range(bits):
        other = step + next(words) % (len(places) - step)
        places[step], places[other] = places[other], places[step]
    chosen = places[:bits]
    used = sorted({(tensor, row) for tensor, row, _ in chosen})
    units = {c: [a for a in range(1, c + 1) if np.gcd(a, c) == 1] for _, c in tensors}
    factor = {at: units[tensors[at[0]][1]][next(words) % len(units[tensors[at[0]][1]])] for at in used}
    shift = {at: next(words) % tensors[at[0]][1] for at in used}
    return [
        (t, r, [(factor[t, r] * (g * size + k) + shift[t, r]) % tensors[t][1] for k in range(size)])
        for t, r, g in chosen
    ]


def straight_default(subkey, weights, scales, bits, size, subkeys, kept_fraction) -> np.ndarray:
    matrices = [weight.reshape(len(weight), -1) for weight in weights]
    groups = straight_groups(subkey, [matrix.shape for matrix in matrices], bits, size, subkeys)
    phi = []
    for tensor, row, columns in groups:
        line = matrices[tensor][row]
        canonical = line / np.sqrt(np.mean(line**2)) * np.sign(scales[tensor][row])
        phi.append(straight_greedy_mean(canonical[columns], kept_fraction))
    return np.array(phi)


def straight_paper(subkey, weight, kept_fraction) -> np.ndarray:
    """papers.md 2.2: drop the remainder, average-pool 1-D to 256 x 253, drop the smaller half of each row, mean over all 253."""
    words = words_of(subkey)
    w = weight.flatten()
    ranks = [next(words) for _ in w]
    w = w[sorted(range(len(w)), key=ranks.__getitem__)]
    m, d = len(w) // 253 * 253, 256 * 253
    sums = np.concatenate([[0.0], np.cumsum(w[:m])])
    first, last = np.arange(d) * m // d, -(-(np.arange(d) + 1) * m // d)
    gamma = ((sums[last] - sums[first]) / (last - first)).reshape(256, 253)
    return np.array([straight_greedy_mean(row, kept_fraction) for row in gamma])


@pytest.mark.parametrize("seed", range(10))
def test_default_equals_the_straight_line(seed):
    random = np.random.default_rng(seed)
    kernel = int(random.choice([1, 3]))
    shapes = [(int(random.integers(6, 20)), int(random.integers(10, 30)), kernel, kernel) for _ in range(2)]
    weights = [random.normal(size=shape) * 0.1 for shape in shapes]
    scales = [random.normal(size=shape[0]) for shape in shapes]
    bits, size, subkeys, slot = 10, int(random.integers(8, 11)), 2, seed % 2
    kept_fraction = float(random.choice([0.5, 0.7, 1.0]))
    state = {}
    for number, (weight, scale) in enumerate(zip(weights, scales, strict=True)):
        state[f"layer{number + 1}.0.conv2.weight"] = torch.tensor(weight, dtype=torch.float32)
        state[f"layer{number + 1}.0.bn2.weight"] = torch.tensor(scale, dtype=torch.float32)
    carriers = [
        Carrier(f"resnet.{number}", shape[0], shape[1] * kernel**2, kernel**2) for number, shape in enumerate(shapes)
    ]
    config = GreedyResidualsConfig(bits=bits, subkeys=subkeys, group_size=size, kept_fraction=kept_fraction)
    names = {name: tuple(tensor.shape) for name, tensor in state.items()}
    subkey = subkey_number(seed, slot)
    phi = residuals(config, carriers, state, names, subkey, subkeys)
    expected = straight_default(subkey, weights, scales, bits, size, subkeys, kept_fraction)
    np.testing.assert_allclose(phi.numpy(), expected, rtol=0, atol=1e-6)
    assert np.array_equal(phi.numpy() > 0, expected > 0)


@pytest.mark.parametrize("seed", range(10))
def test_paper_preset_equals_the_straight_line(seed):
    random = np.random.default_rng(seed)
    # ResNet-18's conv1 is up-sampled to the grid, a large layer is pooled.
    shape = (64, 3, 3, 3) if seed < 7 else (int(random.integers(64, 100)), 128, 3, 3)
    weight = (random.normal(size=shape) * 0.06).astype(np.float32)
    carrier = Carrier("conv1.weight", shape[0], shape[1] * 9, 9)
    state, names = {"conv1.weight": torch.from_numpy(weight)}, {"conv1.weight": shape}
    phi = residuals(GreedyResidualsConfig.paper(), [carrier], state, names, subkey_number(seed), 1)
    expected = straight_paper(subkey_number(seed), weight.astype(np.float64), 0.5)
    np.testing.assert_allclose(phi.numpy(), expected, rtol=0, atol=1e-6)


# --- Properties -------------------------------------------------------------------------------------------------------


CARRIERS = [Carrier("resnet.0", 16, 72, 9), Carrier("resnet.1", 32, 144, 9)]


def test_groups_of_all_subkeys_are_disjoint_and_within_rows():
    seen = set()
    for slot in range(3):
        groups = place_groups(subkey_number(slot, slot), CARRIERS, bits=96, group_size=16, subkeys=3)
        assert groups.positions.shape == (96, 16)
        for carrier, row, columns in zip(groups.carrier, groups.row, groups.columns, strict=True):
            assert int(row) in slot_rows(int(carrier), CARRIERS[carrier].rows, slot, 3)
            seen |= {(int(carrier), int(row), int(column)) for column in columns}
    assert len(seen) == 3 * 96 * 16


def test_positions_are_spread_over_all_carriers():
    groups = place_groups(subkey_number(0), CARRIERS, bits=300, group_size=16, subkeys=1)
    held = np.bincount(groups.carrier.numpy(), minlength=2) / np.array([16 * 4, 32 * 9])
    assert held.min() > 0.5  # 300 of 352 groups


def test_default_number_of_subkeys():
    config = GreedyResidualsConfig()
    resnet18 = [Carrier(f"resnet.{i}", 64 << i // 2, (64 << i // 2) * 9, 9) for i in range(8)]
    small = [Carrier("resnet.0", 128, 128 * 9, 9)]
    assert fitting_subkeys(resnet18, config) == 8
    assert fitting_subkeys(small, config) == 3  # 128 x 18 groups hold three times 512 with 30 % to spare
    assert fitting_subkeys([Carrier("resnet.0", 16, 144, 9)], config) == 1


def test_the_hinge_is_a_sum_and_stops_at_the_margin():
    phi, sign = torch.tensor([0.2, 0.05, -0.3, 0.0]), torch.tensor([1.0, 1.0, 1.0, -1.0])
    assert hinge(phi, sign, 0.1) == pytest.approx(0 + 0.05 + 0.4 + 0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"bits": 100_000 // 2},
            r"1 sub-key\(s\) x 50000 bits x 64 weights do not fit: the 2 weight tensors that can be marked hold",
        ),
        ({"subkeys": 16}, r"16 sub-key\(s\) x 512 bits"),
        ({"layers": ["resnet.9"]}, r"layer 'resnet.9' does not exist .*resnet\.0, resnet\.1, stem"),
        ({"layers": ["classifier.5.weight"]}, "does not exist"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(make_resnet, arguments, owner, changes, message):
    with pytest.raises(ValueError, match=message):
        GreedyResidualsTrainer(
            model=make_resnet(), args=arguments(), watermark=GreedyResidualsConfig(**changes), owner=owner
        )


def test_the_paper_preset_embeds_and_reads(make_resnet, arguments, patterned, owner):
    model = make_resnet(embedding_size=64, num_channels=3)
    data = [item | {"pixel_values": item["pixel_values"].repeat(3, 1, 1)} for item in patterned[:80]]
    config = dataclasses.replace(GreedyResidualsConfig.paper(), strength=0.1)
    args = arguments(max_steps=60, learning_rate=1e-2)
    trainer = GreedyResidualsTrainer(model=model, args=args, train_dataset=data, watermark=config, owner=owner)
    trainer.train()
    assert trainer.evidence.trials == 256 and trainer.evidence.level == "N"


# --- Null -------------------------------------------------------------------------------------------------------------


def test_false_positive_rate_is_nominal(owner, make_resnet):
    config = GreedyResidualsConfig(bits=64, subkeys=1, group_size=16)
    layout = {"carriers": [Carrier(f"resnet.{n}", w, w * 9, 9).to_dict() for n, w in enumerate((16, 32))]}
    plan = ("greedy_residuals", "1", config.to_dict(), layout, 1)
    [claim] = WatermarkKey.create(owner, [plan]).claims()
    verifier = GreedyResidualsVerifier(claim)
    observation = verifier.observe(Suspect.open(make_resnet()), claim.subkeys[0])
    trials = 4000
    scores = [verifier.score(observation, subkey_number(number)) for number in range(trials)]
    for level in (0.05, 0.01, 0.001):
        passed = sum(score.log2_p <= np.log2(level) for score in scores)
        assert log2_binomial_tail(passed, trials, level) > np.log2(1e-3), (level, passed)
    assert abs(np.mean([score.rate for score in scores]) - 0.5) < 4 * 0.5 / np.sqrt(64 * trials)


def test_neither_zero_nor_broken_weights_match():
    config = GreedyResidualsConfig(bits=64, subkeys=1, group_size=16)
    for value in (0.0, float("nan"), float("inf")):
        state = {f"layer{i}.0.conv2.weight": torch.full((w, w, 3, 3), value) for i, w in ((1, 8), (2, 16))}
        carriers = [Carrier(f"resnet.{n}", w, w * 9, 9) for n, w in enumerate((8, 16))]
        names = {name: tuple(tensor.shape) for name, tensor in state.items()}
        phi = residuals(config, carriers, state, names, subkey_number(0), 1)
        assert not (signs(subkey_number(0), 64) * phi > 0).any()


def test_512_bits_tolerate_thirty_percent_of_errors():
    assert binomial_min_matches(512, -64) <= 512 * 0.7
