"""A question to the service, and the process that answers it.

torch is imported by the child process only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from planner.plan import versions
from planner.recommendation.objective import Objective
from profiler.errors import BudgetplanError, UsageError
from profiler.json_records import Name
from profiler.running.messages import Message, import_address
from profiler.running.sandbox import Progress

DataName = Literal["digits", "animals", "cifar10", "cifar100", "dtd", "vww"]
"""Named data sets. A folder of the server is never read for a client."""

PAGE_FILE = "answer.html"
"""File of the page of an answer, in the question's folder."""

ID_DIGITS = 24
"""Hexadecimal digits of a question's id: 96 bits of a hash."""

IS_ID = re.compile(rf"[0-9a-f]{{{ID_DIGITS}}}")
"""Form of an id; no other text of a request becomes part of a path."""


ImageSize = Annotated[int, Meta(ge=8, le=1024)]
"""Height and width of the images of a question, in pixels."""


class ServiceQuestion(Message, frozen=True, kw_only=True):
    """A question of a client; the fields are arguments of ``planner.recommend``.

    Attributes:
        model: timm name or alias of the backbone.
        vram: budget, such as ``2GB``.
        device: ``cpu`` or a name of the device table.
        data: name of a data set.
        methods: methods to search; null for all that work on the backbone.
        image_size: height and width in pixels; null for the model's own.
        trials: trials of the sampler; null to evaluate every point if that is quick.
        objective: criterion among candidates of equal expected accuracy.
        seed: seed of the search.
    """

    model: Name
    vram: Annotated[str, Meta(min_length=1, max_length=20)]
    device: Name = "rtx-2060-super"
    data: DataName = "digits"
    methods: Annotated[list[Name], Meta(min_length=1, max_length=30)] | None = None
    image_size: ImageSize | None = None
    trials: Annotated[int, Meta(ge=1, le=500)] | None = None
    objective: Objective = "balanced"
    seed: Annotated[int, Meta(ge=0, lt=2**32)] = 0

    @property
    def id(self) -> str:
        """Hash of the question and of the versions that answer it."""
        text = json.dumps([msgspec.to_builtins(self), versions()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]


def read_question(body: bytes) -> ServiceQuestion:
    """Read the body of a request.

    Raises:
        UsageError: it is no question.
    """
    try:
        return msgspec.json.decode(body, type=ServiceQuestion)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise UsageError(f"the body is no question: {error}") from error


class QuestionInFolder(Message, frozen=True, kw_only=True):
    """A question and the folder for its study and plans.

    Attributes:
        question: the question.
        folder: folder of its own.
        page_writer: ``module:function`` that writes the answer as a page to a file; None for no
            page. Pages are drawn by the command line, which this package does not import.
    """

    question: ServiceQuestion
    folder: str
    page_writer: str | None = None


class AnswerText(Message, frozen=True, kw_only=True):
    """An answer as JSON text.

    Attributes:
        answer: what ``recommend --json`` prints, or the object ``budgetplan.error/1``.
        is_error: whether it is an error.
    """

    answer: str
    is_error: bool = False


def answer_question(request: QuestionInFolder, progress: Progress) -> AnswerText:
    """Answer a question. Runs in the child process."""
    from planner.api import recommend

    os.chdir(request.folder)  # so that no place on the server stands in the answer
    try:
        answer = recommend(
            **msgspec.structs.asdict(request.question),
            validations=0,
            study="question",
            storage="sqlite:///study.db",
            out="plans",
            on_progress=lambda stage, text, done: progress(f"{stage}: {text}", done),
        )
    except BudgetplanError as error:
        return AnswerText(answer=_text(error.to_json()), is_error=True)
    if request.page_writer is not None:
        import_address(request.page_writer)(answer, Path(PAGE_FILE))
    return AnswerText(answer=_text(answer.to_json()))


def _text(data: dict[str, Any]) -> str:
    return json.dumps(data, allow_nan=False)
