"""Where the page says that its figures come from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from suite.report import page
from suite.results.store import Store

AddRun = Callable[..., dict[str, Any]]


def test_every_figure_has_its_machine_versions_command_and_recipe(
    store: Store, add_run: AddRun, tmp_path: Path
) -> None:
    environment = {
        "machine": {"id": "a machine"},
        "versions": {"torch": "9.9"},
        "source": {"commit": "abc"},
        "command": ["suite", "run"],
    }
    for seed in range(2):
        add_run(seed=seed, batch_sizes=(1, 8), environment=environment)
    html = page.write(store, tmp_path / "out").read_text("utf-8")
    provenance = html[html.index('id="provenance"') :]
    assert "<dd>a machine</dd>" in provenance
    assert "<dd>suite run</dd>" in provenance
    assert "torch 9.9" in provenance
    assert "<dd>abc</dd>" in provenance
    assert "learning_rate 0.1" in provenance
    assert "seed 0, 1" in provenance
    assert "ORT cpu b1, ORT cpu b8" in provenance


def test_a_net_of_two_tables_counts_once_among_the_records(store: Store, add_run: AddRun, tmp_path: Path) -> None:
    add_run()  # in Tables 2 and 3
    assert ">All 4 records are shown" in page.write(store, tmp_path / "out").read_text("utf-8")
