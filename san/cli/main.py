"""The command `san`: runs a sub-command, and shows a user's error in one line.

Only the standard library is imported before a sub-command is chosen, so that `san --help` is fast.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

import san
from san.cli import streams
from san.io.errors import INTERRUPTED, USER_ERRORS, one_line
from san.io.redaction import redact_home
from san.user_modules import import_modules

DONE, ERROR, USAGE = 0, 1, 2

COMMANDS = {
    "predict": "segment pictures or folders of them with any words",
    "label": "write annotations of pictures for labelling tools and training: COCO, YOLO, VOC, CVAT and others",
    "video": "segment videos with any words",
    "vocab": "make a vocabulary from example pictures instead of words",
    "demo": "serve a web page that segments pictures",
    "serve": "serve the model over HTTP: pictures and words in, label maps, overlays, run lengths or polygons out",
    "models": "list models: size, licence, and whether they are on this machine",
    "train": "train a model, and evaluate it",
    "eval": "evaluate a model on data sets",
    "pq": "measure the panoptic quality of labelled images",
    "ablate": "train configurations with several seeds, and compare them in one table",
    "prepare": "prepare a benchmark from its publisher's download",
    "check": "read a whole data set and report errors",
    "visualize": "draw the results of an evaluation, the worst first",
    "curves": "draw the losses and evaluations of a run",
    "replay": "recompute batches whose losses or gradients were not finite",
    "convert": "convert a checkpoint to published names, a slim file, or a folder for the hub",
    "export": "export a model to ONNX or torch.export, and compare the files with it",
    "analyze": "measure parameters, multiply-adds, time and memory of each part of a model",
    "similarity": "compare the class names of data sets, and relate their similarity to the IoU",
    "benchmark": "measure speed and memory, and compare with the floor of this machine",
}
"""Sub-commands, each a module san/cli/<name>.py, and their purpose."""

_HELP = """SAN: open-vocabulary semantic segmentation with a Side Adapter Network.

commands:
{commands}

examples:
  san models
  san predict street.jpg --vocab "car, road, sky" --model san_vit_b_16 --out predictions
  san train --config-file configs/shapes/san_shapes_quick.yaml
  san COMMAND --help"""

_EXIT_CODES = "Exit codes: 0 all done, 1 error, 2 wrong command line, 130 interrupted."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command.

    Args:
        arguments: the command line without the program's name; by default the process's.

    Returns:
        The exit code: 0 all done, 1 error, 2 wrong command line, 130 interrupted; a sub-command may have more.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    return guarded(lambda: _run(given))


def _run(arguments: list[str]) -> int:
    """Run `main` without `guarded`."""
    parser = _main_parser()
    try:
        chosen = parser.parse_args(arguments[:1])
        if chosen.command is None:
            parser.print_help()
            return USAGE
        module = importlib.import_module(f"san.cli.{chosen.command}")
        options = make_parser(module, f"san {chosen.command}").parse_args(arguments[1:])
    except SystemExit as stop:  # argparse's --help, --version, and errors
        return stop.code if isinstance(stop.code, int) else USAGE
    return _run_command(module, options)


def _run_command(module: ModuleType, options: argparse.Namespace) -> int:
    """Run a sub-command, after the user's own modules are imported."""

    def action() -> int | None:
        import_modules(options.imports)
        code: int | None = module.run(options)
        return code

    return guarded(action, show_traceback=options.traceback)


def run_tool(module: ModuleType, arguments: Sequence[str] | None = None) -> int:
    """Run a script of tools/: a sub-command under the script's own name.

    Args:
        module: of the sub-command.
        arguments: the command line without the program's name; by default the process's.

    Returns:
        The exit code.
    """

    def action() -> int:
        options = make_parser(module).parse_args(arguments)
        return _run_command(module, options)

    return guarded(action)


def make_parser(module: ModuleType, program: str | None = None) -> argparse.ArgumentParser:
    """Return a sub-command's parser: its module's docstring, its options, --traceback and --import."""
    description = module.__doc__ or ""
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        epilog=None if "xit code" in description else _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised, for a bug report")
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="a Python module of yours to import first, such as one that registers a part of the model "
        "(docs/extend.md); may be given several times",
    )
    module.add_arguments(parser)
    return parser


def guarded(action: Callable[[], int | None], *, show_traceback: bool = False) -> int:
    """Run a command; a user's error is shown in one line on stderr.

    Returns:
        the exit code of the action (None is DONE), of a `SystemExit`, ERROR or INTERRUPTED.
    """
    streams.set_up()
    try:
        with exit_on_user_error(show_traceback=show_traceback):
            code = action() or DONE
            streams.finish()
            return code
    except BrokenPipeError:  # `san models | head`
        streams.drop_output()
        return ERROR
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return ERROR
        return stop.code or DONE


@contextlib.contextmanager
def exit_on_user_error(*, show_traceback: bool = False) -> Iterator[None]:
    """Turn `USER_ERRORS` and Ctrl-C into an exit status.

    Raises:
        SystemExit: with the line to show for a user's error, with INTERRUPTED after Ctrl-C.
    """
    try:
        yield
    except BrokenPipeError:  # the reader of the output has ended, which is not an error
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except USER_ERRORS as error:
        if show_traceback:
            traceback.print_exc()
        sys.exit(f"error: {redact_home(one_line(error))}")


def _main_parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {what}" for name, what in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="san",
        description=_HELP.format(commands=commands),
        epilog=f"{_EXIT_CODES} See the help of each command for more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="san [--help] [--version] COMMAND ...",
    )
    parser.add_argument("--version", action="version", version=f"san {san.__version__}")
    parser.add_argument("command", nargs="?", metavar="COMMAND", choices=COMMANDS, help=argparse.SUPPRESS)
    return parser
