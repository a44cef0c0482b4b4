"""Errors of the local sandbox itself, as opposed to errors it simulates."""

from cdc_pipeline.core.errors import CdcPipelineError


class SandboxError(CdcPipelineError):
    """The sandbox cannot start, or stopped unexpectedly."""


class PortInUseError(SandboxError):
    """Another process listens on the requested port."""

    def __init__(self, port: int) -> None:
        super().__init__(
            f"port {port} on 127.0.0.1 is in use by another process",
            fix="run it with --port 0 for any free port, or stop the other process",
        )
        self.port = port


class SandboxNotInstalledError(SandboxError):
    """The optional dependency that emulates AWS is missing."""

    def __init__(self) -> None:
        super().__init__(
            "the sandbox needs the package ministack",
            fix="install with pip install 'cdc-pipeline[sandbox]'",
        )
