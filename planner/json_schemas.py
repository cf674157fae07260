"""JSON Schemas of the plan file and of the answers of ``predict``, ``measure`` and ``recommend``.

    python -m planner.json_schemas    # writes planner/schemas/*.schema.json again

They are generated from the records with msgspec (JSON Schema draft 2020-12), shipped with the
package, and compared with the records by a test. Some objects differ in shape from their records:
a placement contains its policy, and a report contains the workload and the placement directly. For
these, dataclasses of the same names are made here. Properties that a schema does not name are
allowed, because a newer minor version may add some.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

import msgspec

from planner.plan import Accuracy, BudgetBytes, FitProbability, Plan
from planner.training_free.plan_file import FrozenCandidate, FrozenPrediction
from profiler.json_records import JsonObject, NonNegativeFloat, NonNegativeInt, PositiveInt
from profiler.placement import Decision
from profiler.records import DeviceLabel, Report
from profiler.workload import Candidate, Workload

FOLDER = Path(__file__).with_name("schemas")

_ATTRIBUTE = re.compile(r"^    (\w+): (.+(?:\n     +.+)*)", re.MULTILINE)
"""An attribute and its description in a docstring, with its continuation lines."""

ErrorKind = Literal[
    "usage",
    "unknown_name",
    "infeasible",
    "unmet_limit",
    "busy",
    "input",
    "device",
    "measurement",
    "out_of_memory",
    "interrupted",
    "internal",
    "error",
]

DRAFT = "https://json-schema.org/draft/2020-12/schema"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementObject:
    """A placement with its policy, as in a file.

    Attributes:
        policy: policy that made the placement, such as ``every-3``.
        parameters: parameters of the policy.
        decisions: decision by unit or ``unit/part``; others are kept.
    """

    policy: str = "none"
    parameters: dict[str, float] = field(default_factory=dict)
    decisions: dict[str, Decision] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateObject:
    """A workload with its placement, as in a file.

    Attributes:
        kind: ``tuned``; files without it are of this kind. Plans without fine-tuning have other
            kinds and candidates (docs/plan_file.md).
    """

    workload: Workload
    placement: PlacementObject
    kind: Literal["tuned"] = "tuned"


def _object_of(record: type, leading: Sequence[Any], objects: Mapping[type, type | None]) -> type:
    """Return a dataclass with leading fields and then a record's fields.

    Args:
        record: dataclass to follow.
        leading: fields as `dataclasses.make_dataclass` takes them.
        objects: types to exchange in the record's fields; a field of a type that is exchanged for
            None is left out.
    """
    hints = get_type_hints(record, include_extras=True)
    rest: list[Any] = []
    for spec in fields(record):
        kind = hints[spec.name]
        for plain, exchanged in objects.items():
            if kind == plain | None and exchanged is not None:
                kind = exchanged | None
            elif kind == plain:
                kind = exchanged
        if kind is not None:
            rest.append(
                (spec.name, kind, field(default=spec.default, default_factory=spec.default_factory))
            )
    return make_dataclass(
        f"{record.__name__}Object",
        [*leading, *rest],
        kw_only=True,
        namespace={"__doc__": record.__doc__},
    )


ReportObject = _object_of(
    Report,
    [
        ("schema", Literal["budgetplan.prediction/1", "budgetplan.measurement/1"]),
        ("workload", Workload),
        ("placement", PlacementObject),
    ],
    {Candidate: None},
)

PlanObject = _object_of(
    Plan,
    [
        ("schema", Literal["budgetplan.plan/1"]),
        ("schema_minor", NonNegativeInt, field(default=0)),
    ],
    {Candidate: CandidateObject, Report: ReportObject},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenPlanObject:
    """A plan without fine-tuning, as in a file.

    Attributes:
        schema: schema and major version.
        schema_minor: minor version; it counts additions.
        candidate: model and how it is run.
        prediction: predicted memory and cost of an inference.
        measurement: null.
        rehearsal: null.
        scores: null.
        accuracy: published accuracy on the data, with its source.
        budget_bytes: device bytes of the budget that the candidate was chosen under.
        fits: probability that the inference fits the budget; null in plans before minor version
            10.
        recipe: null.
        provenance: versions, time, data and risk.
    """

    schema: Literal["budgetplan.plan/1"]
    schema_minor: NonNegativeInt = 0
    candidate: FrozenCandidate
    prediction: FrozenPrediction
    measurement: None = None
    rehearsal: None = None
    scores: None = None
    accuracy: Accuracy
    budget_bytes: BudgetBytes
    fits: FitProbability | None = None
    recipe: None = None
    provenance: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AlternativeObject:
    """A named row beside the recommended one.

    Attributes:
        name: property in which the row is best, ``backbone`` for the best row of another backbone,
            ``full``, ``paper`` for the paper's default, or ``smaller images``.
        index: index into ``front``; null if the row does not fit, and for smaller images.
        note: the difference to other rows, or the memory that it needs.
    """

    name: Literal[
        "fastest", "most accurate", "smallest", "safest", "backbone", "full", "paper",
        "smaller images",
    ]  # fmt: skip
    index: NonNegativeInt | None
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendationObject:
    """The object that ``recommend --json`` prints.

    Attributes:
        schema: schema and major version.
        budget_bytes: device bytes of the budget.
        device: device that was planned for.
        study: name of the study.
        storage: SQLAlchemy URL of the study.
        trials: trials of the search.
        seconds: duration of all stages.
        front: plans that passed every check, the highest expected accuracy first.
        plan_files: file of each plan.
        recommended: index into ``front``, counted from 0.
        recommended_plan_file: file of the recommended plan.
        expected_order: rank of each plan by expected accuracy, 1 for the best and its equals.
        reason: reason for the recommended plan.
        decided_by: evidence that distinguishes the recommended plan.
        ties: indices of the other plans that are expected to be as accurate as the recommended one.
        alternatives: named plans of the front, and those that do not fit.
        objective: criterion for plans of equal expected accuracy.
        baselines: composed reports of the paper's defaults, by name, each with ``fits``.
        dropped: a sentence for each candidate that a later stage refused.
        notes: sentences for the reader.
        probe: short trainings of the front: setting, number of runs, and per plan an estimate with
            its probability of being the best; null if none were requested.
        training_free: published models that classify without fine-tuning, with the replayed memory
            of an inference, predicted cost, published accuracies and plan files; null if they were
            not listed.
        recommended_training_free: index into ``training_free`` of the one that wins over the
            recommended plan, under --allow-training-free; null if none may or does.
        backbones: expected level of each backbone of the question, the recommended one first
            (``planner.scoring.backbone_level``).
        other_backbone: backbone of about the same size that is expected to be more accurate, faster
            or smaller in the same budget; null if none is known or several were requested.
        totals: duration and energy of the whole training of each plan of ``front``, with price and
            emissions from the user's rates (``planner.recommendation.run_totals``).
    """

    schema: Literal["budgetplan.recommendation/1"]
    budget_bytes: PositiveInt
    device: DeviceLabel
    study: str
    storage: str
    trials: NonNegativeInt
    seconds: NonNegativeFloat
    front: tuple[PlanObject, ...]  # type: ignore[valid-type]  # made above
    plan_files: tuple[str, ...]
    recommended: NonNegativeInt
    recommended_plan_file: str
    expected_order: tuple[PositiveInt, ...]
    reason: str
    decided_by: Literal["published", "probe", "learned", "cost"]
    ties: tuple[NonNegativeInt, ...]
    alternatives: tuple[AlternativeObject, ...]
    objective: Literal["balanced", "accuracy", "time", "energy"]
    baselines: dict[str, JsonObject]
    dropped: tuple[str, ...]
    notes: tuple[str, ...]
    probe: JsonObject | None = None
    training_free: tuple[JsonObject, ...] | None = None
    recommended_training_free: NonNegativeInt | None = None
    totals: tuple[JsonObject | None, ...] = ()
    backbones: tuple[JsonObject, ...] = ()
    other_backbone: JsonObject | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorObject:
    """The object that a command prints with ``--json`` when it fails.

    Attributes:
        schema: schema and major version.
        kind: kind of the error; ``usage`` and ``unknown_name`` are about the arguments.
        message: the one line that is printed on stderr.
        smallest_budget_bytes: smallest budget that would do, if nothing fits and it is known.
        advice: remedy, or null.
        exit_code: exit code of the command.
    """

    schema: Literal["budgetplan.error/1"]
    kind: ErrorKind
    message: str
    smallest_budget_bytes: PositiveInt | None
    advice: str | None
    exit_code: PositiveInt


def json_schemas() -> Mapping[str, dict[str, Any]]:
    """Return the schema of each object by its file name."""
    found: Mapping[str, tuple[type, ...]] = {
        "plan.schema.json": (PlanObject, FrozenPlanObject),
        "report.schema.json": (ReportObject,),
        "recommendation.schema.json": (RecommendationObject,),
        "error.schema.json": (ErrorObject,),
    }
    return {
        name: {"$schema": DRAFT, "title": name.partition(".")[0], **_described(kinds)}
        for name, kinds in found.items()
    }


def _described(kinds: Sequence[type]) -> dict[str, Any]:
    """Return a schema whose properties have the descriptions of the docstrings' attributes.

    Args:
        kinds: alternative records of an object; no object matches two.
    """
    references, parts = msgspec.json.schema_components(kinds, ref_template="#/$defs/{name}")
    schema: dict[str, Any] = references[0] if len(kinds) == 1 else {"oneOf": list(references)}
    schema["$defs"] = parts
    for part in parts.values():
        summary, _, attributes = part.pop("description", "").partition("\n\nAttributes:\n")
        if summary:
            part["description"] = " ".join(summary.split())
        for name, text in _ATTRIBUTE.findall(attributes):
            if name in part.get("properties", {}):
                part["properties"][name]["description"] = " ".join(text.split())
    return schema


def write_schemas() -> None:
    """Write every schema to its file."""
    for name, schema in json_schemas().items():
        (FOLDER / name).write_text(json.dumps(schema, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_schemas()
