"""Every error this project raises on purpose: what happened, to what, and what to do."""


class CdcPipelineError(Exception):
    """Base of all errors that a user can act on.

    `message` says what happened and to what; `fix` says what to do about it. Neither ever holds
    item contents or secrets.
    """

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        super().__init__(message if fix is None else f"{message}\n  Fix: {fix}")
        self.message = message
        self.fix = fix


class SettingsError(CdcPipelineError):
    """The settings file is missing or says something that cannot be."""


class SourceError(CdcPipelineError):
    """DynamoDB, its stream or its backups are not as capture needs them, or cannot be reached."""


class ExportError(CdcPipelineError):
    """A PITR export failed or what it wrote does not match its manifest."""


class FailedExportError(ExportError):
    """AWS gave an export up; another one may succeed."""


class RunningExportError(ExportError):
    """AWS is still writing an export after the time that the settings allow for it."""


class UnusableExportError(ExportError):
    """An export that never will be of use: AWS forgot it, or it is filtered or of another table."""


class LakeError(CdcPipelineError):
    """The lake cannot be read or written, or holds something that we did not write."""


class CaptureConflictError(CdcPipelineError):
    """Another writer advanced the capture log of the same table first."""


class NotReadyError(CdcPipelineError):
    """An input of this step does not exist yet; nothing is broken."""


class SchemaContractError(CdcPipelineError):
    """The data no longer has the columns that the settings promise to readers."""


class QueryError(CdcPipelineError):
    """A SQL statement cannot be run on the lake."""


class UnreadableError(Exception):
    """One record or line that cannot be understood; it is quarantined, never dropped.

    `reason` is short, names no values, and groups like with like.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ExpiredIteratorError(Exception):
    """A shard iterator is older than 15 minutes; a new one at the checkpoint goes on."""


class TrimmedDataError(Exception):
    """The stream no longer has the data at the checkpoint (24 h retention)."""


class HeadTrimmedError(TrimmedDataError):
    """A shard's oldest records may have been trimmed before anyone read it."""


class ShardGoneError(Exception):
    """The shard or its whole stream no longer exists."""


class NotCoveredError(CdcPipelineError):
    """A day of which nothing that still exists knows the changes."""


class EraseRefusedError(CdcPipelineError):
    """An item cannot be erased as things stand; nothing was changed."""


class CannotHealError(CdcPipelineError):
    """A gap that incremental exports cannot heal; a new baseline can."""
