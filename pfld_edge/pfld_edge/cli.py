"""The `pfld-edge` program: a group of commands, each imported only when it is called."""

import importlib
import io
import os
import sys
from collections.abc import Sequence

import click
from click.shell_completion import get_completion_class

COMMANDS: dict[str, str] = {
    "prepare": "Cut a data set's faces into shards to train on.",
    "label": "Label faces with several landmark networks, to train on.",
    "train": "Train a landmark network.",
    "evaluate": "Measure a checkpoint or ONNX file on faces with known landmarks.",
    "import-onnx": "Turn a published PFLD ONNX file back into a checkpoint.",
    "convert": "Turn a checkpoint into a small ONNX file, fp32 or INT8.",
    "verify": "Check that ONNX files are as accurate as their checkpoint.",
    "bench": "Time ONNX files against each other, with intervals.",
    "contract": "Show, write or find how a network must be fed and read.",
    "inspect": "Print a model's contract, layers and cost, or what differs in two.",
    "predict": "Draw the landmarks of the faces in photographs.",
    "detector": "List and download face detectors.",
    "demo": "Find landmarks in a browser, on the camera or a photograph.",
    "completion": "Print a script that lets a shell complete commands.",
}
"""Each command and its line in `pfld-edge --help`; written here so that help imports none of them."""

_MODULES = {"import-onnx": "train"}
"""Modules of `pfld_edge.commands` that are not named after the command."""

_COMPLETE = "_PFLD_EDGE_COMPLETE"
"""Where click looks for what the shell asks."""

# What `pip install pfld-edge` leaves out.
_TRAIN_EXTRA = frozenset({"torch", "onnxscript"})


class LazyGroup(click.Group):
    """A click group that finds command `do-this` as `do_this_command` in a module of `pfld_edge.commands`."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Name the commands in the order in which one uses them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command; None where there is no such command."""
        if cmd_name not in COMMANDS or cmd_name in self.commands:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(f"pfld_edge.commands.{_MODULES.get(cmd_name, cmd_name)}")
        command: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands from the table, importing none."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pfld-edge", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Facial landmarks on edge devices: train, convert, verify, predict."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@cli.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> None:
    r"""Print a script that lets SHELL complete what you type.

    \b
    bash: put `eval "$(pfld-edge completion bash)"` into ~/.bashrc
    zsh:  put `eval "$(pfld-edge completion zsh)"` into ~/.zshrc
    fish: `pfld-edge completion fish > ~/.config/fish/completions/pfld-edge.fish`
    """
    found = get_completion_class(shell)
    assert found is not None  # noqa: S101 - tells the type checker
    script = found(cli, {}, "pfld-edge", _COMPLETE)
    # Not `script.source()`: of bash it asks the version of whatever bash is first in the path, which may be another.
    click.echo(script.source_template % script.source_vars())


def main() -> None:
    """Run the program on the process's arguments and exit with its status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Names may have letters that the console's encoding lacks.
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line, without the program's name; what the user did wrong becomes one line on stderr.

    Returns:
        The exit status: 0 done, 1 a check fell short, 2 the user's mistake, 130 interrupted.
    """
    try:
        status = cli.main(list(arguments), prog_name="pfld-edge", complete_var=_COMPLETE, standalone_mode=False)
        # Here, not at the interpreter's exit, where a closed pipe could no longer be caught.
        sys.stdout.flush()
    except click.exceptions.Abort:
        click.echo("Interrupted.", err=True)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        line = _user_error(error)
        if line is None:
            raise
        click.echo(f"Error: {line}", err=True)
        return 2
    return status if isinstance(status, int) else 0


def _user_error(error: Exception) -> str | None:
    """Put a user's mistake in one line; None where the error is a bug of ours."""
    # Imported late: the runtime's package brings numpy and onnxruntime with it.
    from pfld_edge_runtime.errors import PfldEdgeError

    line: str | None = None
    if isinstance(error, click.ClickException):
        line = error.format_message()
        if isinstance(error, click.UsageError) and error.ctx is not None:
            line = f"{line.rstrip('.')} (see `{error.ctx.command_path} --help`)"
    elif isinstance(error, PfldEdgeError):
        line = str(error)
    elif isinstance(error, OSError) and error.strerror:
        line = ": ".join(str(part) for part in (error.filename, error.strerror) if part is not None)
    elif isinstance(error, MemoryError):
        line = f"there is not enough memory: {error}".removesuffix(": ")
    elif isinstance(error, ModuleNotFoundError) and error.name in _TRAIN_EXTRA:
        line = f"this command needs {error.name}: install it with `pip install 'pfld-edge[train]'`"
    return None if line is None else " ".join(line.split("\n"))
