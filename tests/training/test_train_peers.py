"""The losses equal TRL's GKD loss on the same tensors; skipped where TRL's own environment is missing."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stillroom.models.forward import Head
from stillroom.signals.signal import DenseSignal
from stillroom.training.losses.fused import FusedLoss
from stillroom.training.losses.registry import make_objective

PYTHON = Path(__file__).parents[2] / ".venvs/trl/bin/python"
# TRL's beta runs from the teacher (0: KL(teacher ‖ student)) to the student (1); a half is the Jensen-Shannon divergence.
BETAS = {"forward_kl": 0.0, "jensen_shannon": 0.5, "reverse_kl": 1.0}
SCRIPT = """
import json, sys
import torch
from safetensors.torch import load_file
from trl.experimental.gkd import GKDTrainer
tensors = load_file(sys.argv[1])
found = {}
for beta in (0.0, 0.5, 1.0):
    hidden = tensors["hidden"].clone().requires_grad_(True)
    loss = GKDTrainer.generalized_jsd_loss(
        (hidden @ tensors["matrix"].T)[None], tensors["teacher"][None], tensors["labels"][None], beta, 2.0
    )
    loss.backward()
    found[beta] = [loss.item(), hidden.grad.flatten().tolist()]
print(json.dumps(found))
"""


@pytest.mark.skipif(not PYTHON.is_file(), reason="TRL has no environment of its own in .venvs/trl")
def test_values_and_gradients_equal_trls(tmp_path):
    torch.manual_seed(0)
    hidden, matrix = torch.randn(30, 16), torch.randn(50, 16)
    teacher = torch.randn(30, 50) * 3
    labels = torch.where(torch.rand(30) < 0.3, -100, 1)
    save_file({"hidden": hidden, "matrix": matrix, "teacher": teacher, "labels": labels}, tmp_path / "tensors")
    asked = subprocess.run(
        [PYTHON, "-c", SCRIPT, str(tmp_path / "tensors")], capture_output=True, check=True, text=True, timeout=120
    )
    theirs = json.loads(asked.stdout.splitlines()[-1])
    kept = labels != -100
    for name, beta in BETAS.items():
        own = hidden.clone().requires_grad_(True)
        signal = DenseSignal(torch.log_softmax(teacher[kept] / 2.0, dim=1))
        value = FusedLoss(make_objective(name), temperature=2.0, chunk=8)(own[kept], Head(matrix), None, signal).value
        value.backward()
        expected, gradient = theirs[str(beta)]
        assert float(value.detach()) == pytest.approx(expected, rel=1e-5)
        reference = torch.tensor(gradient).view(own.shape)
        assert float((own.grad - reference).norm()) <= 1e-5 * float(reference.norm())
