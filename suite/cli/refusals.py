"""What click refuses, in one line as this project writes them: what is wrong, and what
to do."""

import click
from click import exceptions

from suite import env
from suite.errors import join_with_or


def in_one_line(error: click.ClickException) -> str:
    """The error in words; of an option or argument its name comes first."""
    if isinstance(error, exceptions.NoSuchCommand):
        return f"{error.command_name}: no such command; {_remedy(error.possibilities, error.ctx)}"
    if isinstance(error, exceptions.NoSuchOption):
        return f"{error.option_name}: no such option; {_remedy(error.possibilities, error.ctx)}"
    if isinstance(error, exceptions.MissingParameter) and error.param and error.ctx:
        described = getattr(error.param, "help", None)
        name = max(error.param.opts, key=len) if described else error.param.make_metavar(error.ctx)
        return f"{name} is missing{f': {_sentence(described)}' if described else f'; usage: {_usage(error.ctx)}'}"
    if isinstance(error, exceptions.BadParameter):
        option = f"{max(error.param.opts, key=len)}: " if isinstance(error.param, click.Option) else ""
        return option + _sentence(error.message)
    if isinstance(error, exceptions.BadOptionUsage):
        return f"{error.option_name}: {'takes no value' if 'does not take' in error.message else 'needs a value'}"
    text = _sentence(" ".join(error.format_message().split()))
    usage = f"; usage: {_usage(error.ctx)}" if isinstance(error, exceptions.UsageError) and error.ctx else ""
    return text[:1].lower() + text[1:] + usage


def _sentence(text: str) -> str:
    return text.strip().rstrip(".")


def _remedy(names: list[str] | None, ctx: click.Context | None) -> str:
    """The names that are nearest, else where all of them are listed."""
    return f"did you mean {join_with_or(names)}?" if names else f"{_command(ctx)} --help lists them"


def _command(ctx: click.Context | None) -> str:
    return env.typed([ctx.info_name or ""] if ctx and ctx.parent else [])


def _usage(ctx: click.Context) -> str:
    return " ".join([_command(ctx), *ctx.command.collect_usage_pieces(ctx)])
