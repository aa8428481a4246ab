"""What the page shows of where its figures come from: machine, versions, commit, command, recipe and records."""

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from suite.registry import DATA_SETS
from suite.report.runs import Entry, kind_of, words_of
from suite.results.record import Record


@dataclass
class Provenance:
    """Where each figure of the page comes from: records, and numbered setups and recipes that many of them share.

    Attributes:
        rows: records by table, model, data set, stage and number of the setup.
        setups: the number of each, by machine, versions, commit and command as JSON.
        recipes: the number of each, by data set and recipe in words; filled by `shown`.
        machines: in the order in which they were met.
        records: keys, of a record that several tables show once.
    """

    rows: dict[tuple[str, str, str, str, int], list[Record]] = field(default_factory=dict)
    setups: dict[str, int] = field(default_factory=dict)
    recipes: dict[str, int] = field(default_factory=dict)
    machines: dict[str, None] = field(default_factory=dict)
    records: set[str] = field(default_factory=set)

    def add(self, table: str, entry: Entry) -> None:
        """Take up all records of an entry; `table` is where its readers find it, such as "Table 2, ResNet-20"."""
        runs = entry.runs
        exports = [runs.export] if runs.export else []
        checks = [record for records in runs.checks.values() for record in records]
        shown = [*runs.train, *exports, *runs.parity, *checks, *runs.analyze, *runs.timed.values()]
        self.records.update(record.key for record in shown)
        for record in shown:
            environment = record.environment
            machine = environment.get("machine", {}).get("id") or record.inputs.get("machine") or "not recorded"
            self.machines.setdefault(str(machine))
            setup = {
                "machine": machine,
                "versions": _pairs(environment.get("versions", {})),
                "commit": _commit(environment.get("source", {})),
                "command": shlex.join(map(str, environment.get("command", []))),
            }
            number = self.setups.setdefault(json.dumps(setup), len(self.setups) + 1)
            key = (table, entry.row.model, entry.row.data, record.stage, number)
            self.rows.setdefault(key, []).append(record)

    def shown(self) -> dict[str, Any]:
        """All of it as the template takes it: setups, recipes, and a line for each figure that names its own."""
        lines = []
        for (table, model, data, stage, setup), records in self.rows.items():
            recipes = {self._recipe(record) for record in records if "recipe" in record.inputs}
            seeds = [str(record.inputs["seed"]) for record in records if "seed" in record.inputs]
            detail = [f"seed {', '.join(seeds)}"] if seeds else []
            detail += [words_of(kind_of(r)) for r in records if stage == "latency"]
            lines.append(
                {
                    "words": (table, model, DATA_SETS[data].label, stage, ", ".join(detail)),
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

    def _recipe(self, record: Record) -> int:
        data = record.inputs.get("data", {})
        text = f"data {data.get('name')} ({str(data.get('sha256'))[:12]}); {_pairs(record.inputs['recipe'])}"
        return self.recipes.setdefault(text, len(self.recipes) + 1)


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_plain(value)}" for name, value in values.items())


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, Iterable) and not isinstance(value, str) else str(value)


def _commit(source: Mapping[str, Any]) -> str:
    if not source.get("commit"):
        return ""
    return f"{source['commit']}{' with changes' if source.get('dirty') else ''}"
