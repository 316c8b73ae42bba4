"""A SageMaker endpoint as it is deployed: what summaries, lists and callers need to know of it."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field

from hls_foundry.endpoints.deployed import Deployed

ASYNC_PATH, SYNC_PATH = "async-invocations", "invocations"


@dataclass(frozen=True, kw_only=True)
class SageMakerEndpoint(Deployed):
    """`since`: when it was last changed; `status`: SageMaker's word for its state when it was asked."""

    target: str = "sagemaker"
    arn: str
    region: str
    status: str
    config: str  # its configuration's name
    home: str  # s3://…/, where its claim and the copies of a multi-model endpoint lie
    output: str = ""  # async: where results go
    models: dict[str, str] = field(default_factory=dict)  # multi_model: version by task
    problem: str = ""  # FailureReason

    @property
    def state(self) -> str:
        return f"{self.status} {self.kind}"

    def target_model(self, task: str) -> str | None:
        """What TargetModel has to say to reach the model of `task`; None where there is one model only."""
        return f"{task}.tar.gz" if self.kind == "multi_model" else None

    def line(self) -> str:
        return super().line() + (f"  {self.problem}" if self.problem else "")

    def calls(self, run: str, option: str = "") -> list[tuple[str, str]]:
        """By run.py, the AWS CLI, Python, and (but for async) curl with Signature Version 4."""
        task = next(iter(self.models), None)
        options = f"{f' --task {task}' if task else ''}{f' {option}' if option else ''}"
        predict = f"{run} predict SCENE.tif --endpoint {self.name}{options} --out polygons.geojson"
        calls = [("call", predict), ("AWS CLI", self._cli(task)), ("Python", self._python(task))]
        return calls if self.kind == "async" else [*calls, ("curl", self._curl(task))]

    def _cli(self, task: str | None) -> str:
        common = f"--region {self.region} --endpoint-name {self.name} --content-type image/tiff --accept application/geo+json"
        if self.kind == "async":
            return f"aws sagemaker-runtime invoke-endpoint-async {common} --input-location s3://BUCKET/SCENE.tif"
        model = f" --target-model {self.target_model(task)}" if task else ""
        return f"aws sagemaker-runtime invoke-endpoint {common}{model} --body fileb://SCENE.tif polygons.geojson"

    def _python(self, task: str | None) -> str:
        arguments = {"EndpointName": self.name, "ContentType": "image/tiff", "Accept": "application/geo+json"}
        if task:
            arguments["TargetModel"] = f"{task}.tar.gz"
        told = ", ".join(f"{key}={json.dumps(value)}" for key, value in arguments.items())
        client = f'boto3.client("sagemaker-runtime", region_name="{self.region}")'
        if self.kind == "async":
            answer = f'{client}.invoke_endpoint_async({told}, InputLocation="s3://BUCKET/SCENE.tif")["OutputLocation"]'
        else:
            answer = f'{client}.invoke_endpoint({told}, Body=open("SCENE.tif", "rb"))["Body"].read().decode()'
        return f"import boto3; print({answer})"

    def _curl(self, task: str | None) -> str:
        # The credentials stay in the environment: curl reads them from a configuration on standard input, not from its command line.
        model = f" -H 'X-Amzn-SageMaker-Target-Model: {task}.tar.gz'" if task else ""
        signed = f"--aws-sigv4 aws:amz:{self.region}:sagemaker -H 'Content-Type: image/tiff'{model} --data-binary @SCENE.tif"
        secret = (
            r"""printf 'user="%s:%s"\nheader="x-amz-security-token: %s"\n' """
            r""""$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY" "$AWS_SESSION_TOKEN" """
        )
        return f"{secret}| curl -K - {signed} {shlex.quote(self.url)}"
