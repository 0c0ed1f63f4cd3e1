"""Redaction: `***` in place of whatever would let its reader in. The one place that knows what a secret looks like.

Secret are: values of environment variables that are named so (as they are, and as JSON and URLs spell them), what
stands before the @ of an address, signatures of presigned addresses, `Authorization` headers, long values beside words
like token, and the shapes of known keys. Short values, plain words, numbers and paths are not taken for secrets, or
every log would be holes. Whatever the product writes goes through here on its way: logs, events, manifests, messages,
what MLflow is told. What is left is only what no pattern can know: a secret that was put under a harmless name.

Cheap enough for every line of a log: most have no hint of any shape and are not looked at twice.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TextIO
from urllib.parse import quote, quote_plus

from orchestrator.errors import OrchError

MASK = "***"
MIN_LENGTH = 8
"""A shorter value of a variable stays: it would be found in innocent text, and it protects nothing."""

_WORD = r"(?:secret|token|passw(?:or)?d|passphrase|credentials?|api[_-]?key|access[_-]?key|private[_-]?key)"
_SECRET_NAME = re.compile(rf"{_WORD}|(?:^|_)key$|(?:^|_)pass$", re.IGNORECASE)
_HARMLESS_NAME = re.compile(r"_(?:file|path|dir|url|uri|sock|mode|type|name|helper|endpoint)$", re.IGNORECASE)
_PLAIN_VALUES = frozenset({"disabled", "required", "password", "optional", "anonymous"})
_ADDRESS_PASSWORD = re.compile(r"://[^/\s:@]*:([^/\s@]+)@")


@dataclass(frozen=True)
class _Shape:
    """What a kind of secret looks like: `pattern` has what stays as its group, and then what goes."""

    kind: str
    hints: tuple[str, ...]
    """One of them, in lower case, is in every text that has such a secret."""
    pattern: re.Pattern[str]


_SHAPES = (
    _Shape(
        "a name or password in an address",
        ("@",),
        re.compile(r"(://)(?:[^/\s?#'\"<>|]+|[\w.+-]+:(?!\d+/)[^\s?#'\"<>|@]+)(?=@)"),  # AWS' secrets may have a /
    ),
    _Shape(
        "the signature of a presigned address",
        ("x-amz", "x-goog", "awsaccess", "sig=", "signature="),
        re.compile(
            r"((?:x-(?:amz|goog)-(?:signature|credential|security-token)|awsaccesskeyid|[?&](?:signature|sig))"
            r"(?:=|%3D|\"?: ?\"?))[^&\s'\"]+",
            re.IGNORECASE,
        ),
    ),
    _Shape(
        "an Authorization header",
        ("authorization",),
        re.compile(r"(authorization['\"]?\s*[:=]\s*b?['\"]?)[^\r\n'\"]+", re.IGNORECASE),
    ),
    _Shape("a bearer token", ("bearer ",), re.compile(r"(\bbearer )[\w.~+/-]{16,}", re.IGNORECASE)),
    _Shape(  # in code most things called token are none: only a long value with a digit in it is taken for a secret
        "a long value beside a word like token",
        ("secret", "token", "passw", "passphrase", "credential", "key"),
        re.compile(
            rf"({_WORD}\\?['\"]?\s*[=:]\s*\\?['\"]?)(?=[\w+/.~-]*\d)[\w+/.~-]{{16,}}",
            re.IGNORECASE,
        ),
    ),
    _Shape("an AWS key id", ("akia", "asia"), re.compile(r"\b()(?:AKIA|ASIA)[A-Z0-9]{16}\b")),
    _Shape(
        "an access token",
        ("hf_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "xox"),
        re.compile(r"\b()(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|xox[abprs]-[\w-]{10,})"),
    ),
)
_OPTION = re.compile(rf"(--[\w-]*{_WORD}=|[\w.]*{_WORD}=).+", re.IGNORECASE)


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """The text with `***` for secrets; `environment` is this process's where none is given."""
    for value in _values(os.environ if environment is None else environment):
        text = text.replace(value, MASK)
    lowered = text.lower()
    for shape in _SHAPES:
        if any(hint in lowered for hint in shape.hints):
            text = shape.pattern.sub(rf"\1{MASK}", text)
    return text


def redact_arguments(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> list[str]:
    """A command line as `redact` has it, and `***` for the argument after an option that is named like a secret."""
    result: list[str] = []
    follows = False
    for argument in argv:
        result.append(MASK if follows else _OPTION.sub(rf"\1{MASK}", redact(argument, environment)))
        follows = argument.startswith("--") and "=" not in argument and bool(re.search(_WORD, argument, re.IGNORECASE))
    return result


def redact_error(error: Exception) -> Exception:
    """The error with its texts redacted, for a place that shows errors by itself; one that is not for people becomes a
    RuntimeError.
    """
    if not isinstance(error, OrchError):
        return RuntimeError(redact(f"{type(error).__name__}: {error}"))
    error.message, error.remedy = redact(error.message), redact(error.remedy)
    error.args = (error.message,)
    return error


def found(text: str) -> str | None:
    """What kind of secret a text holds, in words for a person; None if none."""
    for name, value in os.environ.items():
        if value in text and _is_secret(name, value):
            return f"the value of ${name}"
    kinds = (shape.kind for shape in _SHAPES if (m := shape.pattern.search(text)) and not m[0].endswith(MASK))
    return next(kinds, None)


class Redacted(io.TextIOBase):
    """A text file that redacts, line by line, what is written to another: a secret may come in two writes."""

    def __init__(self, to: TextIO) -> None:
        self._to = to
        self._line = ""

    def writable(self) -> bool:
        """True."""
        return True

    def write(self, text: str) -> int:
        """Pass on whole lines; the last waits until it is ended, or until `flush`."""
        whole, newline, self._line = (self._line + text).rpartition("\n")
        if newline:
            self._to.write(redact(whole) + newline)
        return len(text)

    def flush(self) -> None:
        """Pass on what is waiting."""
        self._to.write(redact(self._line))
        self._line = ""
        self._to.flush()

    def fileno(self) -> int:
        """The other file's."""
        return self._to.fileno()


def redact_own_output() -> None:
    """From now on, what Python writes to stdout and stderr is redacted: for processes whose output is a log file."""
    sys.stdout, sys.stderr = Redacted(sys.stdout), Redacted(sys.stderr)


def _is_secret(name: str, value: str) -> bool:
    """Whether a variable of that name and value is one to hide."""
    if not _is_secret_name(name) or len(value) < MIN_LENGTH or value.lower() in _PLAIN_VALUES:
        return False
    if value.isdigit() and len(value) < 16:
        return False
    return not (value.startswith(("/", "~")) and os.path.exists(os.path.expanduser(value)))


@cache
def _is_secret_name(name: str) -> bool:
    return bool(_SECRET_NAME.search(name)) and not _HARMLESS_NAME.search(name)


@cache
def _is_address_name(name: str) -> bool:
    return name.endswith(("URL", "URI", "DSN", "_proxy", "_PROXY"))


def _values(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Secret values among the variables, each line of them alone; passwords inside addresses, whatever the name."""
    values: list[str] = []
    for name in environment:
        if _is_secret_name(name):
            value = environment[name]
            values += [v for v in value.splitlines() if len(v) >= MIN_LENGTH] if _is_secret(name, value) else []
        elif _is_address_name(name) and (match := _ADDRESS_PASSWORD.search(environment[name])):
            values += [match[1]] if len(match[1]) >= MIN_LENGTH else []
    return _spellings(tuple(values)) if values else ()


@lru_cache(maxsize=16)
def _spellings(values: tuple[str, ...]) -> tuple[str, ...]:
    """The values, and how JSON and URLs write them; longest first, so that none hides a longer one."""
    written = {spelt for v in values for spelt in (v, json.dumps(v)[1:-1], quote(v, safe=""), quote(v), quote_plus(v))}
    return tuple(sorted(written, key=len, reverse=True))
