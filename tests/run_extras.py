"""
Installs the wheel with each extra alone into a fresh environment, one after the other, and uses there what the extra enables: on a model that was
marked in the first environment, which has no extra at all.

    python tests/run_extras.py [EXTRA ...]
"""

import shutil
import sys
import tempfile
from pathlib import Path

from run_package import ROOT, UV, build, install, run, surroundings


sys.path.insert(0, str(ROOT / "tests" / "support"))
from authority import Authority, AuthorityServer  # noqa: E402
from server import environment  # noqa: E402


# For whoever works on the package (`make install`, `make quality`, `make test`), or runs its benchmarks.
TOOLS = {"browser", "pretrained", "quality", "test", "dev", "docs"}
MARK = """
import warnings
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hf_watermark import GreedyResidualsConfig, GreedyResidualsTrainer, Owner
from PIL import Image
from tiny import patterned_images, tiny_resnet, training_arguments

warnings.filterwarnings("ignore", message=".*stored without a passphrase")
owner, data = Owner.create(), patterned_images()
config = GreedyResidualsConfig(bits=256, subkeys=2, group_size=16)
trainer = GreedyResidualsTrainer(
    model=tiny_resnet(), args=training_arguments(Path("model"), max_steps=180), train_dataset=data, watermark=config, owner=owner
)
trainer.train()
trainer.save_model()
trainer.key.save("key")
owner.save("owner.json")
pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)
Path("signer.pem").write_bytes(pem)
for number, item in enumerate(data[:40]):
    file = Path(f"images/{item['labels']}/{number}.png")
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((item["pixel_values"][0] * 50 + 128).clamp(0, 255).byte().numpy()).save(file)
"""
ROUND = """
import hashlib

from hf_watermark.publishing.drand import DST_G1, is_signed_round
from py_ecc.bls.hash_to_curve import hash_to_G1
from py_ecc.bls.point_compression import compress_G1, compress_G2
from py_ecc.optimized_bls12_381 import G2, multiply

public = b"".join(half.to_bytes(48, "big") for half in compress_G2(multiply(G2, 4711)))
message = hash_to_G1(hashlib.sha256((7).to_bytes(8, "big")).digest(), DST_G1, hashlib.sha256)
signature = int(compress_G1(multiply(message, 4711))).to_bytes(48, "big")
assert is_signed_round(public, 7, signature) and not is_signed_round(public, 8, signature)
"""
GRADIO_APP = """
from hf_watermark.suspects.endpoints import Endpoint

try:
    Endpoint("http://127.0.0.1:9/", ["a", "b"], mean=[0.5], std=[0.5], api="gradio")
except ConnectionError as error:
    assert "no Gradio app that can be reached" in str(error), error
else:
    raise SystemExit("nobody listens there")
"""
READ = """
from pathlib import Path

from hf_watermark import WatermarkKey, verify
from hf_watermark.serialization import SafetensorsFolder

Path("out").mkdir(exist_ok=True)
tensors = {name: tensor.numpy() for name, tensor in SafetensorsFolder("model").items() if tensor.is_floating_point()}
"""
FOUND = """
assert verify(file, WatermarkKey.load("key")).found
"""
GGUF = (
    READ
    + """
import gguf

file = "out/model.gguf"
writer = gguf.GGUFWriter(file, "clip")
for name, tensor in tensors.items():
    writer.add_tensor(name, tensor)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"""
    + FOUND
)
ONNX = (
    READ
    + """
import onnx
from onnx import numpy_helper

file = "out/model.onnx"
constants = [numpy_helper.from_array(tensor, name) for name, tensor in tensors.items()]
onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "net", [], [], constants)), file)
"""
    + FOUND
)
DEMO = """
from hf_watermark.demo import build_demo

assert len(build_demo(public=False).blocks) > 10
"""
TWO_WORKERS = """
from pathlib import Path

from hf_watermark.evaluation import parse_config
from hf_watermark.evaluation.matrix.cells import Store, model_cells
from hf_watermark.evaluation.matrix.engine import Place, run_phases
from hf_watermark.evaluation.matrix.table import store_config
from matrix_runs import HALF

config, store = parse_config(HALF | {"attacks": []}), Store("out/run")
store_config(config, Path("out/run"))
assert run_phases(config, store, Place(workers=2), print) and all(map(store.done, model_cells(config)))
"""
VERIFY = "hf-watermark verify model --key key"
# By extra: Python code, or a command.
WATCH = """
import os, subprocess
from pathlib import Path
from many_repos import ManyRepos

with ManyRepos() as hub:
    hub.add_repo("me/copy", {"model.safetensors": Path("model/model.safetensors")})
    command = ["hf-watermark", "watch", "--key", "key", "--output", "out/watch", "--rate", "1000", "--executor", "EXECUTOR"]
    status = subprocess.run(command, env=os.environ | {"HF_ENDPOINT": hub.url}).returncode
    assert status == 1, status
"""
USES: dict[str, list[str]] = {
    "": [MARK, VERIFY, "hf-watermark attack weight_noise model --output out/noise"],
    "plots": [f"{VERIFY} --report out/report.html"],
    "digits": [
        "from hf_watermark.evaluation.digits import load_digits_data\nassert len(load_digits_data('test')) == 360"
    ],
    "timestamp": ["hf-watermark precommit --key key --output out/precommit --timestamp {authority}"],
    "beacon": [ROUND],
    "backup": ["hf-watermark owner backup --path owner.json --shares 3 --threshold 2 --share-folder out/shares"],
    "signing": [
        "hf-watermark publish model --key key --owner owner.json --repo-id me/my-model --dry-run --sign signer.pem"
    ],
    "gguf": [GGUF],
    "onnx": [ONNX],
    "endpoints": [GRADIO_APP],
    "watch": [WATCH.replace("EXECUTOR", "local"), TWO_WORKERS],
    "ray": [WATCH.replace("EXECUTOR", "ray")],
    "demo": [DEMO],
    "attacks": [
        "hf-watermark attack int4_quantize model --output out/int4",
        "hf-watermark attack onnx_round_trip model --output out/onnx",
        "hf-watermark attack lora model --output out/lora --data images --option epochs=1",
    ],
}


def main() -> int:
    chosen = ["", *(sys.argv[1:] or (name for name in USES if name))]
    with tempfile.TemporaryDirectory() as folder, AuthorityServer(Authority()) as authority:
        scratch = Path(folder)
        wheel, work = build(scratch), scratch / "work"
        work.mkdir()
        for extra in chosen:
            print(f"=== {f'[{extra}]' if extra else 'no extra'}", flush=True)
            (work / "out").mkdir()
            fresh = scratch / "fresh"
            commands = install(wheel, fresh, extra)
            run([UV, "pip", "check", "--quiet", "--python", str(commands / "python")], work)
            for use in USES[extra]:
                use_extra(use.replace("{authority}", authority), commands, work)
            shutil.rmtree(fresh)
            shutil.rmtree(work / "out")
    print(f"extras: {', '.join(chosen[1:])} each alone, and none")
    return 0


def use_extra(use: str, commands: Path, work: Path) -> None:
    # Nobody listens at this address, so the Hub cannot help.
    variables = surroundings(commands) | environment("http://127.0.0.1:9", work / ".cache")
    variables["PYTHONPATH"] = str(ROOT / "tests" / "support")
    run(["python", "-c", use] if "\n" in use else use.split(), work, variables)


if __name__ == "__main__":
    raise SystemExit(main())
