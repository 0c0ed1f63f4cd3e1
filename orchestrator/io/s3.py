"""How this process speaks to an S3 server: where it is, with which credentials, and what is tried again.

Endpoint, region and credentials are found as the AWS tools find them: environment, profile with its `services`, role.
Credentials are never written anywhere, and are asked for again before they expire. `RETRY` is the one list of what may
be tried again; obstore does most of it, `again` what it leaves.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from obstore.exceptions import AlreadyExistsError, GenericError
from obstore.store import S3Store

from orchestrator.errors import OrchError

if TYPE_CHECKING:
    from botocore.session import Session
    from obstore.store import ClientConfig, RetryConfig

P = ParamSpec("P")
T = TypeVar("T")

BACKOFF: Any = {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=15), "base": 3}
RETRY: RetryConfig = {"max_retries": 10, "backoff": BACKOFF, "retry_timeout": timedelta(minutes=3)}
"""What is tried again, this often, over some 10-20 s in all: throttling (429, 503), time-outs (408, 504, ours), any
other 5xx, connections that are refused or drop, answers that break off, two writers at once (409). Nothing else is:
400, 403 and 404 would be the same again."""

READ_TIMEOUT = timedelta(seconds=30)
"""Silence of the server after which a request counts as lost."""
CREDENTIALS_TTL = timedelta(minutes=9)
"""How long credentials are used before they are asked for again: botocore hands out, renewing where it must, what is
good for ten minutes at least."""

_DROPPED = re.compile(r"HTTP error: ")  # no answer, or half of one
_TRIED = re.compile(r"after \d+ retries")


def again(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call obstore, and do again what it does once only.

    It takes creations and deletions for unrepeatable, so it gives them up where a connection drops, and a listing that
    breaks off is not asked for again. A conflict (409) is S3's word for two writers at once, of whom perhaps none won.
    """
    first_s, longest_s = BACKOFF["init_backoff"].total_seconds(), BACKOFF["max_backoff"].total_seconds()
    pause_s = first_s
    for _ in range(RETRY["max_retries"]):
        try:
            return call(*args, **kwargs)
        except (GenericError, AlreadyExistsError) as error:
            text = str(error).partition("\n")[0]
            dropped = _DROPPED.search(text) and not _TRIED.search(text)
            if not dropped and "status code: 409" not in text:
                raise
        time.sleep(pause_s)
        pause_s = min(longest_s, random.uniform(first_s, pause_s * BACKOFF["base"]))
    return call(*args, **kwargs)


def open_s3(bucket: str, prefix: str) -> S3Store:
    """A path-style S3 store; OrchError where there are no credentials or the profile is not there."""
    from botocore.exceptions import BotoCoreError  # 0.3 s: only where S3 is used
    from botocore.session import Session
    from obstore.auth.boto3 import Boto3CredentialProvider

    session = Session()
    try:
        endpoint, region = _endpoint(session), session.get_config_variable("region")
        settings: dict[str, Any] = {"region": region or "us-east-1"}
        if endpoint:
            settings["endpoint"] = endpoint
        if os.environ.get("AWS_SKIP_SIGNATURE", "").lower() == "true":
            settings["skip_signature"] = True
        else:
            settings["credential_provider"] = Boto3CredentialProvider(session, ttl=CREDENTIALS_TTL)
    except (ValueError, BotoCoreError) as error:
        why = f": {error}" if isinstance(error, BotoCoreError) else ""
        raise OrchError(
            f"s3://{bucket}: no AWS credentials found{why}",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for public data AWS_SKIP_SIGNATURE=true",
        ) from None
    options: ClientConfig = {
        "allow_http": bool(endpoint and endpoint.startswith("http://")),
        "timeout": timedelta(minutes=15),  # of a whole request with its body: a large part on a slow line
        "read_timeout": READ_TIMEOUT,
        "connect_timeout": timedelta(seconds=5),
    }
    return S3Store(bucket, prefix=prefix or None, client_options=options, retry_config=RETRY, **settings)


def _endpoint(session: Session) -> str | None:
    """Another server's address: environment before profile, S3's own before the general one; None for AWS itself."""
    profile = session.get_scoped_config()
    services = session.full_config.get("services", {}).get(profile.get("services", ""), {})
    return (
        os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
        or services.get("s3", {}).get("endpoint_url")
        or profile.get("endpoint_url")
    )
