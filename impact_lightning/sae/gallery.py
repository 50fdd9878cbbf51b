"""The gallery: what latents respond to, as pictures: their strongest images with heat maps."""

import math
from functools import cached_property
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from impact_lightning.activations.frozen import FrozenBackbone
from impact_lightning.data.module import ImageDataModule
from impact_lightning.data.pictures import RGB, drawing, thumbnails
from impact_lightning.sae.features import Description, Features

Floats = NDArray[np.float64]

SHOWN = 9  # images of each latent
SPREAD, SELECTIVE = 16, 8  # latents of a sheet
WIDTH, MARGIN, GUTTER, GAP, COLUMNS = 1660, 40, 56, 4, 2  # of a sheet, in pixels: twice the width of a README
DARK, PALE = 0.4, 0.7  # a heat map's picture where the latent is silent, and where nothing was measured
INK, GREY, BLUE, PAPER = "#1a1a1a", "#666666", "#3b6ea8", 255


# ---------------------------------------------------------------------------------------------------- which latents


class Chosen(NamedTuple):
    """The latents of a sheet; no look at their pictures has part in the choice."""

    spread: list[int]  # every m-th of the latents that fire, in the order of their densities
    selective: list[int]  # of the others, those of highest label monosemanticity that fire on at least 10 images


def choose(features: Features, spread: int = SPREAD, selective: int = SELECTIVE) -> Chosen:
    """Return latents to look at: a fair sample of all that fire, and the best of them by their labels."""
    density = features.density
    alive = density.argsort(descending=True, stable=True)[: int((density > 0).sum())].tolist()
    n = min(spread, len(alive))
    fair = [alive[int((place + 0.5) * len(alive) / n)] for place in range(n)]  # the middle of each of n equal parts
    judged = ~features.purity.isnan() & ~features.same_label.isnan()  # fewer images agree by chance
    judged[fair] = False
    ranked = features.same_label.where(judged, -torch.inf).argsort(descending=True, stable=True)
    return Chosen(fair, ranked[: min(selective, int(judged.sum()))].tolist())


# ------------------------------------------------------------------------------------------------------------ words


def plain(text: str, limit: int = 32) -> str:
    """Return a text that draws on one line: odd characters replaced, a long one shortened in the middle."""
    shown = "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)
    head = (limit - 1) // 2
    return shown if len(shown) <= limit else f"{shown[: limit - 1 - head]}…{shown[-head:]}"


def percent(share: float) -> str:
    """Return a share in percent with two digits."""
    return f"{float(f'{100 * share:.2g}'):.10f}".rstrip("0").rstrip(".") + " %"


def caption(features: Features, class_names: list[str], latent: int) -> tuple[str, str]:
    """Return a latent's name with what its top images show, and its numbers."""
    label, n_images = int(features.label[latent]), int(features.class_counts[latent].sum())
    shows = f"fires on {n_images} image{'s' * (n_images != 1)}"
    if label >= 0:
        shows = f"{plain(class_names[label])} {percent(float(features.purity[latent]))}"
    numbers = [f"density {percent(float(features.density[latent]))}"]
    if not math.isnan(same := float(features.same_label[latent])):
        numbers.append(f"label MS {same:.2f}")
    if not math.isnan(alike := float(features.alike[latent])):
        numbers.append(f"MS {alike:.2f}")
    return f"latent {latent}  ·  {shows}", "  ·  ".join(numbers)


# ---------------------------------------------------------------------------------------------------------- pictures


def on_grid(values: Floats, tokens: NDArray[np.int64], n_prefix: int, grid: tuple[int, int]) -> Floats:
    """Return activations `(n, t)` on tokens `(n, t)` of the sequence as maps `(n, h, w)`; nan where none was kept."""
    maps = np.full((len(values), grid[0] * grid[1]), np.nan)
    image, column = (tokens >= n_prefix).nonzero()
    maps[image, tokens[image, column] - n_prefix] = values[image, column]
    return maps.reshape(-1, *grid)  # (n, P) -> (n, h, w)


def heat(picture: RGB, values: Floats) -> RGB:
    """Return a picture in grey under a map `(h, w)` of values between 0 and 1, one square a patch.

    Patches are not blurred into each other: each has but one number. Pale ones were not measured.
    """
    import matplotlib

    h, w = picture.shape[:2]
    rows, columns = np.arange(h) * values.shape[0] // h, np.arange(w) * values.shape[1] // w
    value = values[rows][:, columns, None]  # (h, w, 1)
    grey = (picture @ np.array([0.299, 0.587, 0.114]))[..., None]
    colour = 255 * matplotlib.colormaps["magma"](np.nan_to_num(value[..., 0]))[..., :3]
    opacity = 0.9 * np.sqrt(np.nan_to_num(value))
    lit = (1 - opacity) * DARK * grey + opacity * colour * (0.7 + 0.3 * grey / 255)  # the picture stays to be seen
    pale = (1 - PALE) * grey + PALE * PAPER
    shown: RGB = np.where(np.isnan(value), pale, lit).round().astype(np.uint8)
    return shown


class Gallery:
    """Pictures of the latents of a dictionary, on the test images of a live model.

    Args:
        features: What is known of the latents.
        description: What they are of.
        data: The images.
        frozen: The model, which knows where its tokens lie on an image.
        shown: Images of each latent.
    """

    def __init__(
        self,
        features: Features,
        description: Description,
        data: ImageDataModule,
        frozen: FrozenBackbone,
        shown: int = SHOWN,
    ) -> None:
        self.features = features
        self.description = description
        self.data = data
        self.frozen = frozen
        self.shown = min(shown, features.image.shape[1])
        self.pictures: dict[int, RGB] = {}
        self.missing: set[int] = set()

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the patches."""
        h, w = self.frozen.model.patch_embed.grid_size
        return int(h), int(w)

    @cached_property
    def cell(self) -> tuple[int, int]:
        """Height and width of a thumbnail."""
        _, h, w = self.data.image_shape
        column = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GUTTER) // COLUMNS
        width = (column + GAP) // self.shown - GAP
        return max(1, min(round(width * h / w), 3 * width)), width

    def read(self, latents: list[int]) -> None:
        """Read the images of some latents, as far as they are not at hand."""
        wanted: set[int] = set(self.features.image[latents, : self.shown].flatten().tolist()) - {-1}
        found = thumbnails(self.data, wanted - self.pictures.keys() - self.missing, self.cell)
        self.pictures |= found
        self.missing |= wanted - self.pictures.keys()

    def maps(self, latent: int) -> tuple[Floats, float]:
        """Return maps `(n, h, w)` of a latent as shares of its maximum, and the share of the tokens before patches."""
        rows = self.features.image[latent, : self.shown].numpy()
        tokens = self.frozen.tokens.of(rows, self.frozen.sequence)  # (n, t)
        values = np.maximum(self.features.map[latent, : self.shown].double().numpy(), 0)  # (n, t)
        n_prefix, total = self.frozen.sequence.n_prefix, values.sum()
        share = float(values[tokens < n_prefix].sum() / total) if total else 0.0
        return on_grid(values / (values.max() or 1), tokens, n_prefix, self.grid), share

    def strip(self, latent: int) -> RGB:
        """Return the strongest images of a latent in a row, and beneath them their maps, if patches were kept."""
        (h, w), (maps, _) = self.cell, self.maps(latent)
        n_rows = 1 if np.isnan(maps).all() else 2
        shape = n_rows * (h + GAP) - GAP, self.shown * (w + GAP) - GAP, 3
        strip = np.full(shape, PAPER, np.uint8)
        for place, row in enumerate(self.features.image[latent, : self.shown].tolist()):
            if row in self.pictures:
                x = place * (w + GAP)
                strip[:h, x : x + w] = self.pictures[row]
                if n_rows == 2:
                    strip[h + GAP :, x : x + w] = heat(self.pictures[row], maps[place])
        return strip

    def caption(self, latent: int) -> tuple[str, str]:
        """Return two lines that belong to a strip."""
        title, numbers = caption(self.features, self.description.class_names, latent)
        if self._prefix:
            numbers += f"  ·  {self._prefix} {percent(self.maps(latent)[1])}"
        return title, numbers

    @property
    def _prefix(self) -> str:
        """What the tokens before the patches are called, if they were kept beside patches."""
        sequence = self.frozen.sequence
        if not sequence.n_prefix or self.frozen.tokens.kind in ("cls", "patches"):
            return ""
        return "CLS" if sequence.has_cls and sequence.n_prefix == 1 else "prefix"

    def draw(self, file: BinaryIO, chosen: Chosen) -> None:
        """Write a sheet of latents as PNG, which says how they were chosen."""
        self.read([*chosen.spread, *chosen.selective])
        alive = int((self.features.density > 0).sum())
        sections = {
            f"Evenly spaced in order of density: {len(chosen.spread)} of the {alive:,} that fire": chosen.spread,
            "Most selective of the others: highest label monosemanticity on at least 10 images": chosen.selective,
        }
        sheet = Sheet()
        sheet.text(plain(self.description.name, 90), 34, bold=True, below=44)
        sheet.text(self._about(), 23, colour=GREY, below=44)
        for heading, latents in sections.items():
            if not latents:
                continue
            sheet.text(heading, 26, colour=BLUE, below=50)
            for start in range(0, len(latents), COLUMNS):
                sheet.row([(*self.caption(latent), self.strip(latent)) for latent in latents[start : start + COLUMNS]])
        sheet.legend("activation, from 0 to the largest that the latent has on the images here; a square is a patch")
        sheet.text(self._terms(), 21, colour=GREY, below=21 + MARGIN)
        sheet.save(file)

    def _about(self) -> str:
        dead, n = int((self.features.density == 0).sum()), len(self.features.density)
        images = int(self.features.class_images.sum())
        return (
            f"{n:,} latents, {dead:,} dead  ·  the {self.shown} of {images:,} test images on which each fires most, "
            "and where on them"
        )

    def _terms(self) -> str:
        top = self.features.image.shape[1]
        terms = [f"label: the most frequent among its {top} strongest images", "MS: monosemanticity"]
        if self._prefix:
            terms.append(f"{self._prefix}: share of the activation outside the patches")
        return "  ·  ".join(terms)


# ----------------------------------------------------------------------------------------------------------- figures


class Sheet:
    """A picture that grows downwards; everything has its place to the pixel, nothing is resampled."""

    def __init__(self) -> None:
        self.y = MARGIN
        self._texts: list[tuple[int, int, str, int, dict[str, Any]]] = []
        self._images: list[tuple[int, int, RGB]] = []

    def text(
        self,
        text: str,
        size: int,
        *,
        below: int,
        x: int = MARGIN,
        room: int = WIDTH - 2 * MARGIN,
        bold: bool = False,
        colour: str = INK,
    ) -> None:
        """Write a line, `size` pixels high, or less if it needs more than its room; the next begins `below` it."""
        look = {"fontsize": size * 0.72, "fontweight": "bold" if bold else "normal", "color": colour}
        self._texts.append((x, self.y, text, room, look))
        self.y += below

    def row(self, cells: list[tuple[str, str, RGB]]) -> None:
        """Put captioned strips side by side."""
        top, column = self.y, (WIDTH - 2 * MARGIN + GUTTER) // COLUMNS
        for number, (title, numbers, strip) in enumerate(cells):
            self.y = top
            x = MARGIN + number * column
            self.text(title, 24, x=x, room=column - GUTTER, bold=True, below=32)
            self.text(numbers, 21, x=x, room=column - GUTTER, colour=GREY, below=34)
            self._images.append((x, self.y, strip))
        self.y += max(len(strip) for *_, strip in cells) + 34

    def legend(self, text: str) -> None:
        """Explain the colours."""
        bar = np.broadcast_to(np.linspace(0, 1, 240), (24, 240))
        self._images.append((MARGIN, self.y, heat(np.full((24, 240, 3), 128, np.uint8), bar)))
        self.text(text, 21, x=MARGIN + 256, room=WIDTH - 2 * MARGIN - 256, colour=GREY, below=44)

    def save(self, file: BinaryIO) -> None:
        """Write the PNG."""
        from matplotlib.figure import Figure

        with drawing():
            figure = Figure(figsize=(WIDTH / 100, self.y / 100), dpi=100, facecolor="white")
            for x, y, image in self._images:
                figure.figimage(image, x, self.y - y - len(image), origin="upper")
            for x, y, text, room, look in self._texts:
                base = y + look["fontsize"] / 0.72  # of the letters: their top depends on which they are
                line = figure.text(x / WIDTH, 1 - base / self.y, text, va="baseline", parse_math=False, **look)
                if (width := line.get_window_extent().width) > room:
                    line.set_fontsize(0.97 * look["fontsize"] * room / width)  # letters do not shrink evenly
            figure.savefig(file, format="png", dpi=100)
