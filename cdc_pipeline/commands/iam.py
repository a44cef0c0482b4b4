"""`cdc-pipeline iam-policy`: the least that roles and buckets must be allowed."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

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
@click.option("--account", help="The lake's account; default: asked from AWS.")
@click.option("--kms-key", "keys", multiple=True, help="ARN of a KMS key in use; repeatable.")
def iam_policy(
    tables: tuple[str, ...], document: str, account: str | None, keys: tuple[str, ...]
) -> None:
    r"""Print least-privilege IAM policies for the settings.

    \b
    pipeline       for the role that runs the pipeline
    roles          for each role_arn of the settings: its policy, and whom it trusts
    export-bucket  policy of the bucket that roles of other accounts export to
    erase          for people who erase items, beyond `pipeline`

    \b
    Example:
      cdc-pipeline iam-policy --document pipeline > policy.json
      aws iam put-role-policy --role-name cdc-pipeline --policy-name cdc-pipeline \
        --policy-document file://policy.json
    """
    from cdc_pipeline.lake.lake import Lake
    from cdc_pipeline.settings.load import load_settings
    from cdc_pipeline.setup.permissions import policies

    settings = load_settings()
    chosen = [settings.table(name) for name in tables] or settings.tables
    found = policies(Lake.open(settings), chosen, account=account, keys=keys)
    said = _documents(found)
    shown: Any = said if document == "all" else said[document.replace("-", "_")]
    if shown is None:
        raise click.ClickException("no table of these is in another account: no policy is needed")
    click.echo(json.dumps(shown, indent=2))


def _documents(found: "Policies") -> dict[str, Any]:
    said = {name: value for name, value in asdict(found).items() if value is not None}
    said["roles"] = {
        arn: {"policy": policy, "trust": trust} for arn, (policy, trust) in found.roles.items()
    }
    return {"export_bucket": None, **said}
