"""What both command lines share: a parser that complains in one sentence, and output that no terminal's encoding can stop."""

import argparse
import re
import sys

from core.errors import UserError
from core.registry import did_you_mean

NUMBERS = {"int": "a whole number", "float": "a number"}


class Parser(argparse.ArgumentParser):
    """argparse, but an unusable flag is a UserError: one sentence with the value and what is allowed, without the wall of usage."""

    def error(self, message: str):
        raise UserError(self._sentence(message))

    def _sentence(self, message: str) -> str:
        if found := re.match(r"unrecognized arguments: (\S+)", message):
            flag = found[1].partition("=")[0]
            return f"unknown flag {flag!r}{did_you_mean(flag, re.findall(r'--[a-z_]+', self.format_usage()))}; --help lists every flag"
        if found := re.fullmatch(r"argument (\S+): invalid choice: '?(.*?)'? \(choose from (.*)\)", message):
            allowed = found[3].replace("'", "")
            return f"{found[1]} is {found[2]!r}{did_you_mean(found[2], allowed.split(', '))}; use one of: {allowed}"
        if found := re.fullmatch(r"argument (\S+): invalid (int|float) value: (.*)", message):
            return f"{found[1]} is {found[3]}; give {NUMBERS[found[2]]}"
        if found := re.fullmatch(r"argument (\S+): expected (.*)", message):
            return f"{found[1]} has no value, expected {found[2]}; give it, or leave the flag out"
        return f"{message}; --help explains every flag"


def forgiving_stdout() -> None:
    """Let an ASCII or Latin-1 terminal show "?" for a letter that it lacks (Δ, ±) rather than stop the program."""
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's stdout is no text file
        sys.stdout.reconfigure(errors="replace")
