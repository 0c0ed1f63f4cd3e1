"""What `orch show` and `orch compare` say of data sets: figures, histograms, and which samples two of them share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import click

from orchestrator.data.dataset import Dataset
from orchestrator.data.profile import Difference, Profile, difference, profile
from orchestrator.store.artifacts import Handle, Manifest, Store

BAR = 40
"""Characters of a histogram's longest bar."""


def describe(store: Store, manifest: Manifest) -> None:
    """Print what is in a data set."""
    found = profile(Dataset.open(Handle(store, manifest)))
    click.echo("data")
    for name, text in _facts(found):
        click.echo(f"  {name:<40} {text}")
    plain = found.to_json()
    for title, name in (("shorter side, pixels", "sides"), ("words of a caption", "words")):
        _histogram(title, plain[name].items())
    for name, (top, number) in found.values.items():
        shown = ", ".join(f"{value} {count:,}" for value, count in top[:6])
        click.echo(f"  {name:<40} {number:,} values: {shown}")
    for name, (low, mean, high) in found.numbers.items():
        click.echo(f"  {name:<40} {low:.6g} to {high:.6g}, mean {mean:.6g}")
    click.echo(f"samples as a picture: orch show {manifest.fingerprint[:12]} --sheet samples.png")


def _facts(found: Profile) -> list[tuple[str, str]]:
    part = "" if found.looked_at == found.samples else f" (the figures below are of {found.looked_at:,} of them)"
    mean = found.image_bytes / max(1, found.looked_at)
    return [
        ("samples", f"{found.samples:,}{part}"),
        ("of rows in the tables", f"{found.rows:,}"),
        ("shards", f"{found.shards:,}, {found.shard_bytes / 1e6:,.1f} MB"),
        (
            "images",
            f"{found.image_bytes / 1e6:,.1f} MB, {mean:,.0f} bytes each, {_counts(found.formats.most_common())}",
        ),
        ("splits", _counts(found.splits.most_common())),
        ("languages", _counts(found.languages.most_common(12))),
        ("captions", _counts(found.slots.most_common())),
        ("different primary captions", f"{found.distinct:,}"),
    ]


def _counts(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts) or "-"


def _histogram(title: str, rows: Iterable[tuple[str, int]]) -> None:
    rows = list(rows)
    largest = max((count for _, count in rows), default=0)
    if not largest:
        return
    click.echo(f"  {title}")
    for label, count in rows:
        click.echo(f"    {label:>8} {count:>12,} {'█' * round(BAR * count / largest)}".rstrip())


def compare_samples(store: Store, a: Manifest, b: Manifest) -> None:
    """Print which samples two data sets share, and what is different in those."""
    found = difference(Dataset.open(Handle(store, a)), Dataset.open(Handle(store, b)))
    if found is None:
        click.echo("samples: too many to compare id by id")
        return
    click.echo(f"samples: {found.both:,} in both, {found.only_a:,} in A alone, {found.only_b:,} in B alone")
    for line in _lines(found):
        click.echo(f"  {line}")


def _lines(found: Difference) -> list[str]:
    changed, of = found.recaptioned
    lines = [f"{changed:,} of {of:,} in both have another primary caption"] if changed else []
    lines += [f"split {name}: {in_a:,} → {in_b:,}" for name, (in_a, in_b) in found.splits.items() if in_a != in_b]
    for side, columns, examples in (
        ("A", found.columns_a, found.examples_a),
        ("B", found.columns_b, found.examples_b),
    ):
        lines += [f"columns in {side} alone: {', '.join(columns)}"] if columns else []
        lines += [f"in {side} alone, for instance: {_quoted(examples)}"] if examples else []
    return lines


def _quoted(texts: Sequence[str]) -> str:
    return ", ".join(f"“{text[:60]}”" for text in texts)
