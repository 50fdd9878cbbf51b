"""Top images of a circuit's nodes: those on which a node does most, and where on them.

What a node does in a circuit is how far it is from what replaces it where it is left out: a channel of the residual
stream may be large on every image alike, and both signs count. So an image is ranked by the largest distance `|x - mu|`
over all its tokens, with mu the constant of the node's ablation. What is shown is the value x itself, at that token and
on every patch. All values are of the whole model: masks have no part in them.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from impact_lightning.activations.image_reader import ImageReader
from impact_lightning.backbones import capture
from impact_lightning.circuits.nodes import Nodes, NodeSite
from impact_lightning.circuits.task_data import TaskData
from impact_lightning.circuits.tasks import draw
from impact_lightning.data.labels import labels_of
from impact_lightning.files import atomic_write
from impact_lightning.types import UserError

FILE = "tops.json"
SCHEMA = 1
SHOWN = 8  # images of each node
NUMBERS = 1 << 19  # in the maps of one circuit: in a larger one only the first images of each node have maps
BATCH = 32  # images of one forward, which holds every node of every token
DIGITS = 4  # of the numbers in a map, counted from the largest of the node


class Wanted(NamedTuple):
    """A circuit whose nodes are looked at."""

    ids: Tensor  # (k,) int64, its nodes in ascending order
    constants: Tensor  # (1 or T, n), what replaces nodes where they are off


class Tops(NamedTuple):
    """The top images of k nodes, the best first; of images that are as good the earlier ones."""

    ids: Tensor  # (k,) int64
    places: Tensor  # (k, m) int64, of the images in memory
    values: Tensor  # (k, m) float64, at the token that is farthest from the constant
    tokens: Tensor  # (k, m) int64, that token, those before the patches included
    maps: Tensor  # (k, m', P) float32, on every patch of the first m' images
    constants: Tensor  # (k,) float64, mean over tokens
    grid: tuple[int, int]  # height and width of the patches
    n_prefix: int  # tokens before them


# ---------------------------------------------------------------------------------------------------------- the pass


@torch.no_grad()
def find_tops(
    model: nn.Module,
    nodes: Nodes,
    read: Callable[[Tensor], Tensor],
    places: Tensor,
    circuits: Sequence[Wanted],
    *,
    shown: int = SHOWN,
    batch: int = BATCH,
) -> list[Tops]:
    """Return the top images of the nodes of circuits, in one pass over the images and without a collective.

    Args:
        model: A model in evaluation mode, without gates that are in use.
        nodes: Its nodes.
        read: Returns images by place, normalised `(B, 3, h, w)`.
        places: The images to look at `(N,)`, each once.
        circuits: Which nodes of it, of each circuit one or more.
        shown: Images of each node.
        batch: Images of one forward; the result does not depend on it.
    """
    known: Any = model
    h, w = (int(n) for n in known.patch_embed.grid_size)
    n_prefix = int(known.num_prefix_tokens)
    parts = [[_Best(site, one, shown, h * w) for site in _sites(nodes, one.ids)] for one in circuits]
    sites = sorted({str(best.site) for bests in parts for best in bests})
    with capture(model, sites) as captured:
        for part in places.sort().values.split(batch):
            model(read(part))
            for best in (best for bests in parts for best in bests):
                best.add(captured[str(best.site)], part)
    return [_joined(one, bests, (h, w), n_prefix) for one, bests in zip(circuits, parts, strict=True)]


def _sites(nodes: Nodes, ids: Tensor) -> list[NodeSite]:
    """Return the sites that some of the nodes belong to."""
    return [site for site in nodes.sites if bool(((ids >= site.start) & (ids < site.of.stop)).any())]


class _Best:
    """The best images so far of the k nodes that a circuit has at one site."""

    def __init__(self, site: NodeSite, wanted: Wanted, shown: int, n_patches: int) -> None:
        ids = wanted.ids[(wanted.ids >= site.start) & (wanted.ids < site.of.stop)]
        device, k = wanted.constants.device, len(ids)
        self.site = site
        self.shown = shown
        self.at = (ids - site.start).to(device)  # (k,) channels
        self.constants = wanted.constants[:, ids.to(device)]  # (1 or T, k)
        n_maps = min(shown, NUMBERS // max(1, len(wanted.ids) * n_patches))
        self.strength = self.value = torch.zeros(0, k, dtype=torch.float64, device=device)  # (m, k)
        self.place = self.token = torch.zeros(0, k, dtype=torch.int64, device=device)  # (m, k)
        self.maps = torch.zeros(n_maps, k, n_patches, device=device)  # (m', k, P)

    def add(self, x: Tensor, places: Tensor) -> None:
        """Look at values of the site on more images, `(B, T, w)` and `(B,)`."""
        own = x[..., self.at].nan_to_num()  # (B, T, k); a half that overflows must not cost the test its files
        strength, token = (own.double() - self.constants).abs().max(1)  # (B, k)
        value = own.gather(1, token[:, None])[:, 0].double()
        place = places.to(token.device)[:, None].expand_as(token)
        n = len(self.strength)
        ranked, order = torch.cat([self.strength, strength]).sort(dim=0, descending=True, stable=True)
        order = order[: self.shown]  # (m, k): below n those that were known, from there on the new images
        self._move_maps(own[:, x.shape[1] - self.maps.shape[2] :], order[: len(self.maps)], n)
        self.strength = ranked[: self.shown]
        self.value = torch.cat([self.value, value]).gather(0, order)
        self.place = torch.cat([self.place, place]).gather(0, order)
        self.token = torch.cat([self.token, token]).gather(0, order)

    def _move_maps(self, x: Tensor, order: Tensor, n: int) -> None:
        """Put the maps in their new order: what was known moves back, and never past a place that has a map."""
        if not len(order):
            return
        k = torch.arange(len(self.at), device=x.device)
        new = x[(order - n).clamp_min(0), :, k].to(self.maps.dtype)  # (m', k, P)
        old = self.maps[order.clamp_max(len(self.maps) - 1), k]
        self.maps[: len(order)] = torch.where((order < n)[..., None], old, new)


def _joined(wanted: Wanted, bests: Sequence[_Best], grid: tuple[int, int], n_prefix: int) -> Tops:
    """Return what was found at all sites as one table, in the order of the nodes."""
    m = len(bests[0].strength)
    columns = [
        torch.cat([getattr(best, name) for best in bests], 1).transpose(0, 1).cpu()
        for name in ("place", "value", "token", "maps")
    ]
    constants = torch.cat([best.constants.double().mean(0) for best in bests]).cpu()
    places, values, tokens, maps = columns
    return Tops(wanted.ids.cpu(), places, values, tokens, maps[:, :m], constants, grid, n_prefix)


# -------------------------------------------------------------------------------------------------------------- files


def report_rows(data: TaskData) -> Tensor:
    """Return the row of the test split of each report image in memory, `(U,)`."""
    labels, images = labels_of(data.data, "test"), data.images["report"]
    drawn = [draw(task, labels, data.sizes["report"], seed=data.seed + 2).rows for task in data.tasks]
    rows: Tensor = torch.cat(drawn).unique()  # ascending, as they were read
    if len(rows) == len(images.pixels):
        return rows
    reader = ImageReader(data.data.split("test"), workers=data.data.workers)  # some are damaged: which?
    parts = [part.numpy() for part in rows.split(data.data.eval_batch_size)]
    found = torch.cat([batch.row for batch in reader.read(parts)])
    if len(found) != len(images.pixels):
        raise UserError("data: images could be read when the test began, and cannot any more; run `test` again")
    return found


def write_tops(path: Path, tops: Tops, rows: Tensor) -> None:
    """Write top images as JSON.

    Args:
        path: The file.
        tops: The top images.
        rows: The row of each place.
    """
    found = rows[tops.places] if len(tops.places) else tops.places
    content = {
        "schema": SCHEMA,
        "model": "whole",
        "split": "test",
        "grid": tops.grid,
        "prefix": tops.n_prefix,
        "constants": {str(i): _short(c) for i, c in zip(tops.ids.tolist(), tops.constants.tolist(), strict=True)},
        "nodes": {str(i): _images(tops, found, place) for place, i in enumerate(tops.ids.tolist())},
    }
    with atomic_write(path) as file:
        file.write((json.dumps(content, allow_nan=False, separators=(",", ":")) + "\n").encode())


def _images(tops: Tops, rows: Tensor, place: int) -> list[dict[str, Any]]:
    """Return what is told of the images of one node."""
    maps: list[list[float] | None] = [*_rounded(tops.maps[place])]
    maps += [None] * (rows.shape[1] - len(maps))
    columns = rows[place].tolist(), tops.values[place].tolist(), tops.tokens[place].tolist(), maps
    return [
        {"row": row, "value": _short(value), "token": token, "map": of}
        for row, value, token, of in zip(*columns, strict=True)
    ]


def _rounded(maps: Tensor) -> list[list[float]]:
    """Return the maps of a node with as many decimals as its largest number needs."""
    largest = float(maps.abs().max()) if maps.numel() else 0.0
    decimals = DIGITS - 1 - int(np.floor(np.log10(largest))) if largest else 0
    numbers: list[list[float]] = np.round(maps.double().numpy(), decimals).tolist()
    return numbers


def _short(x: float) -> float:
    return float(f"{x:.6g}")
