import torch

from hf_watermark.verification.alignment import fitting
from hf_watermark.verification.alignment.fitting import Feature, fit_matrix, fit_permutation, fit_rotation


def test_a_matrix_is_fitted_from_writers_and_readers_together():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    size, inputs = 12, 40
    left, _ = torch.linalg.qr(normal(size, size))
    matrix = left @ torch.diag(torch.linspace(0.3, 3, size)) @ torch.linalg.qr(normal(size, size))[0]
    written, read, carriers = normal(size, inputs), normal(size, 60), normal(size, 50)
    # A suspect that was trained on: its weights moved in its own coordinates.
    writers = Feature(matrix @ written + 0.1 * normal(size, inputs), written, "out", 0)
    readers = Feature(torch.linalg.inv(matrix).mT @ read + 0.1 * normal(size, 60), read, "in", 0)

    def missed(features: list[Feature]) -> float:
        back = fit_matrix(features, size).change.left @ matrix @ carriers
        return float((back - carriers).norm() / carriers.norm())

    both = missed([writers, readers])
    assert both < 0.9 * missed([writers]) and both < 0.9 * missed([readers])
    exact = [Feature(matrix @ written, written, "out", 0), Feature(torch.linalg.inv(matrix).mT @ read, read, "in", 0)]
    assert missed(exact) < 1e-4


def test_factors_lead_on_through_what_is_written_one_by_one():
    generator = torch.Generator().manual_seed(0)
    size = 12
    rows, kernels, back = (torch.randn(size, columns, generator=generator) for columns in (20, 9, 9))
    one, two, three = (10 ** torch.randn(size, generator=generator) for _ in range(3))
    order = torch.randperm(size, generator=generator)
    # Class 0 is written by a layer, class 1 one by one from it; class 2 is only known by what is written one by one from it.
    features = [
        Feature((one[:, None] * rows)[order], rows, "out", 0),
        Feature(((two / one)[:, None] * kernels)[order], kernels, "out", 1, reads=0),
        Feature(((one / three)[:, None] * back)[order], back, "out", 0, reads=2),
    ]
    fit = fit_permutation(features, ["any"] * 3)
    assert torch.equal(order[fit.change.order], torch.arange(size)) and fit.recognised.all()
    for scale, factors in enumerate((one, two, three)):
        torch.testing.assert_close(fit.factors[scale].rows, 1 / factors, rtol=1e-3, atol=0)


def test_channels_that_carry_do_not_bias_a_rotation(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    size = 24
    rotation, _ = torch.linalg.qr(torch.randn(size, size, generator=generator))
    written, read = torch.randn(size, 40, generator=generator), torch.randn(size, 60, generator=generator)
    held = read.clone()
    held[2::3] = 0
    features = [Feature(rotation @ written, written, "out", 0), Feature(rotation @ read, held, "in", 0)]

    def missed() -> float:
        return float((fit_rotation(features, size).change.left @ rotation - torch.eye(size)).norm()) / size**0.5

    filled = missed()
    monkeypatch.setattr(fitting, "FILLS", 1)
    assert filled < 0.02 and filled < 0.5 * missed()


def test_what_only_one_side_has_says_nothing():
    rows = torch.randn(8, 30, generator=torch.Generator().manual_seed(0))
    bias = torch.randn(8, 1, generator=torch.Generator().manual_seed(1))
    features = [Feature(rows, rows, "out", 0), Feature(torch.zeros(8, 1), bias, "out", 0)]
    fit = fit_matrix(features, 8)
    torch.testing.assert_close(fit.change.left, torch.eye(8), rtol=0, atol=1e-4)
