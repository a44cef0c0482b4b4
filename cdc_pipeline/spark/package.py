"""What a Spark job needs on a cluster: a Python with this code, and the program that it starts."""

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cdc_pipeline.aws.s3.objects import S3Store
from cdc_pipeline.aws.s3.output import sse_parameters
from cdc_pipeline.core.errors import SettingsError, WorkersError
from cdc_pipeline.core.names import split_s3
from cdc_pipeline.core.run_context import RunContext
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.settings.model import Settings
from cdc_pipeline.spark.interpreter import (
    Glibc,
    Interpreter,
    copy_interpreter,
    needed_glibc,
    this_python,
)
from cdc_pipeline.spark.wheel import constraints, write_wheel

ENVIRONMENT = "environment"
"""Name of the archive without its suffix, and of the folder into which a cluster unpacks it."""

ARCHIVE, ENTRY = f"{ENVIRONMENT}.tar.gz", "entry.py"

ENTRY_FILE = Path(__file__).parent / "job" / ENTRY

GLIBC_OF_AWS: Glibc = (2, 34)
"""Of Amazon Linux 2023, on which EMR 7 and Glue 5 are built."""

_LINES_OF_ERROR = 5


@dataclass(frozen=True)
class Package:
    """A built package. `glibc`: the version that it needs at least."""

    files: tuple[Path, ...]
    python: str
    machine: str
    glibc: Glibc

    @property
    def runs_on_aws(self) -> bool:
        """Whether the systems of EMR and Glue have a glibc that is new enough."""
        return self.glibc <= GLIBC_OF_AWS


def build_package(output: Path, context: RunContext, *, python: Path | None = None) -> Package:
    """Build archive, entry point and wheel in a folder. `python`: to copy; default: this one.

    Takes some minutes, and what pip downloads. Raises `WorkersError`, `SettingsError`.
    """
    output.mkdir(parents=True, exist_ok=True)
    for old in output.glob("cdc_pipeline-*.whl"):
        old.unlink()
    wheel = write_wheel(output)
    with tempfile.TemporaryDirectory(prefix="cdc-spark-") as scratch:
        folder = Path(scratch) / ENVIRONMENT
        context.progress("copying Python")
        interpreter = copy_interpreter(python or this_python(), folder)
        _install(interpreter, wheel, Path(scratch), context)
        context.progress("compiling")
        _run(interpreter, "-m", "cdc_pipeline.transform.precompile")
        if not any(interpreter.library.rglob("cdc_pipeline/transform/fast/__pycache__/*.nbi")):
            raise WorkersError("spark package: Numba left no cache in the package")
        _run(interpreter, "-c", "import cdc_pipeline.spark.job.tasks, cdc_pipeline.spark.job.main")
        context.progress("packing")
        archive = output / ARCHIVE
        _pack(folder, archive)
        glibc = needed_glibc(folder)
    entry = output / ENTRY
    shutil.copyfile(ENTRY_FILE, entry)
    return Package((archive, entry, wheel), interpreter.version, interpreter.machine, glibc)


def _install(python: Interpreter, wheel: Path, scratch: Path, context: RunContext) -> None:
    pinned = scratch / "constraints.txt"
    pinned.write_text("\n".join(constraints()))
    pip = ("-m", "pip", "--disable-pip-version-check", "--no-input")
    _run(python, "-m", "ensurepip", "--default-pip")
    context.progress("installing what a job needs")
    _run(python, *pip, "install", "--no-warn-script-location", "-c", str(pinned), str(wheel))
    _run(python, *pip, "uninstall", "--yes", "pip", "setuptools")
    # Programs of packages begin with a path of this machine.
    shutil.rmtree(python.program.parent / "__pycache__", ignore_errors=True)
    for program in python.program.parent.iterdir():
        if not program.name.startswith("python"):
            program.unlink()
    _run(python, "-m", "compileall", "-q", str(python.library), succeeds=False)


def _run(python: Interpreter, *arguments: str, succeeds: bool = True) -> None:
    # Else it might find other modules than its own.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [python.program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", env=clean)
    if succeeds and done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-_LINES_OF_ERROR:]
        raise WorkersError(
            f"spark package: python {' '.join(arguments[:4])} failed:\n    " + "\n    ".join(last),
            fix="see the lines above; pip needs a package index, or its cache",
        )


def _pack(folder: Path, archive: Path) -> None:
    """Pack a folder so that unpacking gives the same times: Python compares those of its caches."""
    part = archive.with_name(f"{archive.name}.part")
    with tarfile.open(part, "w:gz", compresslevel=6) as packed:
        for path in sorted(folder.rglob("*")):
            packed.add(path, path.relative_to(folder).as_posix(), recursive=False, filter=_plain)
    part.replace(archive)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mtime = int(member.mtime)
    return member


def package_folder(settings: Settings) -> str:
    """Return the folder in S3 of the packaged files, ending in /."""
    folder = settings.spark.package or f"{settings.lake.rstrip('/')}/_cdc/spark"
    return f"{folder.rstrip('/')}/"


def upload_package(lake: Lake, package: Package) -> Iterator[str]:
    """Copy the files to where jobs are started from; yield the address of each.

    Raises `SettingsError` where jobs would not run or need no package, `LakeError`.
    """
    settings = lake.settings
    if not settings.is_s3:
        raise SettingsError(
            "spark package --upload: the lake is a local folder",
            fix="leave --upload out: spark-submit uses the Python of this machine, or that in "
            "PYSPARK_PYTHON",
        )
    if settings.spark.start == "emr_serverless" and not package.runs_on_aws:
        raise SettingsError(f"spark package: {too_new(package)}", fix=OLDER_FIX)
    bucket, prefix = split_s3(package_folder(settings))
    store = S3Store(lake.aws, bucket, prefix, sse_parameters(settings.kms_key))
    for file in package.files:
        store.write(file.name, file.read_bytes())
        yield store.uri(file.name)


def too_new(package: Package) -> str:
    """Describe a package that does not run on AWS."""
    needed, there = (".".join(map(str, version)) for version in (package.glibc, GLIBC_OF_AWS))
    return f"the Python needs glibc {needed}, EMR and Glue have {there}"


OLDER_FIX = (
    "choose one for older systems, such as --python $(uv python find --managed-python 3.11): see "
    "docs/spark_setup.md"
)
