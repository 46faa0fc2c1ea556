"""`httpx_auth` and `requests_auth`: over https alone, another credential after a 401, and no more exchanges than that takes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
import requests

from broker.client import Misused, Unreachable
from tests.client.test_broker import ASKED, broker_of, past_renewal
from tests.support.place import Place, Reply, Server


class Resource:
    """A resource server that admits a bearer token the `admits`th time it is asked."""

    def __init__(self, admits: int = 1) -> None:
        self.seen: list[str] = []
        self._admits = admits
        self.server = Server(self._answer)

    def _answer(self, handler: object, _: bytes) -> None:
        self.seen.append(handler.headers["Authorization"])
        handler.send_response(200 if len(self.seen) >= self._admits else 401)
        handler.send_header("Content-Length", "0")
        handler.end_headers()


@pytest.fixture
def resource() -> Iterator[Resource]:
    served = Resource()
    yield served
    served.server.close()


def test_httpx_auth_sends_the_credential_and_gets_another_after_a_401(place: Place, resource: Resource) -> None:
    broker = broker_of(place)
    resource._admits = 2
    with httpx2.Client(auth=broker.httpx_auth(*ASKED), trust_env=False) as client:
        assert client.get(resource.server.url).status_code == 200
    assert len(set(resource.seen)) == 2
    assert all(header.startswith("Bearer eyJ") for header in resource.seen)


def test_httpx_auth_in_tasks(place: Place, resource: Resource) -> None:
    broker = broker_of(place)
    resource._admits = 2

    async def story() -> int:
        async with httpx2.AsyncClient(auth=broker.httpx_auth(*ASKED), trust_env=False) as client:
            return (await client.get(resource.server.url)).status_code

    assert asyncio.run(story()) == 200
    assert len(set(resource.seen)) == 2


def test_a_401_while_the_broker_is_away_is_the_answer_and_ends_nothing(place: Place, resource: Resource) -> None:
    """A resource server that cannot fetch the broker's keys may say 401 to what is valid."""
    broker = broker_of(place, patience_s=0.5)
    first = broker.token(*ASKED)
    resource._admits = 2
    place.front.script += [Reply(drop=True)] * 20
    with httpx2.Client(auth=broker.httpx_auth(*ASKED), trust_env=False) as client:
        assert client.get(resource.server.url).status_code == 401
    assert broker.token(*ASKED) == first


def test_a_401_in_an_outage_does_not_wait_for_a_renewal_that_is_under_way(place: Place, resource: Resource) -> None:
    broker = broker_of(place, patience_s=0.5)
    first = broker.token(*ASKED)
    place.front.script += [Reply(hold_s=9, drop=True), *[Reply(drop=True)] * 20]
    past_renewal(broker)
    assert broker.token(*ASKED) == first
    resource._admits = 2
    with requests.Session() as session:
        session.trust_env, session.auth = False, broker.requests_auth(*ASKED)
        assert [session.get(resource.server.url).status_code for _ in range(2)] == [401, 200]
    assert set(resource.seen) == {f"Bearer {first}"}


@pytest.mark.parametrize("library", ["httpx", "requests"])
def test_a_server_that_always_says_401_does_not_drive_exchanges(place: Place, resource: Resource, library: str) -> None:
    broker = broker_of(place)
    resource._admits = 1000
    send = {
        "httpx": lambda: httpx2.get(resource.server.url, auth=broker.httpx_auth(*ASKED), trust_env=False),
        "requests": lambda: requests.get(resource.server.url, auth=broker.requests_auth(*ASKED), timeout=5),
    }[library]
    assert [send().status_code for _ in range(20)] == [401] * 20
    assert len(place.front.exchanges()) == 2


def test_after_an_outage_a_401_ends_the_credential_as_ever(place: Place, resource: Resource) -> None:
    broker = broker_of(place, patience_s=0.3)
    place.front.script += [Reply(drop=True)] * 20
    with pytest.raises(Unreachable):
        broker.token(*ASKED)
    place.front.script.clear()
    past_renewal(broker)
    revoked = broker.token(*ASKED)
    resource._admits = 2
    with httpx2.Client(auth=broker.httpx_auth(*ASKED), trust_env=False) as client:
        assert client.get(resource.server.url).status_code == 200
    assert broker.token(*ASKED) != revoked


def test_requests_auth_forgets_what_was_not_accepted(place: Place, resource: Resource) -> None:
    broker = broker_of(place)
    resource._admits = 2
    with requests.Session() as session:
        session.trust_env = False
        session.auth = broker.requests_auth(*ASKED)
        assert [session.get(resource.server.url).status_code for _ in range(3)] == [401, 200, 200]
    assert len(set(resource.seen)) == 2


@pytest.mark.parametrize("library", ["httpx", "requests"])
def test_a_credential_does_not_travel_in_the_clear(place: Place, library: str) -> None:
    broker = broker_of(place)
    send = {
        "httpx": lambda url: httpx2.get(url, auth=broker.httpx_auth(*ASKED), trust_env=False),
        "requests": lambda url: requests.get(url, auth=broker.requests_auth(*ASKED), timeout=5),
    }[library]
    with pytest.raises(Misused, match="not https"):
        send("http://payments.acme.example/x")
    assert place.front.requests == []


def test_many_requests_with_a_revoked_credential_cost_one_exchange(place: Place, resource: Resource) -> None:
    """Half of them hear 401 when another has long fetched the next credential."""
    broker = broker_of(place)
    revoked = f"Bearer {broker.token(*ASKED)}"
    first_half, all_out = threading.Barrier(5), threading.Barrier(10)

    def answer(handler: object, _: bytes) -> None:
        bad = handler.headers["Authorization"] == revoked
        if bad and handler.path == "/late":
            all_out.wait(20)
            late.wait(20)
        elif bad:
            all_out.wait(20)
        handler.send_response(401 if bad else 200)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    def ask(path: str) -> int:
        with httpx2.Client(auth=broker.httpx_auth(*ASKED), trust_env=False, timeout=30) as client:
            code = client.get(f"{served.url}{path}").status_code
        if path == "/soon" and first_half.wait(20) == 0:
            late.set()
        return code

    late, served = threading.Event(), Server(answer)
    with ThreadPoolExecutor(10) as pool:
        codes = list(pool.map(ask, ["/soon"] * 5 + ["/late"] * 5))
    served.close()
    assert codes == [200] * 10
    assert len(place.front.exchanges()) == 2


@pytest.mark.parametrize("library", ["httpx", "requests"])
def test_a_401_of_another_host_costs_nothing(place: Place, resource: Resource, library: str) -> None:
    """A redirect leaves the credential out, so its answer says nothing about it."""
    broker = broker_of(place)
    stranger = Resource(admits=99)

    def answer(handler: object, _: bytes) -> None:
        handler.send_response(302)
        handler.send_header("Location", stranger.server.url.replace("127.0.0.1", "localhost"))
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    first = Server(answer)
    if library == "httpx":
        with httpx2.Client(auth=broker.httpx_auth(*ASKED), trust_env=False, follow_redirects=True) as client:
            assert [client.get(first.url).status_code for _ in range(2)] == [401, 401]
    else:
        with requests.Session() as session:
            session.trust_env, session.auth = False, broker.requests_auth(*ASKED)
            assert [session.get(first.url).status_code for _ in range(2)] == [401, 401]
    first.close()
    stranger.server.close()
    assert stranger.seen == [None, None]
    assert len(place.front.exchanges()) == 1


def test_scopes_that_can_be_read_once_are_read_once(place: Place, resource: Resource) -> None:
    broker = broker_of(place)
    auth = broker.httpx_auth("payments", iter(["deploy:write"]))
    with httpx2.Client(auth=auth, trust_env=False) as client:
        assert [client.get(resource.server.url).status_code for _ in range(2)] == [200, 200]
    assert len(set(resource.seen)) == 1


def test_a_body_that_has_gone_is_not_sent_again(place: Place, resource: Resource) -> None:
    broker = broker_of(place)
    resource._admits = 2
    with httpx2.Client(auth=broker.httpx_auth(*ASKED), trust_env=False) as client:
        codes = [client.post(resource.server.url, content=iter([b"a", b"b"])).status_code for _ in range(2)]
    assert codes == [401, 200]
    assert len(set(resource.seen)) == 2
