"""What one look at AWS finds: green, or red with what to do about it."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from cdc_pipeline.aws.client.session import aws_errors, code_behind, is_denied
from cdc_pipeline.core.errors import CdcPipelineError, LakeError
from cdc_pipeline.core.plans.iam import Statement, key_statements, statement_with

_UNEXPLAINED = "AccessDenied: Access Denied"
PIPELINE = "the pipeline's role"
Remedy = Literal["stream", "recovery"]
_KEY = re.compile(r"arn:aws[a-z-]*:kms:[^\s\"',]+")
# AWS's words: "with an explicit deny in a resource-based policy". S3 tells them to callers of the
# bucket's own account; others get "Access Denied" alone.
_EXPLICIT_DENY = re.compile(r"explicit deny in an? ([A-Za-z][A-Za-z -]*?)(?=[.,;:(\"]|$)")


@dataclass(frozen=True)
class Finding:
    """One look at one thing. `fix`: for red ones; `remedy`: what `--fix` can turn on."""

    check: str
    green: bool
    found: str
    fix: str | None = None
    remedy: Remedy | None = None


class RedError(Exception):
    """A red finding that ends its check."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.found)
        self.finding = finding


@dataclass(frozen=True)
class Asker:
    """Who asks AWS, the statements that would allow it, and fixes by AWS error code."""

    who: str
    statements: Sequence[Statement]
    fixes: Mapping[str, str] = field(default_factory=dict)

    @contextmanager
    def asking(self, check: str, action: str, what: str) -> Iterator[None]:
        """Turn an error of the calls inside into `RedError`; a denial tells the statement."""
        try:
            with aws_errors(what, LakeError, **self.fixes):
                yield
        except CdcPipelineError as error:
            raise RedError(Finding(check, False, error.message, self._fix(action, error))) from None

    def _fix(self, action: str, error: CdcPipelineError) -> str:
        code = code_behind(error)
        # A key that may not be used is a denial of the call that needs it.
        if code.startswith("KMS") or "kms:" in error.message:
            named = _KEY.search(error.message)
            key = named[0] if named else f"arn:{self._partition()}:kms:REGION:ACCOUNT:key/KEY"
            if not _EXPLICIT_DENY.search(error.message):
                return allow(self.who, *key_statements([key]))
        if is_denied(code) and (said := _EXPLICIT_DENY.search(error.message)):
            return (
                f"a {said[1]} denies this explicitly, and no permission outweighs that: change "
                f"that policy, or do what it demands ({action})"
            )
        if is_denied(code) and self.statements:
            fix = allow(self.who, statement_with(action, self.statements))
            if error.message.endswith(_UNEXPLAINED):
                fix += (
                    "; if it is allowed that already, a policy denies it explicitly: look at "
                    "those of the bucket, the VPC endpoint and the organization"
                )
            return fix
        return error.fix or f"check credentials, region and network ({action}; docs/aws.md)"

    def _partition(self) -> str:
        """That of the statements' ARNs."""
        found = (arn for said in self.statements for arn in said["Resource"] if ":" in arn)
        return next(found, "arn:aws").split(":")[1]


def allow(who: str, *statements: Statement) -> str:
    """What a person does to grant a permission."""
    said = " ".join(json.dumps(statement) for statement in statements)
    return f"add to the policy of {who}: {said}"
