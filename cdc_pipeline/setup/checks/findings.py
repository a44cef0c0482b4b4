"""Preflight findings: passed, or failed with a fix."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from cdc_pipeline.aws.client.session import aws_errors, cause_code, is_denied
from cdc_pipeline.core.errors import CdcPipelineError, LakeError
from cdc_pipeline.core.plans.iam import Statement, key_statements, statement_with

_UNEXPLAINED = "AccessDenied: Access Denied"
PIPELINE = "the pipeline's role"
Remedy = Literal["stream", "recovery"]
_KEY = re.compile(r"arn:aws[a-z-]*:kms:[^\s\"',]+")
# AWS's words: "with an explicit deny in a resource-based policy". S3 returns them to callers of the
# bucket's own account; others get only "Access Denied".
_EXPLICIT_DENY = re.compile(r"explicit deny in an? ([A-Za-z][A-Za-z -]*?)(?=[.,;:(\"]|$)")


@dataclass(frozen=True)
class Finding:
    """Result of one check. `green`: passed; `fix`: for failures; `remedy`: what `--fix` enables."""

    check: str
    green: bool
    found: str
    fix: str | None = None
    remedy: Remedy | None = None


class FailedCheckError(Exception):
    """A failed finding that ends its check."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.found)
        self.finding = finding


@dataclass(frozen=True)
class AwsProbe:
    """Calls to AWS as `who`, with the IAM statements they need and fixes by AWS error code."""

    who: str
    statements: Sequence[Statement]
    fixes: Mapping[str, str] = field(default_factory=dict)

    @contextmanager
    def check(self, check: str, action: str, what: str) -> Iterator[None]:
        """Raise errors of the calls inside as `FailedCheckError`, denials with a statement."""
        try:
            with aws_errors(what, LakeError, **self.fixes):
                yield
        except CdcPipelineError as error:
            finding = Finding(check, False, error.message, self._fix(action, error))
            raise FailedCheckError(finding) from None

    def _fix(self, action: str, error: CdcPipelineError) -> str:
        code = cause_code(error)
        # A KMS key without permission appears as a denial of the call that uses it.
        if code.startswith("KMS") or "kms:" in error.message:
            match = _KEY.search(error.message)
            key = match[0] if match else f"arn:{self._partition()}:kms:REGION:ACCOUNT:key/KEY"
            if not _EXPLICIT_DENY.search(error.message):
                return allow(self.who, *key_statements([key]))
        if is_denied(code) and (match := _EXPLICIT_DENY.search(error.message)):
            return (
                f"a {match[1]} denies this explicitly, and no permission overrides a deny: change "
                f"the policy, or meet its conditions ({action})"
            )
        if is_denied(code) and self.statements:
            fix = allow(self.who, statement_with(action, self.statements))
            if error.message.endswith(_UNEXPLAINED):
                fix += (
                    "; if it has this permission already, a policy denies it explicitly: check the "
                    "policies of the bucket, the VPC endpoint and the organization"
                )
            return fix
        return error.fix or f"check credentials, region and network ({action}; docs/aws.md)"

    def _partition(self) -> str:
        """Return the AWS partition of the statements' ARNs, `aws` by default."""
        arns = (arn for one in self.statements for arn in one["Resource"] if ":" in arn)
        return next(arns, "arn:aws").split(":")[1]


def allow(who: str, *statements: Statement) -> str:
    """Return the instruction to grant the statements to `who`."""
    documents = " ".join(json.dumps(statement) for statement in statements)
    return f"add to the policy of {who}: {documents}"
