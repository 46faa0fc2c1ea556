"""Clouds: Google's metadata server, Azure's identity endpoints and Entra, AWS's STS with its ways to credentials."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.support.platforms_make import Make, Platform
from tests.support.platforms_service import Reply, Seen, Service

REGISTERED = "api://broker"  # the one application that Entra knows
HEADER = "853b9a84-5bfa-4b22-a3f3-0b9a43d9ad8a"
TENANT = "7d6e5f4a-3b2c-4d1e-9f0a-8b7c6d5e4f3a"
CLIENT = "c0ffee00-1a2b-4c3d-8e4f-5a6b7c8d9e0f"


# Google


def _metadata(make: Make) -> Service:
    def answer(seen: Seen) -> Reply:
        marked = {"Metadata-Flavor": "Google"}
        if seen.headers.get("metadata-flavor") != "Google" or "x-forwarded-for" in seen.headers:
            return Reply(403, b"Your client does not have permission", {"Content-Type": "text/html"})
        if seen.path == "/":
            return Reply(200, b"computeMetadata/\n", marked)
        if seen.path != "/computeMetadata/v1/instance/service-accounts/default/identity":
            return Reply(404, b"<html>not found</html>", marked)
        if not seen.query.get("audience"):
            return Reply(400, b"non-empty audience parameter required", marked)
        return Reply.text(make.token(seen.query["audience"]), Metadata_Flavor="Google")

    return make.service(answer)


def cloud_run(make: Make) -> Platform:
    service = _metadata(make)
    env = {**make.base, "K_SERVICE": "payments", "GCE_METADATA_HOST": service.host}
    return Platform("google", env, service=service)


def compute_engine(make: Make) -> Platform:
    service = _metadata(make)
    return Platform("google", make.base, addresses={"google": service.url}, in_process=True, service=service)


# Azure


def _entra(make: Make, resource: str, **names: str) -> Reply:
    if resource not in {REGISTERED, CLIENT}:
        words = f"AADSTS500011: The resource principal named {resource} was not found in the tenant named acme."
        return Reply.json({"error": "invalid_resource", "error_description": words}, 400)
    token = make.token(resource)
    return Reply.json({"access_token": token, "expires_on": "1795586400", "token_type": "Bearer", **names}, token=token)


def _azure(make: Make, service: Service, env: dict[str, str], **more: Any) -> Platform:
    return Platform("azure", {**make.base, "BROKER_IDENTITY_AUDIENCE": REGISTERED, **env}, service=service, **more)


def _endpoint(make: Make, header: str, version: str) -> Service:
    def answer(seen: Seen) -> Reply:
        if seen.headers.get(header) != HEADER:
            return Reply.json({"statusCode": 401, "message": "the header is missing or wrong"}, 401)
        if seen.query.get("api-version") != version:
            return Reply.json({"statusCode": 400, "message": "unsupported api-version"}, 400)
        return _entra(make, seen.query.get("resource", ""))

    return make.service(answer)


def app_service(make: Make) -> Platform:
    service = _endpoint(make, "x-identity-header", "2019-08-01")
    return _azure(make, service, {"IDENTITY_ENDPOINT": f"{service.url}/msi/token", "IDENTITY_HEADER": HEADER})


def app_service_old(make: Make) -> Platform:
    service = _endpoint(make, "secret", "2017-09-01")
    return _azure(make, service, {"MSI_ENDPOINT": f"{service.url}/MSI/token/", "MSI_SECRET": HEADER})


def aks(make: Make) -> Platform:
    """The file's token is for Entra; whoever finds it elsewhere found a leak (`more` is that token)."""
    file = make.file("token", make.folder / "azure-identity-token", "api://AzureADTokenExchange")

    def answer(seen: Seen) -> Reply:
        form = seen.form
        good = {
            "grant_type": "client_credentials",
            "client_id": CLIENT,
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            "client_assertion": file.read_text(),
        }
        if seen.path != f"/{TENANT}/oauth2/v2.0/token" or any(form.get(name) != value for name, value in good.items()):
            words = "AADSTS700213: No matching federated identity record found for presented assertion."
            return Reply.json({"error": "invalid_client", "error_description": words}, 401)
        return _entra(make, form.get("scope", "").removesuffix("/.default"))

    service = make.service(answer)
    env = {
        "AZURE_AUTHORITY_HOST": f"{service.url}/", "AZURE_TENANT_ID": TENANT, "AZURE_CLIENT_ID": CLIENT,
        "AZURE_FEDERATED_TOKEN_FILE": str(file),
    }  # fmt: skip
    return _azure(make, service, env, more=file.read_text())


def azure_machine(make: Make) -> Platform:
    def answer(seen: Seen) -> Reply:
        if seen.headers.get("metadata", "").lower() != "true":
            words = {"error": "invalid_request", "error_description": "Required metadata header not specified"}
            return Reply.json(words, 400)
        if seen.path == "/metadata/instance":
            return Reply.json({"compute": {"azEnvironment": "AzurePublicCloud", "vmId": "02aa"}, "network": {}})
        if seen.path != "/metadata/identity/oauth2/token" or seen.query.get("api-version") != "2018-02-01":
            return Reply.json({"error": "Not found"}, 404)
        return _entra(make, seen.query.get("resource", ""), client_id=CLIENT)

    service = make.service(answer)
    return _azure(make, service, {}, addresses={"azure": service.url}, in_process=True)


# AWS


ACCESS, SECRET, SESSION = "AKIDEXAMPLE", "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY", "session-of-the-role"
REGION = "eu-central-1"


def _sts(make: Make, leaves_out: str = "") -> Service:
    """STS of one region: verifies the signature, knows two acts.  `service.more` may hold an error to answer with."""

    def answer(seen: Seen) -> Reply:
        form = {name: values[-1] for name, values in parse_qs(seen.body.decode()).items()}
        if form.get("Action") == "AssumeRoleWithWebIdentity":
            return _xml("AssumeRoleWithWebIdentity", f"<Credentials>{_credentials_xml()}</Credentials>")
        if not _signed_truly(seen):
            return sts_error("SignatureDoesNotMatch", "The request signature we calculated does not match", 403)
        if form.get("Action") != "GetWebIdentityToken" or form.get("SigningAlgorithm") not in {"ES384", "RS256"}:
            return sts_error("ValidationError", "no such action", 400)
        token = make.token(form["Audience.member.1"])
        inner = f"<WebIdentityToken>{token}</WebIdentityToken><Expiration>2026-11-24T12:05:00Z</Expiration>"
        return _xml("GetWebIdentityToken", inner)

    return make.service(answer)


def _xml(act: str, inner: str) -> Reply:
    body = (
        f'<{act}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><{act}Result>{inner}</{act}Result>'
        f"<ResponseMetadata><RequestId>1</RequestId></ResponseMetadata></{act}Response>"
    )
    return Reply(200, body.encode(), {"Content-Type": "text/xml"})


def sts_error(code: str, message: str, status: int) -> Reply:
    """An error as STS words it."""
    error = f"<Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>"
    body = f'<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">{error}<RequestId>1</RequestId></ErrorResponse>'
    return Reply(status, body.encode(), {"Content-Type": "text/xml"})


def _signed_truly(seen: Seen) -> bool:
    """AWS Signature Version 4, computed anew from what was signed."""
    fields = dict(part.strip().split("=", 1) for part in seen.headers.get("authorization", " ").partition(" ")[2].split(",") if part)
    if not fields.get("Credential", "").startswith(f"{ACCESS}/"):
        return False
    request = AWSRequest("POST", f"http://{seen.headers['host']}{seen.path}", data=seen.body)
    for name in fields["SignedHeaders"].split(";"):
        request.headers[name] = seen.headers[name]
    request.context["timestamp"] = seen.headers["x-amz-date"]
    signer = SigV4Auth(Credentials(ACCESS, SECRET), "sts", REGION)
    return signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request) == fields["Signature"]


def _expiration() -> str:
    return (dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _credentials() -> dict[str, str]:
    return {"AccessKeyId": ACCESS, "SecretAccessKey": SECRET, "Token": SESSION, "Expiration": _expiration()}


def _credentials_xml() -> str:
    members = {**_credentials(), "SessionToken": SESSION}
    return "".join(f"<{name}>{value}</{name}>" for name, value in members.items() if name != "Token")


def _aws(make: Make, env: dict[str, str], **more: Any) -> Platform:
    sts = _sts(make)
    base = {**make.base, "AWS_ENDPOINT_URL_STS": sts.url, "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"}
    return Platform("aws-sts", {**base, **env}, service=sts, **more)


def aws_keys(make: Make) -> Platform:
    """A Lambda function: its role's keys are in its variables."""
    keys = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": SESSION}
    return _aws(make, {"AWS_LAMBDA_FUNCTION_NAME": "payments", "AWS_REGION": REGION, **keys})


def aws_container(make: Make) -> Platform:
    def answer(seen: Seen) -> Reply:
        return Reply.json(_credentials()) if seen.headers.get("authorization") == HEADER else Reply.json({"message": "no"}, 403)

    agent = make.service(answer)
    where = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{agent.url}/v1/credentials", "AWS_CONTAINER_AUTHORIZATION_TOKEN": HEADER}
    return _aws(make, {"AWS_REGION": REGION, **where}, more=agent)


def aws_web_identity(make: Make) -> Platform:
    """A pod with IRSA; the file's token is for AWS (`more` is that token)."""
    file = make.file("token", make.folder / "eks-token", "sts.amazonaws.com")
    env = {"AWS_WEB_IDENTITY_TOKEN_FILE": str(file), "AWS_ROLE_ARN": "arn:aws:iam::111122223333:role/deployer", "AWS_REGION": REGION}
    return _aws(make, env, more=file.read_text())


def _imds(make: Make) -> Service:
    documents: dict[str, Callable[[], Reply]] = {
        "/latest/meta-data/iam/security-credentials/": lambda: Reply.text("deployer"),
        "/latest/meta-data/iam/security-credentials/deployer": lambda: Reply.json({"Code": "Success", **_credentials()}),
        "/latest/meta-data/placement/region": lambda: Reply.text(REGION),
    }

    def answer(seen: Seen) -> Reply:
        if (seen.method, seen.path) == ("PUT", "/latest/api/token"):
            ttl = seen.headers.get("x-aws-ec2-metadata-token-ttl-seconds", "")
            return Reply.text("AQAEsession==", X_Aws_Ec2_Metadata_Token_Ttl_Seconds=ttl) if ttl else Reply(400, b"")
        if seen.headers.get("x-aws-ec2-metadata-token") != "AQAEsession==":
            return Reply(401, b"")
        return documents.get(seen.path, lambda: Reply(404, b""))()

    return make.service(answer)


def aws_instance(make: Make) -> Platform:
    """An instance: only the second version of the metadata service answers (`more` is its service)."""
    imds = _imds(make)
    return _aws(make, {}, addresses={"aws": imds.url}, in_process=True, more=imds)


def aws_instance_named(make: Make) -> Platform:
    imds = _imds(make)
    return _aws(make, {"AWS_EC2_METADATA_SERVICE_ENDPOINT": imds.url}, more=imds)
