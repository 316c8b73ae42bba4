"""Who calls the rehearsal: its fixed keys, keys that its STS handed out, expired ones; and how each AWS protocol refuses a caller.

Signatures are not verified. https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html and, for the other services,
https://docs.aws.amazon.com/IAM/latest/APIReference/CommonErrors.html
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qs

ACCOUNT = "123456789012"
REGION = "eu-central-1"
KEY_ID, SECRET = "AKIAREHEARSALKEY0001", "rehearsal-only"
ROLE_KEY_ID, ROLE_TOKEN = "ASIAREHEARSALROLE001", "the-role-of-a-rehearsed-container"
EXPIRED_KEY_ID, EXPIRED_TOKEN = "ASIAREHEARSALEXP0001", "expired"

Verdict = Literal["", "expired", "unknown", "missing"]
_XML = '<?xml version="1.0" encoding="UTF-8"?>\n'
QUERY_SERVICES = ("sts", "iam", "ec2", "monitoring")


@dataclass(frozen=True)
class Caller:
    """What a request says of who signed it, and for what. Empty fields where it is not signed."""

    key_id: str = ""
    region: str = ""
    service: str = ""
    token: str = ""

    def verdict(self) -> Verdict | None:
        """What can be said without asking STS; None where only that knows."""
        if not self.key_id:
            return "missing"
        if self.key_id == EXPIRED_KEY_ID or self.token == EXPIRED_TOKEN:
            return "expired"
        return "" if self.key_id in (KEY_ID, ROLE_KEY_ID) else None


def caller_of(headers: Mapping[str, str], query: str = "") -> Caller:
    """The caller by the Authorization header (Signature Version 4; names in lower case), or by a presigned URL's query."""
    given = parse_qs(query)
    scope = given.get("X-Amz-Credential", [""])[0]
    token = given.get("X-Amz-Security-Token", [""])[0] or headers.get("x-amz-security-token", "")
    authorization = headers.get("authorization", "")
    if authorization.startswith("AWS4-HMAC-SHA256"):
        scope = authorization.partition("Credential=")[2].partition(",")[0].strip()
    parts = scope.split("/")  # KEY/DATE/REGION/SERVICE/aws4_request
    return Caller(parts[0], parts[2], parts[3], token) if len(parts) == 5 else Caller(token=token)


@dataclass(frozen=True)
class Refusal:
    """A reply in the wire format of one service's protocol."""

    status: int
    headers: dict[str, str]
    body: bytes


def refusal(verdict: Verdict, service: str) -> Refusal:
    """How `service` ("s3", "sts", "sagemaker-runtime", …) answers a caller whose credentials do not suffice."""
    request = str(uuid.uuid4())
    if service == "s3":
        status, code, message = _S3[verdict]
        text = f"<Error><Code>{code}</Code><Message>{message}</Message><RequestId>{request}</RequestId></Error>"
        return Refusal(status, {"Content-Type": "application/xml", "x-amz-request-id": request}, f"{_XML}{text}".encode())
    code, message = _OTHERS[verdict]
    if service in QUERY_SERVICES:
        code = {"UnrecognizedClientException": "InvalidClientTokenId"}.get(code, code.removesuffix("Exception"))
        inner = f"<Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error><RequestId>{request}</RequestId>"
        text = f"<ErrorResponse>{inner}</ErrorResponse>"
        return Refusal(403, {"Content-Type": "text/xml", "x-amzn-RequestId": request}, text.encode())
    headers = {"Content-Type": "application/x-amz-json-1.1", "x-amzn-RequestId": request}
    if service == "sagemaker-runtime":
        return Refusal(403, {**headers, "x-amzn-ErrorType": code}, json.dumps({"message": message}).encode())
    return Refusal(400, headers, json.dumps({"__type": code, "message": message}).encode())


_S3: dict[Verdict, tuple[int, str, str]] = {
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "unknown": (403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."),
    "missing": (403, "AccessDenied", "Access Denied"),
}
_OTHERS: dict[Verdict, tuple[str, str]] = {
    "expired": ("ExpiredTokenException", "The security token included in the request is expired"),
    "unknown": ("UnrecognizedClientException", "The security token included in the request is invalid."),
    "missing": ("MissingAuthenticationTokenException", "Missing Authentication Token"),
}
