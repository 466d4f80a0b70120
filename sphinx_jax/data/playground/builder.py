"""The playground as a TFDS data set (array_record, no TensorFlow), and in the published conversation form.

source = open_playground("data", "quick", split="test", domain="real")
source[0]["turns"][0]        # {"task": …, "kind": …, "question": …, "answer": …}
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from sphinx_jax.data.conversation import Item
from sphinx_jax.data.playground.photos import SPLITS
from sphinx_jax.data.playground.workers import pictures
from sphinx_jax.data.tasks import DOMAINS
from sphinx_jax.progress import progress


@dataclass(kw_only=True)
class PlaygroundConfig(tfds.core.BuilderConfig):
    """Numbers of pictures per domain in each split, and the seed of the world."""

    train: int = 0
    validation: int = 0
    test: int = 0
    seed: int = 0


CONFIGS = (
    PlaygroundConfig(name="nano", description="for tests", train=64, validation=32, test=32),
    PlaygroundConfig(name="quick", description="for a run of minutes", train=5000, validation=250, test=250),
    PlaygroundConfig(name="full", description="for a run of hours", train=20000, validation=400, test=400),
)


class Playground(tfds.core.GeneratorBasedBuilder):
    """A small world of photographed and drawn pictures with exact labels for every task."""

    name = "playground"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Initial release."}
    BUILDER_CONFIGS = list(CONFIGS)
    # Nothing is downloaded. TFDS would look for a list of checksums by way of importlib_resources, which it
    # does not install.
    url_infos: ClassVar[dict] = {}

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        turn = {"task": text, "kind": text, "question": text, "answer": text}
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(doc="JPEG (real) or PNG (synthetic), 128 to 192 pixels a side"),
                    "id": text,
                    "domain": text,
                    "scene": tfds.features.Text(doc="things, single, text, page, person or chart"),
                    "sources": tfds.features.Sequence(text, doc="photographs and digits in the picture"),
                    "turns": tfds.features.Sequence(turn, doc="questions and their exact answers"),
                    "labels": tfds.features.Text(doc="JSON: all labels, relative to the padded square"),
                }
            ),
            # the record at a position is the picture of that index
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {f"{domain}_{split}": self._generate_examples(domain, split) for domain in DOMAINS for split in SPLITS}

    def _generate_examples(self, domain: str, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        config = self.builder_config
        count = getattr(config, split)
        bar = progress(total=count, desc=f"playground {config.name}: {domain} {split}", unit="picture")
        with bar:
            for index, example in enumerate(pictures(config.seed, split, domain, count)):
                yield (
                    index,
                    {
                        "image": example.image,
                        "id": example.id,
                        "domain": example.domain,
                        "scene": example.scene,
                        "sources": list(example.sources),
                        "turns": [vars(turn) for turn in example.turns],
                        "labels": json.dumps(example.labels),
                    },
                )
                bar.update()


class PlaygroundSource(Sequence):
    """Random access to the records of one split and domain, as plain dicts.

    Keys: `image` (encoded bytes), `id`, `domain`, `scene`, `sources` (list of names), `turns` (list of dicts
    with `task`, `kind`, `question`, `answer`) and `labels` (a dict, see `pictures.Example`).
    """

    def __init__(self, records: Sequence[dict[str, Any]]):
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        record = self._records[index % len(self)]
        turns = {key: [text.decode() for text in values] for key, values in record["turns"].items()}
        return {
            "image": bytes(record["image"]),
            "id": record["id"].decode(),
            "domain": record["domain"].decode(),
            "scene": record["scene"].decode(),
            "sources": [name.decode() for name in record["sources"]],
            "turns": [dict(zip(turns, values, strict=True)) for values in zip(*turns.values(), strict=True)],
            "labels": json.loads(record["labels"]),
        }


def open_playground(
    data_dir: str | os.PathLike[str], config: str = "quick", split: str = "train", domain: str = "real"
) -> PlaygroundSource:
    """The records of a split and domain, from `data_dir`; the data set is generated there if it is not yet.

    Generation appears in `data_dir` only when complete. An unknown config, split or domain raises ValueError.
    """
    known = (
        (config, [c.name for c in CONFIGS], "config"),
        (split, SPLITS, "split"),
        (domain, DOMAINS, "domain"),
    )
    for value, names, what in known:
        if value not in names:
            raise ValueError(f"unknown playground {what} {value!r}: give one of {', '.join(names)}")
    folder = Path(data_dir)
    folder.mkdir(parents=True, exist_ok=True)
    builder = Playground(data_dir=str(folder), config=config, file_format="array_record")
    with _quiet():
        builder.download_and_prepare()
    # the bytes as they are: decoding is the reader's, who has better means than this reader
    source = builder.as_data_source(f"{domain}_{split}", decoders={"image": tfds.decode.SkipDecoding()})
    return PlaygroundSource(source)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what TFDS prints and the four bars it shows for each split: ours say what is being made."""
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()


def as_item(record: dict[str, Any]) -> Item:
    """A record as an `Item`, its picture as encoded bytes."""
    turns = record["turns"]
    return Item(
        image=record["image"],
        turns=tuple((turn["question"], turn["answer"]) for turn in turns),
        tasks=tuple(turn["task"] for turn in turns),
        kinds=tuple(turn["kind"] for turn in turns),
        domain=record["domain"],
        id=record["id"],
    )
