"""The tools of an MCP server: questions of a language model, answered as the service answers them.

Each question and each prediction runs in a process of its own, in the queue and with the limits of
the service. An answer has a short row for each plan; ``plan_file`` returns a whole plan.
"""

from __future__ import annotations

import json
import threading
from typing import Annotated, Any, Literal

import msgspec
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field

from planner.recommendation.objective import Objective
from planner.service.jobs import Job, Jobs
from planner.service.questions import AnswerText, DataName, ImageSize, ServiceQuestion
from profiler.devices.table import DEVICES
from profiler.errors import BudgetplanError
from profiler.json_records import Name
from profiler.running.messages import Message
from profiler.running.sandbox import Progress, run_in_process
from profiler.workload import Classes, Count, OptimizerName, PrecisionName

TOOL_WAIT_SECONDS = 50.0
"""Time for which a tool waits; clients give up after a minute or so."""

PREDICTION_SECONDS = 300.0
"""Time after which a prediction is stopped."""

MOST_NAMES = 100
"""Names of models that are listed."""

Pattern = Annotated[str, msgspec.Meta(max_length=200)]
"""Part of a name to look for."""

_KEPT = (
    "schema", "budget_bytes", "device", "recommended", "reason", "decided_by", "ties",
    "alternatives", "totals", "dropped", "notes",
)  # fmt: skip
"""Parts of an answer that a tool returns as they are."""


class PredictionQuestion(Message, frozen=True, kw_only=True):
    """A question to ``predict``; the fields are arguments of ``planner.predict``.

    Attributes:
        model: timm name or alias of the backbone.
        method: fine-tuning method.
        batch_size: images in a micro-batch.
        device: ``cpu`` or a name of the device table.
        precision: precision of the step.
        optimizer: the optimizer.
        num_classes: classes of the head.
        rank: rank of the method; null for its own.
        image_size: height and width in pixels; null for the model's own.
    """

    model: Name
    method: Name
    batch_size: Count
    device: Name
    precision: PrecisionName
    optimizer: OptimizerName
    num_classes: Classes
    rank: Count | None = None
    image_size: ImageSize | None = None


def answer_prediction(request: PredictionQuestion, progress: Progress) -> AnswerText:
    """Predict a training step. Runs in the child process."""
    from planner.api import predict

    fields = msgspec.structs.asdict(request)
    try:
        report = predict(
            **{name: value for name, value in fields.items() if value is not None}
        ).to_json()
    except BudgetplanError as error:
        return AnswerText(answer=json.dumps(error.to_json()), is_error=True)
    for long in ("units", "details"):
        report.pop(long, None)
    return AnswerText(answer=json.dumps(report, allow_nan=False))


def create_mcp_server(jobs: Jobs) -> MCPServer:
    """Return the MCP server.

    Args:
        jobs: runs the questions.
    """
    server = MCPServer(
        "budgetplan",
        instructions="Says which fine-tuning of a vision model fits a GPU: method, rank, batch, "
        "precision and checkpointing, with predicted memory, time and energy. Numbers are "
        "predicted unless they say measured; null means unknown.",
    )
    _add_questions(server, jobs)
    _add_prediction(server, jobs)
    _add_names(server)
    return server


def _add_questions(server: MCPServer, jobs: Jobs) -> None:
    """Add the tools ``recommend`` and ``plan_file``."""

    @server.tool(name="recommend")
    async def recommend_configuration(
        *,
        model: Annotated[str, Field(description="timm name or alias, such as vit_s")],
        vram: Annotated[str, Field(description="memory budget, such as 2GB or 8GiB")],
        device: Annotated[str, Field(description="GPU of list_names, or cpu")] = "rtx-2060-super",
        data: DataName = "digits",
        methods: list[str] | None = None,
        image_size: int | None = None,
        objective: Objective = "balanced",
    ) -> dict[str, Any]:
        """Recommend how to fine-tune a vision model within a memory budget.

        A long question returns a job instead of an answer; ask the same again to go on waiting.
        """
        question = _converted(
            ServiceQuestion,
            {
                "model": model, "vram": vram, "device": device, "data": data, "methods": methods,
                "image_size": image_size, "objective": objective,
            },
        )  # fmt: skip
        job = _asked(jobs, question)
        await jobs.wait(job, TOOL_WAIT_SECONDS)
        return _job_answer(job)

    @server.tool(name="plan_file")
    def show_stored_plan(question_id: str, index: int) -> dict[str, Any]:
        """Return a whole plan file of an answer; index counts from 0."""
        job = jobs.get(question_id)
        text = None if job is None else jobs.plan_text(job, index)
        if text is None:
            raise ToolError("there is no such plan")
        plan: dict[str, Any] = json.loads(text)
        return plan


def _add_prediction(server: MCPServer, jobs: Jobs) -> None:
    """Add the tool ``predict``."""

    @server.tool(name="predict")
    async def predict_step(
        *,
        model: str,
        method: str,
        batch_size: int,
        device: str = "rtx-2060-super",
        precision: PrecisionName = "fp32",
        rank: int | None = None,
        image_size: int | None = None,
        num_classes: int = 1000,
        optimizer: OptimizerName = "adamw",
    ) -> dict[str, Any]:
        """Predict memory, time and energy of a training step. Nothing is run."""
        question = _converted(
            PredictionQuestion,
            {
                "model": model, "method": method, "batch_size": batch_size, "device": device,
                "precision": precision, "rank": rank, "image_size": image_size,
                "num_classes": num_classes, "optimizer": optimizer,
            },
        )  # fmt: skip

        def work(cancelled: threading.Event) -> AnswerText:
            return run_in_process(
                answer_prediction,
                question,
                AnswerText,
                timeout_seconds=PREDICTION_SECONDS,
                cancelled=cancelled,
            )

        try:
            found = await jobs.compute(work, most_seconds_in_queue=TOOL_WAIT_SECONDS)
        except BudgetplanError as error:
            raise ToolError(str(error)) from error
        answer: dict[str, Any] = json.loads(found.answer)
        if found.is_error:
            raise ToolError(answer["message"])
        return answer


def _add_names(server: MCPServer) -> None:
    """Add the tool ``list_names``."""

    @server.tool()
    def list_names(kind: Literal["models", "methods", "devices"], pattern: str = "") -> list[str]:
        """List names: devices and methods, or aliases of models and timm names with a pattern."""
        from profiler.models.backbones import ALIASES, model_names
        from profiler.models.methods.registry import method_names

        _converted(Pattern, pattern)
        if kind == "models":
            # a thousand names of timm would not be read
            return sorted({*ALIASES, *(model_names(pattern)[:MOST_NAMES] if pattern else ())})
        names = method_names() if kind == "methods" else DEVICES
        return sorted(name for name in names if pattern in name)


def _converted(kind: Any, content: Any) -> Any:
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise ToolError(str(error)) from error


def _asked(jobs: Jobs, question: ServiceQuestion) -> Job:
    try:
        return jobs.ask(question)
    except BudgetplanError as error:
        raise ToolError(str(error)) from error


def _job_answer(job: Job) -> dict[str, Any]:
    """Return the shortened answer of a job, or its progress."""
    if job.status != "done":
        if job.status in ("failed", "cancelled"):
            raise ToolError(json.loads(job.text)["message"] if job.text else "it was cancelled")
        return job.to_json()
    answer = json.loads(job.text)
    rows = [
        {
            "workload": plan["candidate"]["workload"],
            "memory": plan["prediction"]["memory"],
            "step_seconds": plan["prediction"]["step_seconds"],
            "accuracy": plan["accuracy"],
        }
        for plan in answer["front"]
    ]
    return {"question_id": job.id, **{k: answer[k] for k in _KEPT}, "front": rows}
