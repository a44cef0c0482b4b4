"""Servers in Java for tests: whether this machine can run them, and their jars by Maven."""

import shutil
import subprocess
from pathlib import Path

import cdc_pipeline

CACHE = Path(cdc_pipeline.__file__).resolve().parents[1] / ".cache"


class Unavailable(Exception):
    """A server cannot run here; the message says why and what would help."""


def require_java(least: int, what: str, *, compiler: bool = False) -> None:
    """Raise `Unavailable` unless there is a Java of that version at least."""
    java = shutil.which("java")
    if java is None:
        raise Unavailable(f"there is no `java` on PATH: install a Java {least} runtime or newer")
    java_version = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)
    version = java_version.stderr.partition('"')[2].partition('"')[0]
    major = version.partition(".")[0]
    if java_version.returncode or not major.isdecimal() or int(major) < least:
        raise Unavailable(f"`java` is {version or 'broken'}: {what} needs {least}")
    if compiler:
        has = subprocess.run([java, "--list-modules"], capture_output=True, text=True, check=False)
        if "jdk.compiler" not in has.stdout:
            raise Unavailable(f"`java` {version} has no compiler: install a JDK {least} or newer")


def fetched_jars(folder: Path, artifacts: list[str], seconds: float) -> Path:
    """The folder with the artifacts and all that they need; fetched once.

    Each is `group:name:version`, with `:classifier` behind it where it is not the main jar.

    Raises `Unavailable` where Maven is missing or cannot.
    """
    jars = folder / "lib"
    if jars.exists():
        return jars
    maven = shutil.which("mvn")
    if maven is None:
        raise Unavailable("there is no `mvn` on PATH, which fetches it: install Maven")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "pom.xml").write_text(_pom(artifacts), "utf-8")
    draft = folder / "draft"
    command = [maven, "--batch-mode", "--quiet", "--strict-checksums", "--no-transfer-progress"]
    command += ["-Dstyle.color=never"]
    command += ["dependency:copy-dependencies", "-DincludeScope=runtime"]
    command += [f"-DoutputDirectory={draft}"]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"Maven did not fetch it within {seconds:.0f} s") from None
    if done.returncode:
        errors = [line for line in done.stdout.splitlines() if "ERROR" in line] or ["no message"]
        raise Unavailable(f"Maven could not fetch it: {errors[0]}")
    draft.rename(jars)
    return jars


def _pom(artifacts: list[str]) -> str:
    dependencies = ""
    for artifact in artifacts:
        group, name, version, *classifier = artifact.split(":")
        chosen = f"<classifier>{classifier[0]}</classifier>" if classifier else ""
        dependencies += (
            f"    <dependency><groupId>{group}</groupId><artifactId>{name}</artifactId>"
            f"<version>{version}</version>{chosen}</dependency>\n"
        )
    return (
        '<project xmlns="http://maven.apache.org/POM/4.0.0">\n'
        "  <modelVersion>4.0.0</modelVersion>\n"
        "  <groupId>contract</groupId><artifactId>server</artifactId><version>1</version>\n"
        f"  <packaging>pom</packaging>\n  <dependencies>\n{dependencies}  </dependencies>\n"
        "</project>\n"
    )
