"""run.py on the stack aws-managed in a process of its own, with ZenML in a fresh home and AWS as the environment says.

    python tests/stacks/managed_session.py FILE COMMAND…

Each COMMAND is a list as JSON: run.py's arguments; all in one process, since imports take most of the time.
FILE gets a list with, for each, how run.py ended, and every request to AWS.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from aiobotocore.client import AioBaseClient
from botocore.client import BaseClient
from click.testing import CliRunner

from cli.session import start_zenml

Noted = list[tuple[str, str, dict[str, Any]]]


def note_requests(noted: Noted) -> None:
    """Have every client of this process note what it sends: boto3's, the SageMaker SDK's, and s3fs's."""
    send, send_later = BaseClient._make_api_call, AioBaseClient._make_api_call

    def sent(self: Any, operation_name: str, api_params: dict[str, Any]) -> Any:
        noted.append((self.meta.service_model.service_name, operation_name, api_params))
        return send(self, operation_name, api_params)

    async def sent_later(self: Any, operation_name: str, api_params: dict[str, Any]) -> Any:
        noted.append((self.meta.service_model.service_name, operation_name, api_params))
        return await send_later(self, operation_name, api_params)

    BaseClient._make_api_call, AioBaseClient._make_api_call = sent, sent_later


def main(file: Path, commands: list[list[str]]) -> None:
    noted: Noted = []
    reports: list[object] = []
    note_requests(noted)
    start_zenml()
    from sagemaker.telemetry import telemetry_logging
    from zenml.client import Client

    import run

    telemetry_logging._send_telemetry_request = lambda *said, **more: reports.append(said)
    content = []
    for arguments in commands:
        noted.clear()
        answer = CliRunner().invoke(run.main, arguments)
        runs = Client().list_pipeline_runs(hydrate=True).items
        content.append(
            {
                "code": answer.exit_code,
                "out": answer.stdout,
                "err": answer.stderr,
                "error": repr(answer.exception),
                "requests": list(noted),
                "stacks": [stack.name for stack in Client().list_stacks().items],
                "runs": [found.name for found in runs],
                "metadata": {key: value for found in runs for key, value in found.run_metadata.items()},
                "reports": len(reports),
            }
        )
    file.write_text(json.dumps(content, default=str))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [json.loads(command) for command in sys.argv[2:]])
