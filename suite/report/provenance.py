"""List for each figure of the page the machine, versions, commit and records behind
it."""

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from msgspec import UnsetType

from suite.registry import label_of
from suite.report.entries import Entry
from suite.report.kinds import kind_of, words_of
from suite.results.record import Checkout, Record, TimedRecord
from suite.schema.inputs import Inputs, LatencyInputs, OnData, TrainInputs
from suite.schema.outcomes import none_if_unset


@dataclass
class Provenance:
    """Where each figure of the page comes from: records, and numbered setups and
    recipes that many of them share.

    Attributes:
        rows: records by table, model, data set, stage and number of the setup.
        setups: the number of each, by machine, versions, commit and command as JSON.
        recipes: the number of each, by data set and recipe in words; filled by `shown`.
        machines: in the order in which they were met.
        records: keys, of a record that several tables show once.
    """

    rows: dict[tuple[str, str, str, str, int], list[Record[Inputs, object]]] = field(default_factory=dict)
    setups: dict[str, int] = field(default_factory=dict)
    recipes: dict[str, int] = field(default_factory=dict)
    machines: dict[str, None] = field(default_factory=dict)
    records: set[str] = field(default_factory=set)

    def add(self, table: str, entry: Entry) -> None:
        """Take up all records of an entry; `table` is where its readers find it, such
        as "Table 2, ResNet-20"."""
        runs = entry.runs
        exports = [runs.export] if runs.export else []
        checks = [record for records in runs.checks.values() for record in records]
        after: list[Record[Inputs, object]] = [*exports, *runs.parity, *checks, *runs.analyze, *runs.timed.values()]
        shown = [*runs.train, *after]
        self.records.update(record.key for record in shown)
        for record in shown:
            environment = record.environment
            timed_on = record.inputs.machine if isinstance(record.inputs, LatencyInputs) else ""
            machine = environment.machine.id or timed_on or "not recorded"
            self.machines.setdefault(machine)
            setup = {
                "machine": machine,
                "versions": _pairs(environment.versions),
                "commit": _commit(environment.source),
                "command": shlex.join(environment.command),
            }
            number = self.setups.setdefault(json.dumps(setup), len(self.setups) + 1)
            key = (table, entry.row.title, entry.row.data, record.stage, number)
            self.rows.setdefault(key, []).append(record)

    def shown(self) -> dict[str, Any]:
        """All of it as the template takes it: setups, recipes, and a line for each
        figure that names its own."""
        lines = []
        for (table, model, data, stage, setup), records in self.rows.items():
            recipes = set(filter(None, map(self._recipe, records)))
            seeds = [str(record.inputs.seed) for record in records if isinstance(record.inputs, TrainInputs)]
            detail = [f"seed {', '.join(seeds)}"] if seeds else []
            detail += [words_of(kind_of(record)) for record in records if isinstance(record, TimedRecord)]
            lines.append(
                {
                    "words": (table, model, label_of(data), stage, ", ".join(detail)),
                    "setup": setup,
                    "recipes": sorted(recipes),
                    "finished": max(record.finished for record in records),
                    "records": [record.key for record in records],
                }
            )
        return {
            "setups": [(number, json.loads(text)) for text, number in self.setups.items()],
            "recipes": [(number, text) for text, number in self.recipes.items()],
            "lines": lines,
        }

    def _recipe(self, record: Record[Inputs, object]) -> int | None:
        """The number of the recipe that a record was made by, if it was by one."""
        if not isinstance(record.inputs, OnData) or isinstance(record.inputs.recipe, UnsetType):
            return None
        recipe, data = record.inputs.recipe, none_if_unset(record.inputs.data)
        name, digest = (data.name, none_if_unset(data.sha256)) if data else (None, None)
        text = f"data {name} ({str(digest)[:12]}); {_pairs(recipe)}"
        return self.recipes.setdefault(text, len(self.recipes) + 1)


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {_plain(value)}" for name, value in values.items())


def _plain(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, Iterable) and not isinstance(value, str) else str(value)


def _commit(source: Checkout) -> str:
    return f"{source.commit}{' with changes' if source.dirty else ''}" if source.commit else ""
