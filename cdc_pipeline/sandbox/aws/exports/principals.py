"""Who makes a request, and what a principal may do in a bucket of another account.

ministack knows the account only, so that bucket policies which name a role grant nothing.
"""

import re
from contextvars import ContextVar
from typing import Any

# What an export needs of the bucket of another account (docs/aws_facts.md, IAM): the request that
# each permission is for.
_EXPORT_NEEDS = {
    "s3:PutObject": ("PUT", {}),
    "s3:AbortMultipartUpload": ("DELETE", {"uploadId": ["x"]}),
    "s3:PutObjectAcl": ("PUT", {"acl": [""]}),
}
_CREDENTIAL = re.compile(rb"Credential=([^/]+)/")
_access_key: ContextVar[str] = ContextVar("access_key", default="")


def remember_caller(scope: Any) -> None:
    """Keep the access key of an HTTP request for as long as it is answered."""
    headers: dict[bytes, bytes] = dict(scope["headers"])
    found = _CREDENTIAL.search(headers.get(b"authorization", b""))
    _access_key.set(found[1].decode() if found else "")


def principal() -> str:
    """The ARN of who makes the present request: an assumed role, or an account's root."""
    from ministack.core.responses import get_account_id
    from ministack.services import sts

    session = sts._sessions.get(_access_key.get())
    return session["Arn"] if session else f"arn:aws:iam::{get_account_id()}:root"


class ForeignBuckets:
    """Buckets as principals of other accounts see them; `install` corrects the emulator."""

    def __init__(self, s3: Any) -> None:
        self._s3 = s3

    def install(self) -> None:
        """Let bucket policies name roles; once per process."""
        original = self._s3._foreign_bucket_allows

        def allows(
            owner: str, bucket: str, key: str, method: str, query: dict, *more: Any, **named: Any
        ) -> bool:
            return original(owner, bucket, key, method, query, *more, **named) or self._allows(
                principal(), bucket, key, method, query
            )

        self._s3._foreign_bucket_allows = allows

    def owner(self, bucket: str) -> str | None:
        """The account of a bucket, None if there is no such bucket."""
        return self._s3._bucket_owner_account(bucket)

    def denied_to_export(self, caller: str, bucket: str, key: str) -> list[str]:
        """The permissions that the principal `caller` lacks to export to a bucket."""
        return [
            action
            for action, (method, query) in _EXPORT_NEEDS.items()
            if not self._allows(caller, bucket, key, method, query)
        ]

    def _allows(self, caller: str, bucket: str, key: str, method: str, query: dict) -> bool:
        from ministack.core.iam_actions import _s3_action
        from ministack.core.iam_evaluator import EvalContext, evaluate_resource_policy
        from ministack.core.responses import get_region

        account, path = caller.split(":")[4], f"/{bucket}/{key}" if key else f"/{bucket}"
        if account == self.owner(bucket):
            return True
        policy = self._s3._bucket_policies.get_scoped(self.owner(bucket), None, bucket)
        context = EvalContext(
            principal_arn=caller,
            principal_type="AssumedRole" if ":assumed-role/" in caller else "Root",
            principal_account=account,
            action=f"s3:{_s3_action(method, path, query)}",
            resource_arn=f"arn:aws:s3:::{path[1:]}",
            region=get_region(),
        )
        return bool(policy) and evaluate_resource_policy(policy, context).decision == "Allow"
