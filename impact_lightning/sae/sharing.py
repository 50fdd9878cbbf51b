"""Sharing: the model card of exported dictionaries, and their upload to the Hugging Face Hub."""

import glob
import html
import re
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import yaml

from impact_lightning.files import atomic_write
from impact_lightning.results import Record
from impact_lightning.sae.saelens import CONFIG, SPARSITY, WEIGHTS, read_saelens
from impact_lightning.types import UserError

CARD = "README.md"
TAGS = ["saelens", "sparse-autoencoder", "interpretability", "vision"]
COLUMNS = {"l0": "L0", "ev": "explained variance (pooled)"}


def write_card(folder: Path, title: str, records: Iterable[Record]) -> None:
    """Write the model card of a folder of dictionaries, one sub-folder each.

    Args:
        folder: The folder that will be shared.
        title: What the dictionaries are of.
        records: Results; those of L0 and explained variance make a table, with a row for each site and seed.
    """
    names = [path.parent.relative_to(folder).as_posix() for path in sorted(folder.glob(f"**/{CONFIG}"))]
    with atomic_write(folder / CARD) as file:
        file.write(model_card(title, names, records).encode())


def model_card(title: str, names: Iterable[str], records: Iterable[Record]) -> str:
    """Return the model card as Markdown; whatever comes from files is escaped.

    Args:
        title: What the dictionaries are of.
        names: Folders of the dictionaries.
        records: See `write_card`.
    """
    front = yaml.safe_dump({"library_name": "saelens", "tags": TAGS}, sort_keys=False)
    lines = ["---", front.rstrip(), "---", "", f"# {_escaped(title)}", ""]
    lines += ["Sparse autoencoders in SAELens format, for raw activations. Load one with", "", "```python"]
    lines += ["from sae_lens import SAE", "", 'sae = SAE.load_from_disk("path/to/one/of/the/folders")', "```", ""]
    lines += ["Folders: " + ", ".join(map(_escaped, names)), ""]
    return "\n".join(lines + _table(records))


def _table(records: Iterable[Record]) -> list[str]:
    rows: dict[tuple[str, int, str], dict[str, str]] = {}
    for record in records:
        if record.measure in COLUMNS:
            row = rows.setdefault((record.of, record.seed, record.weights), {})
            if record.measure in row:
                raise UserError(f"{record.of}: two records of {record.measure}; give those of one protocol")
            row[record.measure] = f"{record.value:.4g} (n = {record.n})"
    if not rows:
        return []
    lines = [f"| site | seed | weights | {' | '.join(COLUMNS.values())} |", "|---|---|---|" + "---|" * len(COLUMNS)]
    for key, row in sorted(rows.items()):
        cells = [*(_escaped(str(part)) for part in key), *(row.get(measure, "–") for measure in COLUMNS)]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def push_to_hub(folder: Path, repo_id: str, *, private: bool = True) -> str:
    """Upload a folder of dictionaries with its card, nothing else that lies there, and return its address.

    Every dictionary is read first: a damaged one is not shared. The account is the one that `hf auth login` stored, or
    that of the environment variable `HF_TOKEN`.

    Args:
        folder: Folder with a card and one sub-folder for each dictionary.
        repo_id: Name on the Hub, `account/name`; made if there is none.
        private: Whether a new repository is private.
    """
    if not (folder / CARD).exists():
        raise UserError(f"{folder}: has no {CARD}; write a model card before sharing")
    dictionaries = [path.parent for path in sorted(folder.glob(f"**/{CONFIG}"))]
    if not dictionaries:
        raise UserError(f"{folder}: holds no SAELens folder")
    for dictionary in dictionaries:
        read_saelens(dictionary)

    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    names = [path.relative_to(folder) for path in dictionaries]
    files = [Path(CARD)] + [name / file for name in names for file in (CONFIG, WEIGHTS, SPARSITY)]
    allowed = [glob.escape(file.as_posix()) for file in files]  # a name with * in it is not a pattern
    # the bases are OSError and that of the HTTP library, which differs between versions
    failures = cast(tuple[type[Exception], ...], (*HfHubHTTPError.__bases__, HFValidationError))
    api = HfApi()
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, allow_patterns=allowed)
    except failures as error:
        raise UserError(f"{repo_id}: the Hub did not take the upload ({error})") from error
    return str(address)


def _escaped(text: str) -> str:
    """Return text that is neither HTML, nor a link, nor a border of a table."""
    safe = html.escape(" ".join(text.split()))
    return re.sub(r"[\\`*_\[\]|]", lambda mark: f"&#{ord(mark[0])};", safe)
