"""Rankings of switches that nobody learnt: by attribution, and by the size of weights."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from impact_lightning.circuits.edges import block_matrices
from impact_lightning.circuits.gated import gating
from impact_lightning.circuits.means import Baseline
from impact_lightning.circuits.nodes import Nodes
from impact_lightning.circuits.task_images import TaskImages
from impact_lightning.circuits.tasks import Task, judge

IMAGES = 64  # of each task that attribution is taken over


def attributions(
    model: nn.Module, nodes: Nodes, tasks: Sequence[Task], images: TaskImages, constants: Tensor
) -> Tensor:
    """Return by how much each task's loss moves when a switch is turned off, to first order, `(tasks, n_switches)`.

    Of `kl` it is the cross-entropy with the whole model's prediction.

    Args:
        model: The frozen model.
        nodes: Its nodes.
        tasks: The tasks.
        images: Their images.
        constants: What replaces nodes, `(1 or T, n)`.
    """
    device = next(model.parameters()).device
    found = []
    with torch.inference_mode(mode=False), torch.enable_grad(), gating(model, nodes) as gated:
        baseline = Baseline(constants.clone(), nodes)
        for task, drawn in zip(tasks, images.images, strict=True):
            at = torch.randperm(len(drawn.rows), generator=torch.Generator().manual_seed(0))[:IMAGES]
            switches = torch.ones(1, nodes.n_switches, device=device, requires_grad=True)
            pixels = images[drawn.rows[at]].clone()
            logits = gated(pixels, nodes.expand(switches).expand(len(at), -1), baseline)
            whole = model(pixels)
            if task.readout == "kl":  # which is smallest at the whole model: its gradient there is 0
                loss = F.cross_entropy(logits, whole.argmax(1))
            else:
                loss = judge(task, logits, drawn.targets[at].to(device), whole).loss.mean()
            found.append(torch.autograd.grad(loss, switches)[0][0].abs())
    return torch.stack(found)


@torch.no_grad()
def magnitudes(model: nn.Module, nodes: Nodes) -> Tensor:
    """Return the norm of all weights into and out of the nodes of each switch, `(n_switches,)`."""
    squares = torch.zeros(nodes.n, dtype=torch.float64)
    for matrix in block_matrices(model, nodes):
        gain = 1.0 if matrix.gain is None else matrix.gain.double().cpu()[:, None]
        weight = (matrix.weight.double().cpu() * gain).square()  # (out, in)
        squares[matrix.outputs] += weight.sum(1)
        squares[matrix.inputs] += weight.sum(0)
    return nodes.sum_by_switch(squares[None])[0].sqrt()
