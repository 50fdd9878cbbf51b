"""Dictionaries are shared with a card that says what they are, and nothing else is."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from impact_lightning.results import Record
from impact_lightning.sae.saelens import write_saelens
from impact_lightning.sae.sharing import model_card, push_to_hub, write_card
from impact_lightning.types import UserError
from tests.sae.dictionaries import dictionary


def record(measure: str, value: float, of: str = "blocks.3.mlp_out") -> Record:
    return Record(measure, 1, value, n=1000, seed=0, protocol={}, weights="abcd", data="ef", of=of)


def test_the_front_matter_names_the_library() -> None:
    _, front, _ = model_card("DeiT", ["a"], []).split("---\n")
    assert yaml.safe_load(front)["library_name"] == "saelens"
    assert "sparse-autoencoder" in yaml.safe_load(front)["tags"]


def test_the_table_has_a_row_for_each_site() -> None:
    other = record("l0", 8.0, of="blocks.5.mlp_out")
    card = model_card("DeiT", [], [record("l0", 32.0), record("ev", 0.8125), record("loss", 1.0), other])
    rows = [line for line in card.splitlines() if line.startswith("| blocks")]
    assert rows[0].endswith("| 0 | abcd | 32 (n = 1000) | 0.8125 (n = 1000) |")
    assert rows[1].endswith("| 0 | abcd | 8 (n = 1000) | – |")


def test_names_cannot_add_html_or_cells() -> None:
    card = model_card("<script>", ["[a](http://x)"], [record("l0", 1.0, of="x|y\n| z")])
    assert "<script>" not in card
    assert "[a]" not in card
    assert "| x&#124;y &#124; z |" in card


def test_refuses_two_protocols_in_one_cell() -> None:
    with pytest.raises(UserError, match="two records of l0"):
        model_card("DeiT", [], [record("l0", 1.0), record("l0", 2.0)])


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    def create_repo(self: HfApi, repo_id: str, **options: Any) -> str:
        if repo_id == "nobody/refused":
            raise HfHubHTTPError.__bases__[0]("no route to host")  # what the HTTP library raises without a network
        calls.append({"repo_id": repo_id, **options})
        return f"https://hub/{repo_id}"

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **options: calls.append(options))
    return calls


def shared(folder: Path) -> Path:
    write_saelens(folder / "blocks.3", dictionary("jumprelu"))
    write_card(folder, "DeiT", [record("l0", 32.0)])
    (folder / "secret.txt").write_text("not for others")
    return folder


def test_uploads_dictionaries_and_card_and_nothing_else(uploads: list[dict[str, Any]], tmp_path: Path) -> None:
    assert push_to_hub(shared(tmp_path), "me/saes") == "https://hub/me/saes"
    assert uploads[0] == {"repo_id": "me/saes", "private": True, "exist_ok": True}
    files = [f"blocks.3/{name}" for name in ("cfg.json", "sae_weights.safetensors", "sparsity.safetensors")]
    assert uploads[1]["allow_patterns"] == ["README.md", *files]


def test_shares_no_damaged_dictionary(uploads: list[dict[str, Any]], tmp_path: Path) -> None:
    (shared(tmp_path) / "blocks.3" / "sae_weights.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"sae_weights\.safetensors"):
        push_to_hub(tmp_path, "me/saes")
    assert not uploads


def test_shares_nothing_without_card_or_dictionary(uploads: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="write a model card"):
        push_to_hub(tmp_path, "me/saes")
    write_card(tmp_path, "DeiT", [])
    with pytest.raises(UserError, match="holds no SAELens folder"):
        push_to_hub(tmp_path, "me/saes")
    assert not uploads


def test_a_refusal_of_the_hub_is_told(uploads: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nobody/refused: the Hub did not take"):
        push_to_hub(shared(tmp_path), "nobody/refused")
