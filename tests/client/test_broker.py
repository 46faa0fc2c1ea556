"""`Broker`: one exchange however many ask, renewal before the end, service while the broker is away, an end with a refusal."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jwt
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from broker.client import Broker, ClientError, Misused, Refused, Unreachable
from broker.client.broker import KEPT_MAX
from broker.client.kept import MARGIN_S, Kept
from tests.support.place import Place, Reply

ASKED = ("payments", "deploy:write")


def broker_of(place: Place, **options: object) -> Broker:
    return Broker(place.front.url, "prod", subject_token=lambda audience: place.token(aud=audience, **place.claims), **options)


def counted(place: Place, broker: Broker) -> int:
    """Exchanges so far, when no flight is left."""
    for kept in broker._kept.values():
        flight = kept.flight
        if flight is not None:
            flight.exception(20)
    return len(place.front.exchanges())


def past_renewal(broker: Broker) -> None:
    """As if two thirds of the life had gone by."""
    for kept in broker._kept.values():
        kept.ask_at = 0.0


def test_a_thousand_callers_at_once_cause_one_exchange(place: Place) -> None:
    broker = broker_of(place)
    place.front.script.append(Reply(503, {"Retry-After": "1"}))  # so that all of them wait for the same flight
    start = threading.Barrier(200)

    def threaded(number: int) -> str:
        if number < 200:
            start.wait(30)
        return broker.token(*ASKED)

    async def tasks() -> list[str]:
        return await asyncio.gather(*(broker.token_async(*ASKED) for _ in range(500)))

    with ThreadPoolExecutor(250) as pool:
        waiting = [pool.submit(threaded, number) for number in range(500)]
        tokens = {*asyncio.run(tasks()), *(future.result(30) for future in waiting)}
    assert len(tokens) == 1
    assert len(place.front.exchanges()) == 2  # the one that heard 503, and the one


def test_different_wishes_are_different_credentials(place: Place) -> None:
    broker = broker_of(place)
    write, read = broker.token("payments", "deploy:write"), broker.token("payments", "releases:read")
    both = broker.credential("payments", ["releases:read", "deploy:write"])
    assert len({write, read, both.token}) == 3
    assert broker.credential("payments", "deploy:write releases:read") is both
    assert set(both.scope) == {"deploy:write", "releases:read"}
    assert both.audience == ("https://payments.acme.example",)
    assert both.service_account == "svc-payments-deploy"


def test_renewal_happens_beside_and_with_a_new_identity_token(place: Place) -> None:
    broker = broker_of(place)
    first = broker.token(*ASKED)
    past_renewal(broker)
    assert broker.token(*ASKED) == first  # nobody waits for a renewal
    assert counted(place, broker) == 2
    assert broker.token(*ASKED) != first
    presented = [form["subject_token"][0] for form in place.front.exchanges()]
    assert len(set(presented)) == 2


def test_a_renewal_that_fails_beside_is_logged_and_no_other_failure(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "broker.client")
    broker = broker_of(place, patience_s=0.5)
    place.front.script += [Reply(drop=True)] * 20
    with pytest.raises(Unreachable):  # who waits is told
        broker.token(*ASKED)
    place.front.script.clear()
    past_renewal(broker)
    broker.token(*ASKED)
    place.front.script += [Reply(drop=True)] * 20
    past_renewal(broker)
    broker.token(*ASKED)
    told: list[str] = []
    deadline = time.monotonic() + 20
    while not told and time.monotonic() < deadline:
        told = [record.name for record in caplog.records if "no new credential for payments deploy:write" in record.message]
        time.sleep(0.01)
    assert told == ["broker.client"]


def test_a_valid_credential_is_served_while_the_broker_is_away(place: Place) -> None:
    broker = broker_of(place, patience_s=0.5)
    first = broker.token(*ASKED)
    place.front.script += [Reply(drop=True)] * 20
    past_renewal(broker)
    assert broker.token(*ASKED) == first
    assert counted(place, broker) > 1
    asked = len(place.front.exchanges())
    assert broker.token(*ASKED) == first
    assert len(place.front.exchanges()) == asked  # and it is not asked again at once


def test_nothing_valid_and_no_broker_is_an_error_that_says_so(place: Place) -> None:
    broker = broker_of(place, patience_s=0.5)
    place.front.script += [Reply(drop=True)] * 20
    with pytest.raises(Unreachable, match=r"did not answer as an HTTP server does|connection to"):
        broker.token(*ASKED)


def test_a_credential_about_to_end_is_not_handed_out(place: Place) -> None:
    broker = broker_of(place, ttl_s=60)
    first = broker.credential(*ASKED)
    (kept,) = broker._kept.values()
    assert kept.serves() is first
    kept._ends_at = time.monotonic() + MARGIN_S - 0.5
    assert kept.serves() is None
    assert broker.token(*ASKED) != first.token


def test_a_life_shorter_than_the_margin_is_used_too(place: Place) -> None:
    broker = broker_of(place, ttl_s=int(MARGIN_S) - 2)
    assert len({broker.token(*ASKED) for _ in range(10)}) == 1
    (kept,) = broker._kept.values()
    kept._ends_at = time.monotonic() + (MARGIN_S - 2) / 4 - 0.1
    assert kept.serves() is None


def test_a_refusal_ends_what_was_served_and_is_remembered_for_a_moment(place: Place) -> None:
    broker = broker_of(place)
    broker.token(*ASKED)
    place.claims = {"ref": "refs/heads/main"}
    past_renewal(broker)
    broker.token(*ASKED)  # starts the renewal that is refused
    assert counted(place, broker) == 2
    for _ in range(3):
        with pytest.raises(Refused) as caught:
            broker.token(*ASKED)
    assert caught.value.reason == "claims_not_satisfied"
    assert len(place.front.exchanges()) == 2
    place.claims = {}
    past_renewal(broker)
    assert broker.token(*ASKED)


def test_an_identity_token_that_is_bad_for_the_moment_ends_nothing(place: Place) -> None:
    broker = broker_of(place)
    first = broker.token(*ASKED)
    place.claims = {"aud": "https://elsewhere.example"}
    broker._subject_token = lambda _: place.token(**place.claims)
    past_renewal(broker)
    broker.token(*ASKED)
    counted(place, broker)
    assert broker.token(*ASKED) == first


def test_a_source_that_fails_beside_a_valid_credential_is_not_asked_at_the_callers_speed(place: Place) -> None:
    broker = broker_of(place)
    first = broker.token(*ASKED)
    calls: list[str] = []
    broker._subject_token = lambda audience: [][calls.append(audience) or 0]  # IndexError
    past_renewal(broker)
    for _ in range(20):
        assert broker.token(*ASKED) == first
        counted(place, broker)
    assert len(calls) == 1


def test_a_refusal_is_not_repeated_once_the_broker_is_away(place: Place) -> None:
    broker = broker_of(place, patience_s=0.3)
    place.claims = {"ref": "refs/heads/main"}
    with pytest.raises(Refused):
        broker.token(*ASKED)
    place.claims = {}
    past_renewal(broker)
    place.front.script += [Reply(drop=True)] * 20
    with pytest.raises(Unreachable):
        broker.token(*ASKED)
    place.front.script.clear()
    assert broker.token(*ASKED)


def depth(error: BaseException) -> int:
    return len(traceback.extract_tb(error.__traceback__))


def test_an_error_that_is_raised_again_does_not_grow(place: Place) -> None:
    broker = broker_of(place)
    place.claims = {"ref": "refs/heads/main"}
    depths = []
    for _ in range(50):
        with pytest.raises(Refused) as caught:
            broker.token(*ASKED)
        depths.append(depth(caught.value))
    assert len(place.front.exchanges()) == 1
    assert depths[-1] <= depths[1]


def frames(error: BaseException | None) -> Iterator[str]:
    """What an error tracker would send: the variables of every frame, causes included."""
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            yield str(frame.f_locals)
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("reply", [Reply(400, {}, b'{"error": "x"}'), Reply(drop=True), Reply(404)], ids=["no", "away", "404"])
def test_an_error_takes_no_identity_token_along(place: Place, reply: Reply) -> None:
    broker = broker_of(place, patience_s=0)
    place.front.script.append(reply)
    with pytest.raises(ClientError) as caught:
        broker.token(*ASKED)
    told = list(frames(caught.value))
    assert len(told) > 1
    (form,) = place.front.exchanges()
    identity = form["subject_token"][0]
    assert not [each for each in told if identity[-40:] in each]


def test_each_waiter_gets_an_error_of_its_own(place: Place) -> None:
    """Raising one writes into it what the waiter was doing, which is nobody else's."""
    broker = broker_of(place)
    place.claims = {"ref": "refs/heads/main"}
    place.front.script.append(Reply(0, hold_s=0.3))

    def asked(secret: str) -> Refused:
        try:
            try:
                raise KeyError(secret)
            except KeyError:
                broker.token(*ASKED)
        except Refused as error:
            return error
        raise AssertionError

    async def tasks() -> list[BaseException | str]:
        return await asyncio.gather(*(broker.token_async(*ASKED) for _ in range(10)), return_exceptions=True)

    with ThreadPoolExecutor(10) as pool:
        waiting = [pool.submit(asked, f"secret {number}") for number in range(10)]
        errors = [*asyncio.run(tasks()), *(future.result(20) for future in waiting)]
    assert len(place.front.exchanges()) == 1
    assert len(set(map(id, errors))) == 20
    assert max(len(traceback.format_exception(error)) for error in errors) < 60
    for number, error in enumerate(errors[10:]):
        shown = "".join(traceback.format_exception(error))
        assert shown.count("secret ") == 1, number
        assert f"secret {number}" in shown


def test_who_listens_and_fails_costs_nobody_a_credential(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "broker.client")
    broker = broker_of(place, heard=lambda step: {}[step.what])
    assert broker.token(*ASKED)
    assert {record.message for record in caplog.records if record.name == "broker.client"} == {"the listener failed"}
    (form,) = place.front.exchanges()
    assert form["subject_token"][0][-40:] not in caplog.text


def test_an_error_of_the_callers_own_function_keeps_its_frames_and_none_of_ours(place: Place) -> None:
    def vault(_: str) -> str:
        raise LookupError("sealed")

    broker = Broker(place.front.url, "prod", subject_token=vault)
    with pytest.raises(LookupError, match="sealed") as caught:
        broker.token(*ASKED)
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "vault"
    assert "_once" not in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]


def unwraps(_: str) -> str:
    try:
        try:
            raise ValueError("inner")
        except ValueError as inner:
            raise KeyError("outer") from inner
    except KeyError as outer:
        raise outer.__cause__ from outer  # a circle of causes


def stops(_: str) -> str:
    return next(iter(()))


@pytest.mark.parametrize(("source", "kind"), [(unwraps, ValueError), (stops, RuntimeError)])
def test_whatever_a_callers_own_function_raises_everybody_is_told(place: Place, source: Callable[[str], str], kind: type) -> None:
    broker = Broker(place.front.url, "prod", subject_token=source)
    with pytest.raises(kind):
        broker.token(*ASKED)
    with pytest.raises(kind):
        asyncio.run(asyncio.wait_for(broker.token_async(*ASKED), 20))


def test_a_note_on_ones_own_error_is_on_nobody_elses(place: Place) -> None:
    broker = broker_of(place)
    place.claims = {"ref": "refs/heads/main"}
    errors = []
    for number in range(2):
        with pytest.raises(Refused) as caught:
            broker.token(*ASKED)
        caught.value.add_note(f"order {number}")
        errors.append(caught.value)
    assert [[note for note in error.__notes__ if note.startswith("order")] for error in errors] == [["order 0"], ["order 1"]]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda url: Broker(url, 5),
        lambda url: Broker([url], "prod"),
        lambda url: Broker(url, "prod", identity=["aws-sts"]),
        lambda url: Broker(url, "prod").token("payments", [1, 2]),
        lambda url: Broker(url, "prod").token("payments", 7),
        lambda url: Broker(url, "prod").token(["payments", None]),
        lambda url: Broker(url, "prod", subject_token=lambda _: b"x").token("payments"),
    ],
)
def test_what_is_no_text_is_said_to_be_none(place: Place, wrong: Callable[[str], object]) -> None:
    with pytest.raises(Misused, match="text"):
        wrong(place.front.url)
    assert place.front.requests == []


def test_several_apis_may_be_asked_for_as_text_or_list(place: Place) -> None:
    broker = broker_of(place)
    one = broker.credential(["payments"], ("deploy:write",))
    assert broker.credential("payments", {"deploy:write": 1}) is one
    with pytest.raises(Refused):
        broker.token(["payments", "nothing"])
    assert place.front.exchanges()[-1]["audience"] == ["payments", "nothing"]


def test_a_broker_does_not_travel(place: Place) -> None:
    with pytest.raises(TypeError, match="make one in each"):
        pickle.dumps(broker_of(place))


def test_a_thread_that_cannot_start_keeps_nobody_waiting(place: Place) -> None:
    broker = broker_of(place)
    threading.stack_size(2**47)  # more than there are addresses
    try:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            broker.token(*ASKED)
    finally:
        threading.stack_size(0)
    assert broker.token(*ASKED)


def test_what_is_kept_is_bounded(place: Place) -> None:
    broker = broker_of(place)
    first = broker.token(*ASKED)
    broker._kept |= {broker._wanted(f"https://{number}.example", ()): Kept() for number in range(KEPT_MAX - 1)}
    assert broker.token(*ASKED) == first
    broker.token("payments", "releases:read")
    assert len(broker._kept) == KEPT_MAX
    assert broker.token(*ASKED) != first  # it was the oldest


def test_to_forget_while_a_renewal_flies_is_not_to_keep(place: Place) -> None:
    broker = broker_of(place)
    first = broker.token(*ASKED)
    place.front.script.append(Reply(503, {"Retry-After": "1"}))
    past_renewal(broker)
    assert broker.token(*ASKED) == first
    (kept,) = broker._kept.values()
    flight = kept.flight
    broker.forget(*ASKED)
    second = broker.token(*ASKED)
    assert second != first
    assert flight.result(20) not in {first, second}
    assert broker.token(*ASKED) == second  # what was under way before is not kept


def test_a_task_that_gives_up_does_not_take_the_others_along(place: Place) -> None:
    broker = broker_of(place)
    place.front.script.append(Reply(503, {"Retry-After": "1"}))

    async def story() -> tuple[bool, str]:
        impatient = asyncio.create_task(broker.token_async(*ASKED))
        patient = asyncio.create_task(broker.token_async(*ASKED))
        await asyncio.sleep(0)
        impatient.cancel()
        token = await patient
        return impatient.cancelled(), token

    gone, token = asyncio.run(story())
    assert gone
    assert jwt.decode(token, options={"verify_signature": False})["sub"] == "svc-payments-deploy"


def test_a_forked_child_asks_for_itself(place: Place) -> None:
    broker = broker_of(place)
    mine = broker.token(*ASKED)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, b"other" if broker.token(*ASKED) != mine else b"same")
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        assert told.read() == b"other"
    os.waitpid(child, 0)


FORKED = """
import os, sys, threading, time
from broker.client import Broker
broker = Broker()
threading.Thread(target=broker.token, args=("payments", "deploy:write"), daemon=True).start()
time.sleep(float(sys.argv[1]))
child = os.fork()
if child == 0:
    broker.token("payments", "deploy:write")
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("after_s", [0.0, 0.0005, 0.001, 0.002, 0.004, 0.008])
def test_a_child_forked_while_a_first_exchange_imports_what_it_needs_can_ask(place: Place, after_s: float) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(after_s)], env=place.environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_a_child_forked_while_another_thread_is_inside_is_not_stuck(place: Place) -> None:
    broker = broker_of(place)
    broker.token(*ASKED)
    with broker._lock:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(5)
            broker.forget(*ASKED)
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_the_callers_trace_goes_along(place: Place) -> None:
    tracer = TracerProvider().get_tracer("caller")
    broker = broker_of(place)
    with tracer.start_as_current_span("work") as span:
        broker.token(*ASKED)
    (headers,) = [headers for path, headers, _ in place.front.requests if path.endswith("/token")]
    assert headers["traceparent"].split("-")[1] == trace.format_trace_id(span.get_span_context().trace_id)


def test_url_and_env_come_from_the_environment(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in place.environment.items():
        monkeypatch.setenv(name, value)
    assert Broker().token(*ASKED)
    monkeypatch.setenv("BROKER_ENV", " prod\n")
    assert Broker().token(*ASKED)
    monkeypatch.delenv("BROKER_ENV")
    with pytest.raises(Misused, match="no env is named"):
        Broker()


def test_no_repr_and_no_error_shows_a_token(place: Place, tmp_path: Path) -> None:
    broker = broker_of(place)
    credential = broker.credential(*ASKED)
    assert credential.token not in f"{credential} {credential!r} {vars(broker)} {list(broker._kept.values())}"
    assert "svc-payments-deploy" in repr(credential)
