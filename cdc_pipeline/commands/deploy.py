"""`cdc-pipeline iam-policy` and `spark package`: what a deployment in AWS is given."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cdc_pipeline.commands.common import open_lake

if TYPE_CHECKING:
    from cdc_pipeline.setup.permissions import Policies

_DOCUMENTS = ("all", "pipeline", "roles", "export-bucket", "erase")


@click.command("iam-policy")
@click.option("--table", "tables", multiple=True, help="Only this table; may be given repeatedly.")
@click.option(
    "--document",
    type=click.Choice(_DOCUMENTS),
    default="all",
    show_default=True,
    help="Print one document, as `aws iam put-role-policy` and `aws s3api` take it.",
)
@click.option("--account", help="The lake's account; default: the account of the credentials.")
@click.option("--kms-key", "keys", multiple=True, help="ARN of a KMS key in use; repeatable.")
def iam_policy(
    tables: tuple[str, ...], document: str, account: str | None, keys: tuple[str, ...]
) -> None:
    r"""Print least-privilege IAM policies for the settings.

    \b
    pipeline       for the role that runs the pipeline
    roles          for each role_arn of the settings: its policy and its trust policy
    export-bucket  policy of the bucket to which roles of other accounts export
    erase          for people who erase items, in addition to `pipeline`

    \b
    Example:
      cdc-pipeline iam-policy --document pipeline > policy.json
      aws iam put-role-policy --role-name cdc-pipeline --policy-name cdc-pipeline \
        --policy-document file://policy.json
    """
    from cdc_pipeline.lake.lake import Lake
    from cdc_pipeline.settings.load import load_settings
    from cdc_pipeline.setup.permissions import build_policies

    settings = load_settings()
    chosen = [settings.table(name) for name in tables] or settings.tables
    documents = _documents(build_policies(Lake.open(settings), chosen, account=account, keys=keys))
    shown: Any = documents if document == "all" else documents[document.replace("-", "_")]
    if shown is None:
        raise click.ClickException("none of these tables is in another account: no policy needed")
    click.echo(json.dumps(shown, indent=2))


def _documents(made: "Policies") -> dict[str, Any]:
    documents = {name: value for name, value in asdict(made).items() if value is not None}
    documents["roles"] = {
        arn: {"policy": policy, "trust": trust} for arn, (policy, trust) in made.roles.items()
    }
    return {"export_bucket": None, **documents}


@click.group()
def spark() -> None:
    """Prepare Spark jobs on clusters."""


@spark.command()
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("spark-package"),
    show_default=True,
    help="Folder of the package.",
)
@click.option(
    "--python",
    type=click.Path(path_type=Path),
    help="Python of the package, a program; default: the one that runs this command.",
)
@click.option("--upload", is_flag=True, help="Copy it to `spark.package` of the settings.")
def package(output: Path, python: Path | None, upload: bool) -> None:
    r"""Build what Spark jobs need on a cluster.

    \b
    environment.tar.gz  a Python with this code, compiled; runs wherever it is unpacked
    entry.py            the program that a job starts
    cdc_pipeline-*.whl  this code for Glue, which installs it itself

    \b
    Example:
      cdc-pipeline spark package --python $(uv python find --managed-python 3.11) --upload
    """
    from cdc_pipeline.core.run_context import RunContext
    from cdc_pipeline.spark.package import OLDER_FIX, build_package, too_new, upload_package

    lake = open_lake() if upload else None
    built = build_package(output, RunContext(click.echo), python=python)
    for file in built.files:
        click.echo(f"{file} ({file.stat().st_size / 1e6:,.1f} MB)")
    glibc = ".".join(map(str, built.glibc))
    click.echo(f"for Linux on {built.machine} with glibc {glibc} or newer; Python {built.python}")
    if not built.runs_on_aws:
        click.echo(f"not for EMR and Glue: {too_new(built)}\n  Fix: {OLDER_FIX}", err=True)
    if lake is not None:
        for address in upload_package(lake, built):
            click.echo(f"uploaded {address}")
