"""From a job driver to a command: options, environment and archives of spark-submit.

Sources: "Spark jobs" and "Using Python libraries with EMR Serverless" of the EMR Serverless guide.
"""

import importlib.util
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdc_pipeline.sandbox.aws.emr.protocol import VALIDATION, RefusedError

_DRIVER_ENV = "spark.emr-serverless.driverEnv."
_ARCHIVES = "spark.archives"
# Workers, their size and number are EMR's; here one process is the driver and all executors.
_OF_A_CLUSTER = re.compile(
    r"spark\.(master|submit\.deployMode|(emr-serverless|dynamicAllocation)\..*"
    r"|(driver|executor)\.(cores|instances|memory(Overhead(Factor)?)?|resource\..*))"
)
_OPTIONS_OF_A_CLUSTER = {
    "--master",
    "--deploy-mode",
    "--driver-cores",
    "--driver-memory",
    "--executor-cores",
    "--executor-memory",
    "--num-executors",
    "--total-executor-cores",
}
# Options of spark-submit without a value.
_FLAGS = {"--supervise", "--verbose", "-v"}
_HERE = {
    # Nothing of the sandbox listens on another address.
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.ui.enabled": "false",
}
# Of the developer's shell: these change what Spark and Python of a job do.
_NOT_OF_THE_SHELL = re.compile(r"(PYSPARK|SPARK)_.*|PYTHONPATH|PYTHONHOME|PYTHONSTARTUP")


class JobFailedError(Exception):
    """A job that cannot start; the message becomes the job run's stateDetails."""


@dataclass(frozen=True, slots=True)
class Submission:
    """What a job driver asks for: `archives` as `URI#name`, `environment` of the driver."""

    entry_point: str
    arguments: tuple[str, ...]
    options: tuple[str, ...]
    archives: tuple[str, ...]
    environment: dict[str, str]


def submission_of(driver: dict[str, Any], defaults: Mapping[str, str]) -> Submission:
    """Return the submission of a request's `jobDriver`.

    `defaults`: configuration that `sparkSubmitParameters` override. Raises RefusedError for a
    driver that is not Spark's, or parameters that are no options.
    """
    spark = driver.get("sparkSubmit")
    if not spark:
        raise RefusedError(VALIDATION, "jobDriver.sparkSubmit is missing: the sandbox has Spark")
    conf, others = {**_HERE, **defaults}, []
    for name, value in _options(spark.get("sparkSubmitParameters", "")):
        if name in ("--conf", "-c"):
            key, equals, setting = value.partition("=")
            if not equals:
                raise RefusedError(VALIDATION, f"--conf {key}: expected NAME=VALUE")
            conf[key] = setting
        elif name == "--archives":
            conf[_ARCHIVES] = value
        elif name not in _OPTIONS_OF_A_CLUSTER:
            others += [name, value] if name not in _FLAGS else [name]
    environment = {
        key.removeprefix(_DRIVER_ENV): value
        for key, value in conf.items()
        if key.startswith(_DRIVER_ENV)
    }
    archives = tuple(uri.strip() for uri in conf.pop(_ARCHIVES, "").split(",") if uri.strip())
    kept = {key: value for key, value in conf.items() if not _OF_A_CLUSTER.fullmatch(key)}
    settings = [part for key, value in kept.items() for part in ("--conf", f"{key}={value}")]
    return Submission(
        entry_point=spark["entryPoint"],
        arguments=tuple(spark.get("entryPointArguments") or ()),
        options=("--master", "local[2]", *settings, *others),
        archives=archives,
        environment=environment,
    )


def spark_defaults(configurations: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Return the properties of the classification `spark-defaults`."""
    return {
        key: value
        for one in configurations
        if one["classification"] == "spark-defaults"
        for key, value in one.get("properties", {}).items()
    }


def _options(parameters: str) -> Iterator[tuple[str, str]]:
    """Yield (option, value), both for `--name value` and for `--name=value`."""
    try:
        words = iter(shlex.split(parameters))
    except ValueError as error:
        raise RefusedError(VALIDATION, f"sparkSubmitParameters: {error}") from error
    for word in words:
        name, equals, value = word.partition("=")
        if not name.startswith("-"):
            raise RefusedError(VALIDATION, f"sparkSubmitParameters: {name} is not an option")
        yield name, value if equals or name in _FLAGS else next(words, "")


def job_environment(
    submission: Submission, folder: Path, account: str, region: str
) -> dict[str, str]:
    """Return the environment of a job: AWS is this sandbox, temporary files are in `folder`.

    This process's environment already points at the sandbox.
    """
    inherited = {n: v for n, v in os.environ.items() if not _NOT_OF_THE_SHELL.fullmatch(n)}
    return {
        **inherited,
        "AWS_ACCESS_KEY_ID": account,  # twelve digits: the emulator takes them as the account
        "AWS_REGION": region,
        "AWS_DEFAULT_REGION": region,
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_DIRS": str(folder),
        "TMPDIR": str(folder),
        **submission.environment,
    }


def spark_home(environment: Mapping[str, str]) -> Path:
    """Return the folder of Spark: SPARK_HOME of the driver's environment, else pyspark's.

    Raises JobFailedError if Java or Spark is missing.
    """
    java_home = environment.get("JAVA_HOME")
    path = str(Path(java_home, "bin")) if java_home else environment.get("PATH", "")
    if shutil.which("java", path=path) is None:
        where = f"in JAVA_HOME ({java_home})" if java_home else "on PATH"
        raise JobFailedError(f"there is no java {where}: install a Java 17 runtime or newer")
    home = environment.get("SPARK_HOME") or _pyspark()
    if home is None:
        raise JobFailedError(
            f"pyspark is not installed in {sys.prefix}: pip install 'cdc-pipeline[spark]'"
        )
    return Path(home)


def _pyspark() -> str | None:
    """Return the folder of the package, which is not imported."""
    spec = importlib.util.find_spec("pyspark")
    return next(iter(spec.submodule_search_locations or ()), None) if spec else None
