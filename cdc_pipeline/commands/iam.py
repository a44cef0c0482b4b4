"""`cdc-pipeline iam-policy`: least-privilege policies for roles and buckets."""

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
