"""An honest claimant, and a model that has nothing to do with anybody's key."""

import pytest
from forging import Claimant, honest_claimant, innocent_model
from transformers import PreTrainedModel


@pytest.fixture(scope="session")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Claimant:
    """Do not change its model or folder."""
    return honest_claimant(tmp_path_factory.mktemp("honest"))


@pytest.fixture(scope="session")
def innocent(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return innocent_model(tmp_path_factory.mktemp("innocent"))


@pytest.fixture(scope="session")
def innocent_folder(innocent: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("innocent") / "model"
    innocent.save_pretrained(folder)
    return folder
