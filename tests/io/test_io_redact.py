"""Redaction: secrets go, whatever their spelling; what only looks like one stays."""

from __future__ import annotations

import io
import json
import urllib.parse

import pytest

from orchestrator.errors import DataError
from orchestrator.io.redact import Redacted, found, redact, redact_arguments, redact_error

AWS_SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
REDACTED = {
    "variable": ("x hunter22 y", {"MY_SECRET": "hunter22"}, "x *** y"),
    "variable, in JSON": (json.dumps({"a": 'qu"ote\\d12'}), {"MY_SECRET": 'qu"ote\\d12'}, '{"a": "***"}'),
    "variable, in an address": (
        f"k={urllib.parse.quote(AWS_SECRET, safe='')}&b",
        {"AWS_SECRET_ACCESS_KEY": AWS_SECRET},
        "k=***&b",
    ),
    "variable of several lines": ("x secondline y", {"PRIVATE_KEY": "firstline\nsecondline"}, "x *** y"),
    "longer of two": ("abcdefgh12345", {"A_KEY": "abcdefgh", "B_KEY": "abcdefgh12345"}, "***"),
    "password inside an address of the environment": (
        "login me passw0rd!x",
        {"MLFLOW_TRACKING_URI": "http://me:passw0rd!x@host"},
        "login me ***",
    ),
    "user in an address": ("https://me:pass@host/x", {}, "https://***@host/x"),
    "password with an @": ("s3://AK:p@ss@bucket/x", {}, "s3://***@bucket/x"),
    "password with a /": ("s3://AK:wJal/K7+x@bucket/x", {}, "s3://***@bucket/x"),
    "presigned": (
        "GET https://h/b/k?X-Amz-Credential=AK%2F2026&X-Amz-Security-Token=abc&X-Amz-Signature=0aF&x=1",
        {},
        "GET https://h/b/k?X-Amz-Credential=***&X-Amz-Security-Token=***&X-Amz-Signature=***&x=1",
    ),
    "shared access signature": ("https://h/c?sv=1&sig=abc%3D", {}, "https://h/c?sv=1&sig=***"),
    "header": (
        "Authorization: AWS4-HMAC-SHA256 Credential=AK/1, Signature=ab\nnext",
        {},
        "Authorization: ***\nnext",
    ),
    "header in a dictionary": (
        "{'Authorization': 'Basic bWU6cGFzcw==', 'a': 1}",
        {},
        "{'Authorization': '***', 'a': 1}",
    ),
    "bearer": ("sent Bearer 0123456789abcdef0123", {}, "sent Bearer ***"),
    "literal": ("hf_token = 'hf_0123456789abcdef'", {}, "hf_token = '***'"),
    "yaml": ("api_key: 0123456789abcdef", {}, "api_key: ***"),
    "json": ('{"token": "0123456789abcdef"}', {}, '{"token": "***"}'),
    "aws key id": ("id AKIAABCDEFGHIJKLMNOP.", {}, "id ***."),
    "hub token": (f"use hf_{'aB3' * 11}", {}, "use ***"),
}
KEPT = {
    "short values": ("a 1 b", {"USE_TOKEN": "1"}),
    "plain words": ("required by disabled", {"TOKEN_MODE2": "disabled", "X_TOKEN": "required"}),
    "numbers": ("limit 100000000", {"MAX_TOKEN": "100000000"}),
    "paths": ("see /tmp for", {"API_KEY": "/tmp/../tmp"}),
    "files of secrets": ("read /run/secret-file", {"RAY_AUTH_TOKEN_PATH": "/run/secret-file"}),
    "other variables": ("/home/me", {"HOME": "/home/me"}),
    "code": ("tokenizer = get_tokenizer(name_16)", {}),
    "command": ("orch submit recipe.yaml -s stages.a.steps=5", {}),
    "counted tokens": ("num_tokens: 77, tokens/s 12345.6789", {}),
    "an @ in a path": ("hf-hub:owner/name@0123456789abcdef and s3://bucket/a@b", {}),
    "addresses": ("http://127.0.0.1:8265/#/jobs?x=1 http://host:8080/path@x", {}),
    "digests": (json.dumps({"content_digest": "0" * 64, "key": "train/00012"}), {}),
    "redacted text": ("s3://***@bucket token='***' Authorization: ***", {"MY_SECRET": "hunter22"}),
}


@pytest.mark.parametrize(("text", "environment", "expected"), REDACTED.values(), ids=REDACTED)
def test_secrets_are_replaced(text, environment, expected):
    assert redact(text, environment) == expected
    assert redact(expected, environment) == expected


@pytest.mark.parametrize(("text", "environment"), KEPT.values(), ids=KEPT)
def test_what_is_no_secret_stays(text, environment):
    assert redact(text, environment) == text


def test_a_variable_set_later_is_redacted_too(monkeypatch):
    assert redact("x late-secret-1 y") == "x late-secret-1 y"
    monkeypatch.setenv("LATE_TOKEN", "late-secret-1")
    assert redact("x late-secret-1 y") == "x *** y"


def test_a_secret_in_two_writes_does_not_pass():
    to = io.StringIO()
    with Redacted(to) as file:
        for piece in ("first https://me:pa", "ss@host/x\nsecond https://me:p", "w@host"):
            file.write(piece)
    assert to.getvalue() == "first https://***@host/x\nsecond https://***@host"


def test_errors_keep_their_kind_and_lose_their_secrets():
    error = redact_error(DataError("cannot read https://u:p@h", "see https://u:p@h"))
    assert isinstance(error, DataError)
    assert str(error) == "cannot read https://***@h\n  see https://***@h"
    assert repr(redact_error(ValueError("https://u:p@h"))) == "RuntimeError('ValueError: https://***@h')"


def test_the_argument_after_a_secret_option_is_redacted():
    arguments = ["orch", "--api-key", "abcd", "submit", "--password=x", "-s", "a=1"]
    assert redact_arguments(arguments, {}) == ["orch", "--api-key", "***", "submit", "--password=***", "-s", "a=1"]


def test_what_was_found_is_said_in_words(monkeypatch):
    monkeypatch.setenv("PLANTED_TOKEN", "planted-value-1")
    assert found("s3://KEY:SECRET@bucket/x") == "a name or password in an address"
    assert found("x planted-value-1") == "the value of $PLANTED_TOKEN"
    assert found("s3://***@bucket/x") is None
    assert found("s3://bucket/x") is None
