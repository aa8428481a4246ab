"""Results folders that a user names, and the page that is written of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from suite.errors import InputError


def must_be_there(results: Path) -> None:
    if not results.is_dir():
        raise InputError(f"--results {results}: {'is no folder' if results.exists() else 'no such folder'}")


def must_be_there_if_given(results: Path) -> None:
    """Without records everything is missing, which is news of the usual folder alone."""
    source = click.get_current_context().get_parameter_source("results")
    if results.exists() or source is not click.core.ParameterSource.DEFAULT:
        must_be_there(results)


def write_page(results: Sequence[Path], out: Path, metric: Any) -> Path:
    from suite.report import page
    from suite.results.store import Store

    try:
        return page.write([Store(folder) for folder in results], out, metric)
    except OSError as error:
        raise InputError(f"{out}: cannot write the report there: {error.strerror}") from None
