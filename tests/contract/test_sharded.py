"""FSDP2 (`fully_shard`) in two processes: every method trains the model that DDP trains, with the same mark."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import sharded_runs
from safetensors.torch import load_file
from tiny import patterned_images, tiny_resnet
from together import run_together

from hf_watermark import Owner, plan_key
from hf_watermark.mapping import METHODS


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory, small_configs) -> Path:
    """The folder into which two processes (gloo) wrote what they saw."""
    folder = tmp_path_factory.mktemp("sharded")
    configs = small_configs | {"masking": small_configs["function_coupled"]}
    configs["function_coupled"] = replace(configs["function_coupled"], masking="none")
    for name, config in configs.items():
        key = plan_key(tiny_resnet(), patterned_images(variety=0.3), config, Owner.create())
        key.bind_beacon(b"\x07" * 32, "a value of a test").save(folder / "keys" / name)
    run_together(sharded_runs.__file__, str(folder))
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_sharded_training_ends_where_replicated_training_ends(two_processes, method):
    ddp, fsdp = (
        [load_file(two_processes / f"{method}-{way}-rank{rank}.safetensors") for rank in (0, 1)]
        for way in sharded_runs.WAYS
    )
    start = dict(tiny_resnet().named_parameters())
    for name, wanted in ddp[0].items():
        moved = (wanted - start[name].detach()).norm()
        assert moved > 0, name
        for other in (ddp[1], *fsdp):
            assert (other[name] - wanted).norm() <= 0.01 * moved + 1e-6, name
    for rank in (0, 1):
        facts = json.loads((two_processes / f"facts-rank{rank}.json").read_text())
        replicated, shards = (facts[f"{method}-{way}"] for way in sharded_runs.WAYS)
        assert (replicated["kinds"], shards["kinds"]) == (["Parameter"], ["DTensor"])
        assert shards["matches"] == replicated["matches"]


def test_masking_of_shards_is_refused(two_processes):
    facts = json.loads((two_processes / "facts-rank1.json").read_text())
    assert "`masking` is 'forward'" in facts["masking"] and "masking='none'" in facts["masking"]
