"""README.md of a model's folder: the Hugging Face Hub's front matter, and what a person wants to know of the model."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from munit_fast.utils.text import one_line, printable, read_bounded

LIBRARY = "munit-fast"
TASK = "image-to-image"
MAX_METRICS_BYTES, MAX_METRICS = 2**20, 200
# Identifiers that the Hub knows, by how they are usually written; others are "other" with a name of their own.
_LICENCES = (
    "apache-2.0",
    "mit",
    "bsd-2-clause",
    "bsd-3-clause",
    "cc0-1.0",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc-by-nd-4.0",
    "cc-by-nc-nd-4.0",
    "cc-by-nc-sa-4.0",
    "cc-by-3.0",
    "cc-by-sa-3.0",
    "gpl-2.0",
    "gpl-3.0",
    "lgpl-3.0",
    "agpl-3.0",
    "mpl-2.0",
    "openrail",
    "unlicense",
)
_PAPERS = {"MUNIT": "https://arxiv.org/abs/1804.04732", "UNIT": "https://arxiv.org/abs/1703.00848"}
_MARK = re.compile(r"\n<!-- written by munit-fast ([0-9a-f]{64}): an edited card is kept -->\n\Z")


@dataclass(frozen=True)
class Metric:
    """One row of what `munit-fast evaluate --json` writes.

    Attributes:
        group: "a_to_b", "b_to_a" or "translated".
        kind: What is measured, such as "ssim".
        name: Its name for people.
        direction: The direction's name for people.
        value: What the model reaches.
        better: "lower" or "higher".
        floor: What real pictures reach; None where that was not measured.
        ceiling: What the untranslated input reaches; None where that was not measured.
    """

    group: str
    kind: str
    name: str
    direction: str
    value: float
    better: str
    floor: float | None
    ceiling: float | None


def read_metrics(source: str | Path | Mapping[str, Any]) -> list[Metric]:
    """The rows of an evaluation.

    Args:
        source: A file that `munit-fast evaluate --json` wrote, or its content.

    Raises:
        ValueError: It cannot be read, or is something else.
    """
    where = "metrics" if isinstance(source, Mapping) else str(source)
    try:
        values = source if isinstance(source, Mapping) else json.loads(read_bounded(source, MAX_METRICS_BYTES))
        rows = [_metric(row) for row in values["entries"]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{where}: not what `munit-fast evaluate --json` writes ({printable(str(reason))})") from None
    if len(rows) > MAX_METRICS:
        raise ValueError(f"{where}: {len(rows)} metrics; at most {MAX_METRICS} are written to a card")
    return rows


def write_card(
    title: str,
    *,
    trainer: str,
    about: Mapping[str, str],
    networks: Mapping[str, object],
    metrics: Sequence[Metric] = (),
) -> str:
    """The text of README.md.

    Args:
        title: The repository's name, or the folder's.
        trainer: "MUNIT" or "UNIT".
        about: The model's notes; "licence" becomes the front matter's `license`.
        networks: What to say of the networks, by name.
        metrics: What the model reaches.

    Returns:
        The front matter, which `huggingface_hub.ModelCard` reads, and the text in Markdown. The last line is a checksum
        of those before, by which `is_own_card` knows a card that nobody edited.
    """
    title = one_line(title)
    data: dict[str, Any] = _licence(about.get("licence", ""))
    data |= {"library_name": LIBRARY, "pipeline_tag": TASK}
    data["tags"] = [TASK, trainer.lower(), "model_hub_mixin"]
    if metrics:
        data["model-index"] = [{"name": title, "results": _results(metrics)}]
    front = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=10**6)
    lines = [f"---\n{front}---\n", f"# {_text(title)}\n"]
    paper, call = _PAPERS[trainer], '"a2b"' if trainer == "UNIT" else '"a2b", num_styles=6'
    lines.append(
        f"The two generators of a [{trainer}]({paper}) model, which translate images from one domain to the other and "
        "back, as munit-fast saved them.\n"
    )
    name = title if "/" in title else "owner/name, or this folder's path"  # which nobody can know here
    lines.append(
        "```python\n"
        "import munit_fast as mf\n\n"
        f"model = mf.{trainer}.from_pretrained({json.dumps(name, ensure_ascii=False)})\n"
        f"pictures = model.translate(picture, {call})  # a PIL image, a NumPy array, or a tensor in [-1, 1]\n"
        "```\n"
    )
    lines.append(_table(("about", ""), [*about.items(), *networks.items()]))
    if metrics:
        lines.append("## Metrics\n")
        rows = [
            (
                f"{row.direction}: {row.name} {'↓' if row.better == 'lower' else '↑'}",
                *("–" if x is None else f"{x:.4g}" for x in (row.value, row.floor, row.ceiling)),
            )
            for row in metrics
        ]
        lines.append(_table(("metric", "value", "real pictures", "untranslated input"), rows))
        lines.append("↓ lower is better, ↑ higher is better; measured by `munit-fast evaluate`.\n")
    text = "\n".join(lines)
    return f"{text}\n<!-- written by munit-fast {_checksum(text)}: an edited card is kept -->\n"


def is_own_card(text: str) -> bool:
    """Whether a card is as `write_card` wrote it: nobody edited it since."""
    mark = _MARK.search(text)
    return mark is not None and mark[1] == _checksum(text[: mark.start()])


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _metric(row: Mapping[str, Any]) -> Metric:
    group, _, kind = str(row["key"]).rpartition(".")
    numbers = [None if row.get(name) is None else float(row[name]) for name in ("value", "floor", "ceiling")]
    if numbers[0] is None or not all(number is None or math.isfinite(number) for number in numbers):
        raise ValueError(f"{row['key']} is not finite")
    texts = [one_line(str(row.get(name, ""))) for name in ("name", "direction", "better")]
    return Metric(one_line(group), one_line(kind), texts[0], texts[1], numbers[0], texts[2], numbers[1], numbers[2])


def _results(metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    """The front matter's model-index: one result for each direction."""
    groups: dict[str, list[Metric]] = {}
    for metric in metrics:
        groups.setdefault(metric.group, []).append(metric)
    return [
        {
            "task": {"type": TASK, "name": "Image-to-Image"},
            "dataset": {"name": rows[0].direction, "type": "imagefolder", "config": group, "split": "test"},
            "metrics": [{"type": row.kind, "value": row.value, "name": f"{row.name}, {row.direction}"} for row in rows],
        }
        for group, rows in groups.items()
    ]


def _licence(text: str) -> dict[str, str]:
    """`license` of the front matter, and `license_name` where the Hub has no identifier for it."""
    if not text:
        return {"license": "unknown"}
    # "CC BY-SA 4.0; made from pictures under that licence" begins with the identifier.
    slug = re.sub(r"[^a-z0-9.]+", "-", re.split(r"[;:,(]", text)[0].lower()).strip("-.")
    if slug in _LICENCES:
        return {"license": slug}
    return {"license": "other", "license_name": slug[:80] or "other"}


def _text(text: str) -> str:
    """Text as one line of Markdown, uncut, that is neither HTML nor the next cell of a table."""
    return (
        one_line(text, len(text)).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *([_text(str(cell)) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
