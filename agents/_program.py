"""What every command of `penstock` shares: how options are read, how a command runs, how its errors are shown."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from agents._context import Context

ModelOption = Annotated[str | None, typer.Option(help="Only this model.")]
ProviderOption = Annotated[str | None, typer.Option(help="Only this provider: its address or the start of it.")]
TokenArgument = Annotated[str, typer.Argument(help="Symbol or address.")]
AmountArgument = Annotated[str, typer.Argument(help="Such as 0.5")]
AmountOrAllArgument = Annotated[str, typer.Argument(help="Such as 0.5, or all")]

_P = ParamSpec("_P")

# Options of the whole program, which may also stand after the command: name -> whether it takes a value.
_GLOBAL = {
    "--network": True,
    "--rpc-url": True,
    "--account": True,
    "--wallet": True,
    "--caps": True,
    "--deployment": True,
    "--home": True,
    "--json": False,
    "--debug": False,
}


class Group(TyperGroup):
    """Takes global options anywhere, and turns errors into one line and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, hoist(args))

    def invoke(self, ctx: Any) -> Any:
        from penstock.errors import PenstockError

        try:
            return super().invoke(ctx)
        except PenstockError as error:
            if ctx.params.get("debug"):
                import traceback

                traceback.print_exc()
            _fail(str(error))
            ctx.exit(error.exit_code)
        except BrokenPipeError:
            # Whoever read our output has left; what was open is closed by now.
            sys.stdout = open("/dev/null", "w")  # noqa: SIM115
            ctx.exit(141)
        except KeyboardInterrupt:
            ctx.exit(130)
        except OSError as error:
            if ctx.params.get("debug"):
                raise
            where = f": {error.filename}" if error.filename else ""
            _fail(f"{error.strerror or error}{where}; check the path and its rights")
            ctx.exit(1)


def hoist(args: list[str]) -> list[str]:
    """Global options first, wherever they stood; nothing after `--` is one."""
    front: list[str] = []
    rest: list[str] = []
    pending = list(args)
    while pending:
        word = pending.pop(0)
        if word == "--":
            return [*front, *rest, word, *pending]
        name, equals, _ = word.partition("=")
        if name not in _GLOBAL or (equals and not _GLOBAL[name]):
            rest.append(word)
        elif _GLOBAL[name] and not equals:
            front += [word, *pending[:1]]
            del pending[:1]
        else:
            front.append(word)
    return front + rest


def run(
    ctx: typer.Context,
    command: Callable[Concatenate[Context, _P], Coroutine[Any, Any, None]],
    *args: _P.args,
    **options: _P.kwargs,
) -> None:
    """A command with its own arguments, in the context that the options of the whole program make."""
    from agents._context import Context

    Context.of(ctx).run(lambda context: command(context, *args, **options))


def _fail(message: str) -> None:
    from agents._output import talk

    talk(f"penstock: {' '.join(message.split())}")
