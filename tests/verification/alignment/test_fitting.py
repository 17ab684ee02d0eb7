import torch

from hf_watermark.verification.alignment.fitting import Feature, fit_matrix


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
