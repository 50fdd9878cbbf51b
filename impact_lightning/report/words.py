"""How the report says things: numbers, names of levels and measures, answers with their signs."""

import math
from typing import NamedTuple

from impact_lightning.neurons.look import readable

UNKNOWN = "not known"
LEVEL_TITLES = {"neurons": "Neurons", "sae": "SAE features", "circuits": "Circuits", "attribution": "Attribution maps"}
READABLE = {
    "ev": "explained variance",
    "fvu": "variance left unexplained",
    "l0": "active latents per token",
    "dead": "share of dead latents",
    "loss_recovered": "loss recovered",
    "top1_recovered": "top-1 recovered",
    "purity": "label purity",
    "label_monosemanticity": "label monosemanticity",
    "monosemanticity": "monosemanticity",
    "decoder_max_cosine": "largest cosine to another latent",
    "nodes": "nodes",
    "edges": "edges",
    "edges_over_density": "edges ÷ density",
    "top1": "top-1 accuracy",
}


class Sign(NamedTuple):
    """How an answer is shown: by a sign and a word; the colour only repeats them."""

    sign: str
    word: str
    meaning: str


SIGNS = {
    "easier": Sign("▲", "easier", "easier to understand than the reference"),
    "harder": Sign("▼", "harder", "harder to understand than the reference"),
    "same": Sign("=", "same", "the difference is smaller than a margin that was fixed before"),
    "mixed": Sign("◆", "mixed", "some measures say easier, others harder"),
    "unsettled": Sign("?", "unsettled", "intervals are too wide to tell"),
    "missing": Sign("–", "missing", "there is no answer: the section of the level says why"),
}


def number(value: float, digits: int = 3) -> str:
    """Return a number with three significant digits.

    Example:
        >>> number(0.123456), number(-1234567.0), number(20.0), number(0.0), number(float("nan"))
        ('0.123', '−1,234,567', '20', '0', 'not known')
    """
    if math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size >= 1000:
        text = f"{value:,.0f}"
    elif size and size < 1e-4:
        text = f"{value:.{digits - 1}e}"
    else:
        places = digits - 1 - math.floor(math.log10(size)) if size else 0
        text = f"{value:.{max(0, places)}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace("-", "−")


def signed(value: float) -> str:
    """Return a number with its sign.

    Example:
        >>> signed(0.5), signed(-0.5), signed(0.0)
        ('+0.5', '−0.5', '0')
    """
    return f"+{number(value)}" if value > 0 else number(value)


def percent(share: float) -> str:
    r"""Return a share in percent.

    Example:
        >>> percent(0.7012), percent(float("nan"))
        ('70.1\xa0%', 'not known')
    """
    return UNKNOWN if math.isnan(share) else f"{100 * share:.1f}\u00a0%".replace("-", "−")


def interval(low: float, high: float) -> str:
    r"""Return an interval, or that there is none.

    Example:
        >>> interval(-0.5, 0.25), interval(float("nan"), 1.0)
        ('−0.5\xa0to\xa00.25', 'no interval')
    """
    return "no interval" if math.isnan(low) or math.isnan(high) else f"{number(low)}\u00a0to\u00a0{number(high)}"


def p_value(p: float) -> str:
    r"""Return a p-value.

    Example:
        >>> p_value(0.00001), p_value(0.04)
        ('<\xa00.001', '0.04')
    """
    return "<\u00a00.001" if p < 0.001 else number(p, 2)


def size(n_bytes: int) -> str:
    """Return the size of a file.

    Example:
        >>> size(512), size(2_500_000)
        ('1 kB', '2.5 MB')
    """
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e5 else f"{math.ceil(n_bytes / 1e3)} kB"


def measure_name(name: str) -> str:
    """Return how a measure is called for people."""
    return READABLE.get(name) or readable(name)[0]


def several(n: int, noun: str) -> str:
    """Return a count and its noun.

    Example:
        >>> several(1, "unit"), several(3, "unit")
        ('1 unit', '3 units')
    """
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
