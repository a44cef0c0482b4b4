"""The objects in the lake by which a run and its Spark job talk.

The run writes requests, each named by a digest of its content, and the job answers each with an
object of that name. So a run that joins a job, or that repeats the work of a killed one, finds the
answers that are there already. Either side overwrites an object of its own again and again; the
other one knows by its changes that it is alive, without comparing clocks. The job writes nothing
else but files that no commit names, so it does no harm on its own.
"""

import hashlib
import secrets
import time
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from typing import Any

import msgspec

from cdc_pipeline.core.errors import WorkersError
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.storage.store import Store

FORMAT = 1
"""Of the objects; a job of another one refuses."""


class Setup(msgspec.Struct):
    """What the job must know: table and settings, without secrets, and the code's version."""

    format: int
    version: str
    table: str
    settings: dict[str, Any]


def setup_of(table: TableLake) -> Setup:
    """Describe a table for a job on other machines."""
    settings = table.lake.settings
    raw = settings.model_dump(mode="json", exclude_defaults=True)
    if not settings.is_s3:
        raw["lake"] = str(settings.lake_folder)
    return Setup(FORMAT, code_version(), table.settings.label, raw)


def code_version() -> str:
    """Return the version of this code."""
    try:
        return installed_version("cdc-pipeline")
    except PackageNotFoundError:
        return "unknown"


class Request(msgspec.Struct):
    """A task for each argument; `shared`: a further argument of all."""

    task: str
    arguments: list[Any]
    shared: Any = None


class Failure(msgspec.Struct):
    """An error that a user can act on; `kind`: its class in `core.errors`.

    `caused`: by another error, which stays in the job's log.
    """

    kind: str
    message: str
    fix: str | None = None
    caused: bool = False


class Answer(msgspec.Struct):
    """The result of each task, or the first failure."""

    results: list[Any] = []
    failure: Failure | None = None


class Life(msgspec.Struct):
    """What a side writes again and again. `line`: its progress, for people."""

    nonce: str
    line: str = ""
    ended: bool = False


RUN, JOB = "run", "job"


class Exchange:
    """Requests, answers and signs of life under one prefix."""

    def __init__(self, store: Store, prefix: str) -> None:
        self.store = store
        self.prefix = prefix

    def write_setup(self, setup: Setup) -> None:
        """Store what the job must know."""
        self._write("setup", setup)

    def setup(self) -> Setup:
        """Read it; raises `WorkersError` if there is none."""
        setup = self._read("setup", Setup)
        if setup is None:
            raise WorkersError(
                f"there is no Spark job to do at {self.store.uri(self.prefix)}",
                fix="materialise the asset again: the run that wanted this job has ended",
            )
        return setup

    def request(self, request: Request) -> str:
        """Store a request unless it is there; return its name."""
        text = msgspec.json.encode(request)
        name = hashlib.sha256(text).hexdigest()[:32]
        self.store.create(f"{self.prefix}requests/{name}.json", text)
        return name

    def requests(self) -> list[str]:
        """List the names of requests without an answer."""
        answered = set(self._names("answers"))
        return [name for name in self._names("requests") if name not in answered]

    def read_request(self, name: str) -> Request:
        """Read a request."""
        request = self._read(f"requests/{name}", Request)
        if request is None:
            raise WorkersError("the request of a Spark job was removed", fix="run it again")
        return request

    def answer(self, name: str, answer: Answer) -> None:
        """Store the answer to a request."""
        self._write(f"answers/{name}", answer)

    def read_answer(self, name: str) -> Answer | None:
        """Read the answer to a request; None: there is none yet."""
        return self._read(f"answers/{name}", Answer)

    def drop_answer(self, name: str) -> None:
        """Remove an answer, so that the request is done again."""
        self.store.delete([f"{self.prefix}answers/{name}.json"])

    def live(self, side: str, line: str = "", *, ended: bool = False) -> None:
        """Write a sign of life of `RUN` or `JOB`; `ended`: the last one."""
        self._write(side, Life(secrets.token_hex(8), line, ended))

    def life(self, side: str) -> Life | None:
        """Read the last sign of life of a side."""
        return self._read(side, Life)

    def _names(self, folder: str) -> list[str]:
        keys = self.store.list(f"{self.prefix}{folder}/")
        return [key.rpartition("/")[2].removesuffix(".json") for key in keys]

    def _write(self, name: str, value: msgspec.Struct) -> None:
        self.store.write(f"{self.prefix}{name}.json", msgspec.json.encode(value))

    def _read(self, name: str, kind: Any) -> Any:
        data = self.store.read(f"{self.prefix}{name}.json")
        return None if data is None else msgspec.json.decode(data, type=kind)


class Watch:
    """Whether the other side of an exchange is alive, by changes of its object."""

    def __init__(self, exchange: Exchange, side: str) -> None:
        self._exchange = exchange
        self._side = side
        self._nonce: str | None = None
        self._changed = time.monotonic()
        self.last: Life | None = None

    def look(self) -> Life | None:
        """Read its last sign of life; None: none so far."""
        self.last = self._exchange.life(self._side)
        nonce = self.last.nonce if self.last else None
        if nonce != self._nonce:
            self._nonce, self._changed = nonce, time.monotonic()
        return self.last

    def silent_seconds(self) -> float:
        """Return the time since its object last changed, as seen by this side."""
        return time.monotonic() - self._changed
