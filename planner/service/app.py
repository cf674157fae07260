"""The HTTP routes of the service (FastAPI).

POST   /v1/questions                a question; 200 with the answer, or 202 with a job
GET    /v1/questions/ID             the job, with its answer when it is done
GET    /v1/questions/ID/events      its progress as server-sent events
GET    /v1/questions/ID/page        the answer as a page, as ``recommend --html`` draws it
GET    /v1/questions/ID/plans/N     a plan file of the answer, counted from 0
DELETE /v1/questions/ID             cancel
GET    /v1/devices                  names of GPUs
GET    /                            a page with a form
GET    /docs                        OpenAPI
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib import resources
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse

from planner.service.access import LARGEST_BODY, Refusal, check_request, too_large
from planner.service.jobs import BusyError, Job, Jobs
from planner.service.questions import ServiceQuestion, read_question
from profiler.devices.table import device_names
from profiler.errors import BudgetplanError, error_object

MOST_SECONDS_TO_WAIT = 30.0
"""Longest time for which a request waits for its job; many proxies close a connection after 60."""

PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""A page of an answer loads nothing and runs no script."""

_JSON = "application/json"

router = APIRouter()


def create_app(jobs: Jobs, *, hosts: frozenset[str], token: str | None = None) -> FastAPI:
    """Return the application.

    Args:
        jobs: runs the questions.
        hosts: allowed names of this service.
        token: token that every request must carry; None for none.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        jobs.close()

    app = FastAPI(title="budgetplan", lifespan=lifespan)
    app.state.jobs = jobs
    app.include_router(router)

    @app.middleware("http")
    async def check(request: Request, follow: Any) -> Any:
        headers = {name.lower(): value for name, value in request.headers.items()}
        try:
            check_request(headers, hosts=hosts, token=token, has_body=request.method == "POST")
        except Refusal as refusal:
            return _refusal_response(refusal)
        return await follow(request)

    @app.exception_handler(Refusal)
    async def refuse(_: Request, refusal: Refusal) -> JSONResponse:
        return _refusal_response(refusal)

    @app.exception_handler(BudgetplanError)
    async def explain(_: Request, error: BudgetplanError) -> JSONResponse:
        is_busy = isinstance(error, BusyError)
        status = HTTPStatus.TOO_MANY_REQUESTS if is_busy else HTTPStatus.UNPROCESSABLE_ENTITY
        return JSONResponse(error.to_json(), status_code=status)

    return app


def known_job(request: Request, job_id: str) -> Job:
    """Return the job that a path names."""
    found: Job | None = request.app.state.jobs.get(job_id)
    if found is None:
        raise Refusal(HTTPStatus.NOT_FOUND, "there is no such question")
    return found


KnownJob = Annotated[Job, Depends(known_job)]


def question_schema() -> dict[str, Any]:
    """Return the JSON Schema of a question."""
    _, parts = msgspec.json.schema_components(
        [ServiceQuestion], ref_template="#/components/schemas/{name}"
    )
    schema: dict[str, Any] = parts["ServiceQuestion"]
    return schema


@router.post(
    "/v1/questions",
    openapi_extra={
        "requestBody": {"required": True, "content": {_JSON: {"schema": question_schema()}}}
    },
)
async def ask(
    request: Request, wait: Annotated[float, Query(ge=0, le=MOST_SECONDS_TO_WAIT)] = 0
) -> Response:
    """Ask a question; ``wait`` is the number of seconds to wait for the answer."""
    jobs: Jobs = request.app.state.jobs
    job = jobs.ask(read_question(await _body(request)))
    if wait and not job.is_over:
        await jobs.wait(job, wait)
    return _answer(job)


@router.get("/v1/questions/{job_id}")
def show_question(job: KnownJob) -> Response:
    """Return the answer of a question, or its progress."""
    return _answer(job)


@router.get("/v1/questions/{job_id}/events")
def question_events(request: Request, job: KnownJob) -> StreamingResponse:
    """Return progress as server-sent events, until the job is over."""
    events = _events(request.app.state.jobs, job)
    return StreamingResponse(events, media_type="text/event-stream")


@router.get("/v1/questions/{job_id}/plans/{index}")
def show_plan_of_answer(request: Request, job: KnownJob, index: int) -> Response:
    """Return a plan file of an answer."""
    text = request.app.state.jobs.plan_text(job, index)
    if text is None:
        raise Refusal(HTTPStatus.NOT_FOUND, "there is no such plan")
    return Response(text, media_type=_JSON)


@router.get("/v1/questions/{job_id}/page", response_class=HTMLResponse)
def show_page_of_answer(request: Request, job: KnownJob) -> HTMLResponse:
    """Return the page of an answer; it has no scripts."""
    text = request.app.state.jobs.page_text(job)
    if text is None:
        raise Refusal(HTTPStatus.NOT_FOUND, "there is no such page")
    return HTMLResponse(text, headers={"Content-Security-Policy": PAGE_POLICY})


@router.delete("/v1/questions/{job_id}")
def cancel_question(request: Request, job: KnownJob) -> Response:
    """Cancel a question; its process ends."""
    request.app.state.jobs.cancel(job)
    return JSONResponse(job.to_json(), status_code=HTTPStatus.ACCEPTED)


@router.get("/v1/devices")
def list_device_names() -> list[str]:
    """Return the names of the device table."""
    return list(device_names())


@router.get("/", response_class=HTMLResponse)
def show_page() -> str:
    """Return a page with a form."""
    return (resources.files("planner.service") / "page.html").read_text("utf-8")


async def _body(request: Request) -> bytes:
    """Return the body; its length may differ from the header's."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_BODY:
            raise too_large()
    return body


def _answer(job: Job) -> Response:
    if job.status == "done":
        return Response(job.text, media_type=_JSON, headers={"X-Question": job.id})
    if job.status == "failed":
        return Response(job.text, status_code=HTTPStatus.UNPROCESSABLE_ENTITY, media_type=_JSON)
    status = HTTPStatus.OK if job.is_over else HTTPStatus.ACCEPTED
    return JSONResponse(job.to_json(), status_code=status)


async def _events(jobs: Jobs, job: Job) -> AsyncIterator[str]:
    while True:
        seen = job.activity, job.fraction
        yield f"data: {json.dumps(job.to_json())}\n\n"
        if job.is_over:
            return
        await jobs.wait(job, MOST_SECONDS_TO_WAIT, seen=seen)


def _refusal_response(refusal: Refusal) -> JSONResponse:
    shown = error_object("usage", refusal.message, exit_code=2)
    return JSONResponse(shown, status_code=refusal.status)
