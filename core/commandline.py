"""What both command lines share: a parser that complains in one sentence, and output that no terminal can stop."""

import argparse
import os
import re
import sys
from collections.abc import Callable

from core.errors import UserError, did_you_mean

NUMBERS = {"int": "a whole number", "float": "a number"}


class Parser(argparse.ArgumentParser):
    """argparse, but an unusable flag is a UserError: one sentence with the value and what is allowed."""

    def error(self, message: str):
        raise UserError(self._sentence(message))

    def _sentence(self, message: str) -> str:
        if match := re.match(r"unrecognized arguments: (\S+)", message):
            flag = match[1].partition("=")[0]
            known = re.findall(r"--[a-z_]+", self.format_usage())
            return f"unknown flag {flag!r}{did_you_mean(flag, known)}; --help lists every flag"
        if match := re.fullmatch(r"argument (\S+): invalid choice: '?(.*?)'? \(choose from (.*)\)", message):
            allowed = match[3].replace("'", "")
            return f"{match[1]} is {match[2]!r}{did_you_mean(match[2], allowed.split(', '))}; use one of: {allowed}"
        if match := re.fullmatch(r"argument (\S+): invalid (int|float) value: (.*)", message):
            return f"{match[1]} is {match[3]}; give {NUMBERS[match[2]]}"
        if match := re.fullmatch(r"argument (\S+): expected (.*)", message):
            return f"{match[1]} has no value, expected {match[2]}; give it, or leave the flag out"
        return f"{message}; --help explains every flag"


def machine_flags(parser: argparse.ArgumentParser, data: bool = True) -> None:
    """The flags of the scripts of one model that say what runs it and, if they read ``data``, where that lies."""
    if data:
        parser.add_argument("--data_dir", metavar="DIR", help="folder with data sets in the hub's layout (default: the "
                                                              "embedded rows)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0 for all cores")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--cache_dir", default="saved_models", metavar="DIR",
                        help="where scores, plans and samples are kept by content (default: saved_models)")


def machine_of(args: argparse.Namespace) -> dict:
    """What the flags of :func:`machine_flags` say, as fields of a grid."""
    folder = {"data_dir": args.data_dir, "data_source": "folder"} if getattr(args, "data_dir", None) else {}
    return {"threads": args.threads, "device": args.device, "cache_dir": args.cache_dir, **folder}


def plain_console():
    """The rich console that results are printed on; wide enough for a table when it is not a terminal."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 140)


def exit_status(command: Callable[[], int]) -> int:
    """Run a command: what it cannot use is one sentence and status 2, Ctrl-C is 130, and a reader that closes its pipe
    is no error.
    """
    forgiving_stdout()
    try:
        return command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; finished batches are kept, the same command goes on from there", file=sys.stderr)
        return 130
    except BrokenPipeError:  # head, less
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def forgiving_stdout() -> None:
    """Let an ASCII or Latin-1 terminal show "?" for a letter that it lacks (Δ, ±) rather than stop the program."""
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's stdout is no text file
        sys.stdout.reconfigure(errors="replace")
