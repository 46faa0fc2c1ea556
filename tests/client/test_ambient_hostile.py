"""Variables that anybody in the job can set: they choose where to ask, and nothing secret goes where it should not."""

from __future__ import annotations

import pytest

from broker.client import ambient
from broker.client.errors import IdentityFailed, IdentityMissing, Unreachable
from broker.client.http import Target, request
from tests.client.conftest import Stand
from tests.support.platforms_service import Reply, Seen, Service

AUDIENCE = "https://broker.acme.example/prod"
# 127.0.0.2 stands for a host of somebody else: http may not go there.
ADDRESSES = [
    "http://127.0.0.2:PORT/x?a=1",
    "https://user:hunter2@127.0.0.1:PORT/x",
    "http://user:hunter2@127.0.0.1:PORT/x",
    "http://127.0.0.1:PORT@127.0.0.2:PORT/",
    "http://127.0.0.1:PORT/x\r\nX-Injected: 1",
    "http://127.0.0.1:PORT/a b",
    "http://127.0.0.1:PORT/\u202e",
    "http://[::1",
    "http://127.0.0.1:99999/",
    "http:///x",
    "file:///etc/passwd",
    "ftp://127.0.0.1/x",
    "unix:///run/x.sock",
    "//127.0.0.1:PORT/x",
    "127.0.0.1:PORT",
    " ",
]
METADATA = [*ADDRESSES, "http://10.0.0.1:PORT/x", "http://169.254.evil.example/x", "http://169.254.1.1.evil.example/x"]


@pytest.mark.parametrize(
    ("preset", "way", "variable", "address"),
    [
        *(("github-actions", "request", "ACTIONS_ID_TOKEN_REQUEST_URL", each) for each in [*ADDRESSES, "http://169.254.169.254/x"]),
        *(("azure-devops", "request", "SYSTEM_OIDCREQUESTURI", each) for each in [*ADDRESSES, "http://169.254.169.254/x"]),
        *(("azure", "aks", "AZURE_AUTHORITY_HOST", each) for each in [*ADDRESSES, "http://169.254.169.254/x"]),
        *(("azure", "endpoint", "IDENTITY_ENDPOINT", each) for each in METADATA),
        *(("azure", "old endpoint", "MSI_ENDPOINT", each) for each in METADATA),
    ],
)
def test_a_bearer_goes_to_no_address_that_is_wrong(preset: str, way: str, variable: str, address: str, stand: Stand) -> None:
    job = stand(preset, way)
    assert job.service is not None
    around = job.around(env={**job.env, variable: address.replace("PORT", str(job.service.port))})
    found = ambient.find(around)
    with pytest.raises(IdentityFailed) as caught:
        found.fetch(AUDIENCE)
    assert job.service.seen == []
    assert str(caught.value) == f"{variable} holds no https URL of a service: nothing is sent there"
    assert "hunter2" not in f"{caught.value!r} {caught.value.hints} {found!r}"


@pytest.mark.parametrize("value", ["x\r\nX-Injected: 1", "x\ny", "x\x00y", "schlüssel-des-jobs", "\x1b[31mred-of-the-job"])
@pytest.mark.parametrize(
    ("preset", "way", "variable"),
    [
        ("github-actions", "request", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"),
        ("azure-devops", "request", "SYSTEM_ACCESSTOKEN"),
        ("azure", "endpoint", "IDENTITY_HEADER"),
    ],
)
def test_a_secret_that_would_break_out_of_its_header_is_not_sent(
    preset: str, way: str, variable: str, value: str, stand: Stand
) -> None:
    job = stand(preset, way)
    assert job.service is not None
    found = ambient.find(job.around(env={**job.env, variable: value}))
    with pytest.raises(IdentityFailed) as caught:
        found.fetch(AUDIENCE)
    assert job.service.seen == []
    assert str(caught.value) == f"{variable} holds nothing that fits into a header"


@pytest.mark.parametrize("host", ["user:hunter2@HOST", "HOST\r\nX: 1", "a b", "[::1", "HOST:1:2", "\u202e"])
def test_a_metadata_host_that_is_none_is_asked_nothing(host: str, stand: Stand) -> None:
    job = stand("google", "announced")
    assert job.service is not None
    around = job.around(env={"GCE_METADATA_HOST": host.replace("HOST", job.service.host)})
    outcomes = [outcome for detector, outcome in ambient.survey(around) if detector.name == "google"]
    assert all(isinstance(each, ambient.Absent) for each in outcomes)
    assert job.service.seen == []


@pytest.mark.parametrize("endpoint", ["http://user:hunter2@127.0.0.1:PORT", "http://127.0.0.2:PORT", "file:///x", "http://10.0.0.1"])
def test_an_aws_endpoint_that_is_none_is_asked_nothing(endpoint: str, stand: Stand) -> None:
    job = stand("aws-sts", "machine named")
    address = endpoint.replace("PORT", str(job.more.port))
    around = job.around(env={"AWS_EC2_METADATA_SERVICE_ENDPOINT": address})
    assert isinstance({d.rank: o for d, o in ambient.survey(around) if d.name == "aws-sts"}[5], ambient.Absent)
    assert job.more.seen == []


HELD = ["BROKER_ID_TOKEN", "MODAL_IDENTITY_TOKEN", "SPACELIFT_OIDC_TOKEN", "VERCEL_OIDC_TOKEN"]


@pytest.mark.parametrize("variable", HELD)
def test_a_variable_that_nobody_expanded_is_not_sent_and_nobody_else_steps_in(variable: str, stand: Stand) -> None:
    machine = stand("google", "machine")
    assert machine.service is not None
    with pytest.raises(IdentityMissing) as caught:
        ambient.find(machine.around(env={**machine.env, variable: "$BROKER_ID_TOKEN"}))
    assert str(caught.value) == f"{variable} holds the name of a variable, and nobody has put its value there"
    assert machine.service.seen == []


@pytest.mark.parametrize("variable", HELD)
@pytest.mark.parametrize("value", ["$", "$a.b.c", "a.b", "a.b.c.d", "a.b.c\nX: 1", "a.ü.c", "a..c", "{}", "secret-of-somebody"])
def test_a_variable_that_holds_no_token_is_not_sent(variable: str, value: str) -> None:
    found = ambient.find(ambient.Around({variable: value}))
    with pytest.raises(IdentityFailed) as caught:
        found.fetch(AUDIENCE)
    assert str(caught.value) == f"{variable} gave no identity token: what came is no JWT"


@pytest.mark.parametrize("audience", ["https://b.example/?a=1&audience=other#x", "ü & Ω", "a\r\nb", "x" * 2000])
def test_an_audience_stays_one_parameter(audience: str, stand: Stand) -> None:
    job = stand("github-actions")
    assert job.service is not None
    ambient.find(job.around()).fetch(audience)
    assert job.service.seen[-1].query == {"api-version": "2.0", "audience": audience}


def test_an_audience_for_a_program_is_one_word(stand: Stand) -> None:
    job = stand("buildkite")
    assert job.program is not None
    ambient.find(job.around()).fetch("--lifetime 86400; $(id)")
    assert job.program.words[-1][:4] == ["oidc", "request-token", "--audience", "--lifetime 86400; $(id)"]


@pytest.mark.parametrize("uri", ["http://10.0.0.1/x", "http://evil.example/x", "http://user:hunter2@10.0.0.1/", "file:///etc/passwd"])
def test_a_containers_credentials_are_asked_for_nearby_only(uri: str, stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    job = stand("aws-sts", "container")
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri)
    with pytest.raises(IdentityFailed) as caught:
        ambient.find(job.around(), "aws-sts").fetch(AUDIENCE)
    assert job.more.seen == []
    assert "hunter2" not in str(caught.value)


def test_no_metadata_request_goes_through_a_proxy(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """127.0.0.2 is not among the hosts that need no NO_PROXY, as a link-local address is not."""
    proxied: list[Seen] = []

    def proxy(seen: Seen) -> Reply:
        proxied.append(seen)
        return Reply(502, b"")

    through = Service(proxy)
    servers = [Service(job.service.answer if job.service and preset != "aws-sts" else job.more.answer, host="127.0.0.2")
               for preset, job in ((each, stand(each, "machine")) for each in ("google", "azure", "aws-sts"))]  # fmt: skip
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, through.url)
    monkeypatch.setenv("no_proxy", "")
    try:
        addresses = dict(zip(("google", "azure", "aws"), (each.url for each in servers), strict=True))
        around = ambient.Around({}, addresses=addresses)
        found = {detector.name: outcome for detector, outcome in ambient.survey(around) if isinstance(outcome, ambient.Found)}
        assert set(found) == {"google", "azure", "aws-sts"}
        found["google"].fetch(AUDIENCE)
        found["azure"].fetch("api://broker")
        assert proxied == []
        with pytest.raises(IdentityFailed):
            found["aws-sts"].fetch(AUDIENCE)
        assert not [seen for seen in proxied if seen.path.startswith("/latest")], "STS is beyond the proxy, the machine is not"
        assert not [seen for server in servers for seen in server.seen if "x-forwarded-for" in seen.headers]
        proxied.clear()
        with pytest.raises(Unreachable, match=r"the proxy 127\.0\.0\.1 lets nobody through"):
            request(Target(servers[0].url.replace("http://", "https://")))
    finally:
        for each in (*servers, through):
            each.close()
