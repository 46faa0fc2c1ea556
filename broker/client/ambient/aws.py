"""AWS: a token that STS makes about a role (outbound identity federation, sts:GetWebIdentityToken).

The request has to be signed, so botocore does it, with the credentials of the workload: from variables, of the container, for
the role of a web identity file; last of the instance.  The web identity file itself is for AWS and goes nowhere else.
botocore reads the process's own variables.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from broker.client.ambient import Absent, Found, Unready, answers
from broker.client.errors import IdentityFailed
from broker.client.forks import IMPORTS
from broker.client.http import Target, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.client.ambient import Around, Outcome
    from broker.client.ambient.signals import Detector

SERVER = "http://169.254.169.254"
ENDPOINT = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
SESSION_TTL = "x-aws-ec2-metadata-token-ttl-seconds"
SESSION = "x-aws-ec2-metadata-token"
ROLE = "/latest/meta-data/iam/security-credentials/"
VENDOR = "/sys/class/dmi/id/sys_vendor"
TOKEN_S = 300
ALGORITHM = "ES384"
# Of botocore's ways to credentials, those of a workload; profiles and logins are a person's.
OURS: Final = ("env", "assume-role-with-web-identity", "container-role")
TOGETHER: Final = (
    ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
    ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"),
)

_SESSION: Final = re.compile(r"[A-Za-z0-9+/=_-]+")
_ROLE_NAME: Final = re.compile(r"[A-Za-z0-9+=,.@_-]+")  # IAM: CreateRole, RoleName


class Keys(NamedTuple):
    """Credentials for one request."""

    access: str
    secret: str
    session: str

    def __repr__(self) -> str:
        return f"<Keys {self.access}>"


def look_announced(detector: Detector, around: Around) -> Outcome:
    """Credentials that a variable announces."""
    env = around.env
    ways = (
        ("AWS_ACCESS_KEY_ID", bool(env.get("AWS_ACCESS_KEY_ID") and env.get("AWS_SECRET_ACCESS_KEY"))),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", bool(env.get("AWS_WEB_IDENTITY_TOKEN_FILE") and env.get("AWS_ROLE_ARN"))),
        ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", bool(env.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"))),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", bool(env.get("AWS_CONTAINER_CREDENTIALS_FULL_URI"))),
    )
    way = next((name for name, there in ways if there), "")
    if not way:
        return Absent(detector.looks_for, tuple(line for names in TOGETHER for line in around.half(*names)))
    region = _region(around)
    if not region:
        return Unready(
            f"AWS credentials are here ({way}), and no region: identity tokens are made in a region, never globally",
            ("AWS_REGION=eu-central-1, or where else the workload runs",),
        )
    where = f"sts:GetWebIdentityToken in {printable(region)}, with the credentials of {way}"
    return Found.by(detector, where, lambda audience: _signed(around, audience, region, None))


def _region(around: Around) -> str:
    return around.env.get("AWS_REGION") or around.env.get("AWS_DEFAULT_REGION") or ""


def look_machine(detector: Detector, around: Around) -> Outcome:
    """The instance's metadata server, in its second version alone: it answers with a session of its own."""
    if around.says("AWS_EC2_METADATA_DISABLED"):
        return Absent(detector.looks_for)
    try:
        _session(detector.title, around, around.connect_s)
    except IdentityFailed:
        return Absent(detector.looks_for, _why_silent(around))
    where = "sts:GetWebIdentityToken, with the credentials of the instance (IMDSv2)"
    return Found.by(detector, where, lambda audience: _of_instance(detector.title, around, audience))


def _why_silent(around: Around) -> tuple[str, ...]:
    try:
        with open(around.path(VENDOR), encoding="ascii", errors="replace") as file:  # noqa: PTH123
            ec2 = "Amazon EC2" in file.read(100)
    except OSError:
        ec2 = False
    return (
        (
            "this is EC2, and its metadata server does not answer: in a container the hop limit must be 2",
            "aws ec2 modify-instance-metadata-options --instance-id … --http-put-response-hop-limit 2 --http-endpoint enabled",
        )
        if ec2
        else ()
    )


# The instance's credentials (EC2: "Use the Instance Metadata Service")


def _server(around: Around) -> str:
    if around.env.get(ENDPOINT):
        return answers.address(around, ENDPOINT, metadata=True).rstrip("/")
    return around.addresses.get("aws", SERVER)


def _session(who: str, around: Around, within_s: float | None = None) -> str:
    target = Target(_server(around) + "/latest/api/token", proxied=False, plain=True)
    bounds = {"within_s": within_s, "connect_s": around.connect_s}
    answer = answers.asked(around, who, target, "PUT", {SESSION_TTL: "60"}, b"", **bounds)
    text = answer.body.decode("ascii", "replace").strip()
    if answer.status != 200:
        raise answers.refused(who, answer)
    # The mark of the real one: a page with status 200 does not have it.
    if SESSION_TTL not in answer.headers or not _SESSION.fullmatch(text):
        raise answers.failed(who, "the answer is not the metadata server's", "something else listens at its address")
    return text


def _read(who: str, around: Around, session: str, path: str) -> str:
    """A document of the metadata server.  Raises `IdentityFailed`."""
    target = Target(_server(around) + path, proxied=False, plain=True)
    answer = answers.asked(around, who, target, headers={SESSION: session}, connect_s=around.connect_s)
    if answer.status == 404 and path == ROLE:
        raise answers.failed(who, "no role is attached to this instance", "attach an instance profile")
    if answer.status != 200:
        raise answers.refused(who, answer, hide=(session,))
    return answer.body.decode("ascii", "replace").strip()


def _of_instance(who: str, around: Around, audience: str) -> str:
    session = _session(who, around)
    role = _read(who, around, session, ROLE)
    if not _ROLE_NAME.fullmatch(role):
        raise answers.failed(who, "its metadata server names no role")
    document = _read(who, around, session, ROLE + role)
    region = _region(around) or _read(who, around, session, "/latest/meta-data/placement/region")
    try:
        body = json.loads(document)
        keys = Keys(body["AccessKeyId"], body["SecretAccessKey"], body["Token"])
    except (ValueError, LookupError, TypeError):
        raise answers.failed(who, "the instance's role has no credentials now", passing=True) from None
    return _signed(around, audience, region, keys)


# The signed request


def _signed(around: Around, audience: str, region: str, keys: Keys | None) -> str:
    """A token from STS.  Without `keys`, botocore finds them."""
    try:
        with IMPORTS:
            import botocore.exceptions as wrong
            import botocore.session
            from botocore.config import Config
            from botocore.parsers import ResponseParserError
    except ImportError:
        raise IdentityFailed("AWS needs a package that is not installed", answers.install("aws")) from None
    session: Any = botocore.session.Session()
    once: Any = {"total_max_attempts": 1}  # whoever wants a token asks again, and knows for how long
    session.set_default_client_config(Config(connect_timeout=around.within_s, read_timeout=around.within_s, retries=once))
    session.set_config_variable("sts_regional_endpoints", "regional")
    given = {}
    try:
        if keys is not None:
            given = {"aws_access_key_id": keys.access, "aws_secret_access_key": keys.secret, "aws_session_token": keys.session}
        else:
            resolver = session.get_component("credential_provider")
            for method in [each.METHOD for each in resolver.providers if each.METHOD not in OURS]:
                resolver.remove(method)
        sts = session.create_client("sts", region_name=region, **given)
        answer = sts.get_web_identity_token(Audience=[audience], SigningAlgorithm=ALGORITHM, DurationSeconds=TOKEN_S)
    except wrong.ClientError as error:
        raise _refused(error, audience) from None
    except ResponseParserError:  # its text is what came, which may be half a token
        raise answers.failed("AWS", "the answer is none of STS's", "a proxy or a page may stand in between") from None
    except (wrong.BotoCoreError, wrong.HTTPClientError, OSError, ValueError) as error:
        network = isinstance(error, wrong.HTTPClientError | wrong.EndpointConnectionError)
        raise answers.failed("AWS", answers.harmless(str(error)), passing=network) from None
    return answers.jwt("AWS", str(answer.get("WebIdentityToken", "")))


def _refused(error: Any, audience: str) -> IdentityFailed:
    """STS's errors, with what each means to the workload (STS API: GetWebIdentityToken, Errors)."""
    told: Mapping[str, Any] = error.response.get("Error", {})
    code = str(told.get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    words = f"{printable(code)}: {answers.harmless(str(told.get('Message', '')))}"
    hints = next((lines for start, lines in ERRORS.items() if code.startswith(start)), ())
    passing = status >= 500 or status == 429 or "Throttl" in code
    return answers.failed("AWS", words, *(line.replace("AUDIENCE", printable(audience)) for line in hints), passing=passing)


ERRORS = {
    "OutboundWebIdentityFederationDisabled": (
        "this account has not switched outbound identity federation on; its administrator does, once:",
        "aws iam enable-outbound-web-identity-federation",
    ),
    "AccessDenied": (
        "the role needs Allow sts:GetWebIdentityToken on *, where sts:IdentityTokenAudience may be AUDIENCE",
    ),
    "SessionDurationEscalation": (
        f"the credentials here end before a token of {TOKEN_S} s would: start the session anew",
    ),
    "ExpiredToken": ("the credentials here have ended: start the session anew",),
    "JWTPayloadSizeExceeded": ("the role has too many tags for a token",),
}  # fmt: skip
