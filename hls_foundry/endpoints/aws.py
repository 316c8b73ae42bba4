"""Clients of AWS by the usual chain of credentials, and what goes wrong with it as one line that says what to do."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from hls_foundry import __version__
from hls_foundry.endpoints.settings import AwsSettings
from hls_foundry.errors import EndpointError

if TYPE_CHECKING:
    from boto3 import Session
    from botocore.exceptions import ClientError

__all__ = ["Aws", "AwsSettings", "Caller", "NoAnswer", "aws_errors", "error_code"]

CONNECT_S = 5.0
READ_S = 60.0
ATTEMPTS = 4
"""Of one call, the first included; between them botocore waits up to 20 s (mode standard)."""

LOG_IN = "run `aws sso login` or `aws configure`, or set AWS_PROFILE (in the stack file: aws.profile)"


class NoAnswer(EndpointError):
    """AWS cannot be reached from this machine."""


@dataclass(frozen=True)
class Caller:
    """Who we are: the account's twelve digits, and the ARN of the user or assumed role."""

    account: str
    arn: str


@dataclass(frozen=True)
class Aws:
    """The clients of one identity; safe to use from several threads.

    Nothing is asked of AWS before the first call. Tests and the rehearsal differ only by AWS_ENDPOINT_URL_… and the credentials
    in the environment.
    """

    settings: AwsSettings = field(default_factory=AwsSettings)
    _clients: dict[tuple[str, float, int], Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    _sessions: list[Any] = field(default_factory=list, init=False, repr=False, compare=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, init=False, repr=False, compare=False)

    def client(self, service: str, *, read_s: float = READ_S, attempts: int = ATTEMPTS) -> Any:
        """The boto3 client of `service`, one for each choice of time-out (seconds without a byte) and attempts.

        Raises EndpointError: no region, unknown profile.
        """
        key = (service, read_s, attempts)
        with self._lock:
            if key not in self._clients:
                with aws_errors(f"AWS {service}"):
                    # Not "us-east-1 for want of better", which S3 and STS would take.
                    self._clients[key] = self._session().client(service, region_name=self.region, config=_config(read_s, attempts))
            return self._clients[key]

    @property
    def region(self) -> str:
        """`region` of the settings, else AWS_DEFAULT_REGION, the profile's, or AWS_REGION. Raises EndpointError where there is none."""
        with aws_errors("AWS"):
            region = self._session().region_name or os.environ.get("AWS_REGION")
        if not region:
            raise EndpointError("AWS: no region: set aws.region in the stack file, or AWS_DEFAULT_REGION")
        return str(region)

    def caller(self) -> Caller:
        """Asks STS who we are, which any valid credentials may. Raises EndpointError."""
        with aws_errors("AWS credentials"):
            reply = self.client("sts").get_caller_identity()
        return Caller(account=reply["Account"], arn=reply["Arn"])

    def account(self) -> str:
        """The account's twelve digits. Raises EndpointError."""
        return self.caller().account

    def _session(self) -> Session:
        with self._lock:
            if not self._sessions:
                import boto3

                chosen = self.settings
                session = boto3.Session(profile_name=chosen.profile, region_name=chosen.region)
                self._sessions.append(_assuming(session, chosen) if chosen.role_arn else session)
            session = self._sessions[0]
            return session


def _config(read_s: float, attempts: int) -> Any:
    from botocore.config import Config

    return Config(
        connect_timeout=CONNECT_S,
        read_timeout=read_s,
        retries={"mode": "standard", "total_max_attempts": attempts},
        user_agent_extra=f"hls-foundry/{__version__}",
    )


def _assuming(session: Session, settings: AwsSettings) -> Session:
    """A session of the role, whose hour-long credentials are renewed before they end, on those of `session`, renewed likewise.

    https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html
    """
    import boto3
    from botocore.credentials import CredentialProvider, CredentialResolver, DeferredRefreshableCredentials
    from botocore.session import Session as CoreSession

    region = session.region_name or os.environ.get("AWS_REGION")
    asked = {"RoleArn": settings.role_arn, "RoleSessionName": settings.session_name, "ExternalId": settings.external_id}

    def assume() -> dict[str, str]:
        sts = session.client("sts", region_name=region, config=_config(READ_S, ATTEMPTS))
        given = sts.assume_role(**{key: value for key, value in asked.items() if value})["Credentials"]
        return {
            "access_key": given["AccessKeyId"],
            "secret_key": given["SecretAccessKey"],
            "token": given["SessionToken"],
            "expiry_time": given["Expiration"].isoformat(),
        }

    class AssumedRole(CredentialProvider):  # type: ignore[misc]  # botocore has no annotations
        METHOD = "assume-role"

        def load(self) -> Any:
            return DeferredRefreshableCredentials(refresh_using=assume, method=self.METHOD)

    core = CoreSession()
    core.register_component("credential_provider", CredentialResolver([AssumedRole()]))
    return boto3.Session(botocore_session=core, region_name=region)


@contextmanager
def aws_errors(what: str) -> Iterator[None]:
    """Turns what boto3 raises in the body into EndpointError `what: what is wrong: what to do`; nothing else is touched.

    The lines have no credentials, tokens or signed addresses in them.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (ClientError, BotoCoreError, Boto3Error) as error:
        # upload_file wraps the service's answer as text in an error of its own.
        cause = error.__context__ if isinstance(error, Boto3Error) and error.__context__ else error
        if isinstance(cause, ClientError):
            raise EndpointError(f"{what}: {_refusal(cause)}") from None
        raise _not_asked(what, cause) from None


def error_code(error: ClientError) -> str:
    """The code of the service's error, such as NoSuchKey; of answers without a body (HEAD) the HTTP status."""
    return str(error.response.get("Error", {}).get("Code", ""))


EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
UNKNOWN = {
    "AuthFailure", "IncompleteSignature", "InvalidAccessKeyId", "InvalidClientTokenId", "InvalidSecurity",
    "InvalidSignatureException", "InvalidToken", "MissingAuthenticationToken", "SignatureDoesNotMatch", "UnrecognizedClientException",
}  # fmt: skip
DENIED = {"AccessDenied", "AccessDeniedException", "AllAccessDisabled", "Forbidden", "NotAuthorized", "UnauthorizedOperation", "403"}
ELSEWHERE = {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect", "301"}
BUSY = {
    "BandwidthLimitExceeded", "LimitExceededException", "RequestLimitExceeded", "RequestThrottled", "SlowDown",
    "Throttling", "ThrottlingException", "TooManyRequestsException",
}  # fmt: skip
DOWN = {"InternalError", "InternalFailure", "InternalServerError", "ServiceUnavailable", "500", "502", "503", "504"}


def _refusal(error: ClientError) -> str:
    """What a service answered, and what to do."""
    code, operation = error_code(error), str(error.operation_name)
    message = " ".join(str(error.response.get("Error", {}).get("Message", "")).split())
    if code in EXPIRED:
        return f"the AWS credentials have expired: {LOG_IN} and run again"
    if code in UNKNOWN:
        return f"AWS does not know these credentials ({code}): {LOG_IN}"
    if code == "RequestTimeTooSkewed":
        return "this machine's clock is more than 15 minutes off, which AWS refuses: set the clock"
    if operation == "AssumeRole" and code in DENIED:
        return "the role of aws.role_arn cannot be assumed: its trust policy must name you, and aws.external_id if it asks for one"
    if code.startswith("KMS.") or (code in DENIED and re.search(r"\bkms\b", message, re.IGNORECASE)):
        return (
            f"the KMS key cannot be used ({_action(message) or code}): its policy must let you use it, and kms_key must name an enabled key"
        )
    if code in DENIED:
        needed = _action(message) or _permission(operation)
        return f"access denied: you need the permission {needed} (docs/aws/policy.json has all that it takes)"
    if code in ELSEWHERE:
        return f"it is in another region ({code}): set aws.region in the stack file to that region"
    if code == "NoSuchBucket":
        return "the bucket does not exist: create it, or name another in the stack file"
    if code in ("NoSuchKey", "NoSuchVersion"):
        return "there is no such object: publish it again"
    if code in BUSY:
        return f"AWS asks to slow down ({code}), also after {ATTEMPTS} attempts: run again in a minute"
    if code in DOWN:
        return f"AWS has an error of its own ({operation}: {code}), also after {ATTEMPTS} attempts: run again later"
    return f"{operation} was refused: {code}: {message[:400]}"


def _action(message: str) -> str:
    """The action that a denial names, such as s3:PutObject."""
    found = re.search(r"perform:? ([a-z0-9-]+:[A-Za-z*]+)", message)
    return found[1] if found else ""


def _permission(operation: str) -> str:
    """What some requests need is called otherwise."""
    others = {"HeadBucket": "s3:ListBucket", "ListObjectsV2": "s3:ListBucket", "HeadObject": "s3:GetObject and s3:ListBucket"}
    return others.get(operation, f"for {operation}")


def _not_asked(what: str, error: BaseException) -> EndpointError:
    """What kept us from asking, or the service from answering, and what to do."""
    from botocore import exceptions as raised

    facts: dict[str, Any] = getattr(error, "kwargs", {})
    # Credentials first: what fetches them raises connection errors of its own kind.
    if isinstance(error, raised.NoCredentialsError | raised.NoAuthTokenError):
        return EndpointError(f"{what}: no AWS credentials: {LOG_IN}")
    if isinstance(error, raised.PartialCredentialsError):
        return EndpointError(f"{what}: half of the AWS credentials is missing ({facts.get('cred_var', 'a variable')}): {LOG_IN}")
    if isinstance(error, raised.ProfileNotFound):
        profile = facts.get("profile", "?")
        return EndpointError(f"{what}: there is no profile '{profile}' in ~/.aws/config: add it (`aws configure sso`), or name another")
    if isinstance(error, raised.SSOError | raised.TokenRetrievalError | raised.LoginError):
        return EndpointError(f"{what}: the AWS sign-in has expired or was never made: run `aws sso login` (--profile NAME for a profile)")
    if isinstance(error, raised.CredentialRetrievalError | raised.MetadataRetrievalError):
        # Not its text: that may be what a credential process printed.
        return EndpointError(
            f"{what}: the AWS credentials cannot be fetched (by {facts.get('provider', 'the metadata service')}): {LOG_IN}"
        )
    if isinstance(error, raised.NoRegionError):
        return EndpointError(f"{what}: no region: set aws.region in the stack file, or AWS_DEFAULT_REGION")
    if isinstance(error, raised.FlexibleChecksumError):
        return EndpointError(f"{what}: what arrived does not have the checksum that S3 keeps for it: run again, or publish it again")
    if isinstance(error, raised.ConnectionError | raised.HTTPClientError):
        host = urlsplit(str(facts.get("endpoint_url", ""))).hostname
        return NoAnswer(f"{what}: {host or 'AWS'} does not answer ({type(error).__name__}): check the network and aws.region")
    return EndpointError(f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
