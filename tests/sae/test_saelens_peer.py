"""The real sae-lens gives the same codes and outputs from what we export.

It brings dozens of packages, some of them older than ours, so that it lives in an environment of its own, which
borrows only what this one has already installed.
"""

import json
import shutil
import subprocess
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from impact_lightning.sae.folded import FoldedSAE
from impact_lightning.sae.saelens import write_saelens
from tests.sae.dictionaries import ALL, D_IN, dictionary, inputs

pytestmark = [pytest.mark.slow, pytest.mark.network]

PEER = """
import json, sys
from safetensors.torch import load_file, save_file
from sae_lens import SAE
for folder in json.loads(sys.argv[1]):
    sae = SAE.load_from_disk(folder)
    x = load_file(f"{folder}/inputs.safetensors")["x"]
    codes = sae.encode(x)
    save_file({"codes": codes.detach(), "output": sae(x).detach()}, f"{folder}/peer.safetensors")
"""


def on_the_threshold() -> FoldedSAE:
    """Return a dictionary whose pre-activations are its inputs, with thresholds among them."""
    eye, zeros = torch.eye(D_IN), torch.zeros(D_IN)
    return FoldedSAE("jumprelu", eye, zeros, eye, zeros, threshold=torch.arange(D_IN) / 4)


EXPORTS = {**{name: dictionary(name) for name in ALL}, "threshold": on_the_threshold()}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield the interpreter of an environment that has sae-lens."""
    root = tmp_path_factory.mktemp("peer")
    venv.create(root, with_pip=True)
    python = root / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    )
    (Path(site.stdout.strip()) / "borrowed.pth").write_text(sysconfig.get_path("purelib"))  # torch, above all
    try:
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "sae-lens>=6.54,<7"],
            check=True,
            capture_output=True,
            text=True,
            timeout=360,
        )
    except subprocess.TimeoutExpired:
        pytest.skip("sae-lens was not installed within six minutes")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"sae-lens cannot be installed here: {error.stderr[-300:]}")
    yield python
    shutil.rmtree(root)  # hundreds of megabytes, which pytest would keep for three runs


@pytest.fixture(scope="module")
def folders(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where every export lies beside what sae-lens makes of it."""
    root = tmp_path_factory.mktemp("exports")
    for name, sae in EXPORTS.items():
        write_saelens(root / name, sae)
        x = torch.arange(-8, 8).repeat(D_IN, 1).T / 4 if name == "threshold" else inputs()
        save_file({"x": x.contiguous()}, root / name / "inputs.safetensors")
    run = subprocess.run(
        [python, "-c", PEER, json.dumps([str(root / name) for name in EXPORTS])], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return root


@pytest.mark.parametrize("name", EXPORTS)
def test_sae_lens_gives_the_same_codes_and_outputs(name: str, folders: Path) -> None:
    sae = EXPORTS[name]
    x = load_file(folders / name / "inputs.safetensors")["x"]
    peer = load_file(folders / name / "peer.safetensors")
    codes = sae.encode(x)
    assert (peer["codes"] != 0).equal(codes != 0)
    torch.testing.assert_close(peer["codes"], codes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(peer["output"], sae.decode(codes, x), atol=1e-5, rtol=1e-5)
