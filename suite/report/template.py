"""The page's templates, in `assets/`: whatever they are given is shown as text,
whatever characters a record has."""

import functools
from importlib import resources
from typing import TYPE_CHECKING, Any

from suite.files import printable

if TYPE_CHECKING:
    from jinja2 import Environment


@functools.cache
def _environment() -> "Environment":
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    def plain(value: Any) -> Any:
        """No terminal and no browser is obeyed: Markup is our own, or was made plain
        before it became that."""
        return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    return Environment(
        loader=FunctionLoader(asset), autoescape=True, undefined=StrictUndefined, finalize=plain, trim_blocks=True
    )


def asset(name: str) -> str:
    """A file of the page."""
    return (resources.files("suite.report") / "assets" / name).read_text("utf-8")


def fill_template(name: str, **values: Any) -> str:
    """A template with its values, all of them escaped but what the template itself
    marks as safe."""
    return _environment().get_template(name).render(values)
