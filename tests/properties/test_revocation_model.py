"""Revoke, lift, exchange in any order, at any node: the real chain over the real store agrees with a model of ten lines."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, rule, run_state_machine_as_test

from broker.admin.acts import Lift, Revoke
from broker.config import Limits
from broker.errors import Refused
from broker.exchange import Story
from broker.model import ExchangeRequest, UnverifiedToken
from broker.node import local_operator
from broker.protocol import oauth
from broker.protocol.ids import new_request_id
from tests.support.issuer import OidcIssuer
from tests.support.live import Live

T = TypeVar("T")
ACTORS, REFS = ("mona", "rogue"), ("refs/tags/v1", "refs/tags/v2")
SUBJECTS = ("one", "two")
ACCOUNTS = ("svc-payments-deploy", "svc-somebody-else")


class Model:
    """What every revocation means."""

    def __init__(self) -> None:
        self.rules: dict[str, tuple[dict[str, Any], int | None]] = {}

    def covers(self, facts: dict[str, Any], now: float) -> bool:
        return any(
            (until is None or until > now)
            and all(facts[name] == value for name, value in selectors.items() if name != "claims")
            and all(facts["claims"].get(name) == value for name, value in selectors.get("claims", {}).items())
            for selectors, until in self.rules.values()
        )


selectors = st.fixed_dictionaries(
    {},
    optional={
        "service_account": st.sampled_from(ACCOUNTS),
        "trust_rule": st.sampled_from(["release workflow", "another rule"]),
        "subject": st.sampled_from(SUBJECTS),
    },
).flatmap(lambda chosen: st.one_of(
    st.just(chosen),
    st.just(chosen | {"issuer": "github"}),
    st.fixed_dictionaries({}, optional={"actor": st.sampled_from(ACTORS), "ref": st.sampled_from(REFS)})
    .filter(bool).map(lambda claims: chosen | {"issuer": "github", "claims": claims}),
)).filter(bool)  # fmt: skip


class Loop:
    """The broker's loop, on a thread of its own: the machine's steps are plain calls."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


def machine(loop: Loop, nodes: tuple[Live, Live]) -> type[RuleBasedStateMachine]:
    class Revocations(RuleBasedStateMachine):
        in_force = Bundle("in_force")

        @initialize()
        def begin(self) -> None:
            self.model = Model()

        @rule(target=in_force, selectors=selectors, until=st.sampled_from([None, None, -60, 3_600]), at=st.integers(0, 1))
        def revoke(self, selectors: dict[str, Any], until: int | None, at: int) -> str:
            end = None if until is None else int(time.time()) + until
            act = Revoke(id=secrets.token_hex(8), selectors=selectors, envs=("prod",), reason="a test", until=end)
            loop.run(nodes[at].node.admin.perform(act, local_operator()))
            self.model.rules[act.id] = (selectors, end)
            return act.id

        @rule(revocation=consumes(in_force), at=st.integers(0, 1))
        def lift(self, revocation: str, at: int) -> None:
            loop.run(nodes[at].node.admin.perform(Lift(secrets.token_hex(8), revocation, ("prod",), "a test"), local_operator()))
            del self.model.rules[revocation]

        @rule(actor=st.sampled_from(ACTORS), ref=st.sampled_from(REFS), subject=st.sampled_from(SUBJECTS), at=st.integers(0, 1))
        def exchange(self, actor: str, ref: str, subject: str, at: int) -> None:
            facts = {
                "service_account": ACCOUNTS[0], "trust_rule": "release workflow", "issuer": "github", "subject": subject,
                "claims": {"actor": actor, "ref": ref},
            }  # fmt: skip
            expected = "revoked" if self.model.covers(facts, time.time()) else "issued"
            assert loop.run(outcome(nodes[at], actor=actor, ref=ref, sub=subject)) == expected

        def teardown(self) -> None:
            for revocation in list(self.model.rules) if hasattr(self, "model") else ():
                self.lift(revocation, 0)

    return Revocations


async def outcome(live: Live, **claims: Any) -> str:
    request = ExchangeRequest(
        env="prod",
        request_id=new_request_id(),
        trace_id="0" * 32,
        grant_type=oauth.GRANT_TOKEN_EXCHANGE,
        subject_token=UnverifiedToken(live.token(**claims)),
        audience=("payments",),
        scope=("deploy:write",),
    )
    try:
        await live.node.exchange.run(Story(request))
    except Refused as refusal:
        return refusal.reason
    return "issued"


def test_revocations_mean_what_ten_lines_say(tmp_path: Path) -> None:
    loop = Loop()
    github = OidcIssuer("github-actions")
    limits = Limits(refusals_per_s=1_000_000)
    loop.run(github.up())
    first = Live(tmp_path, {"github": github}, limits=limits)
    loop.run(first.__aenter__())
    second = first.beside()
    loop.run(second.__aenter__())
    try:
        budget = settings(max_examples=15, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck))
        run_state_machine_as_test(machine(loop, (first, second)), settings=budget)
    finally:
        for node in (second, first):
            loop.run(node.__aexit__(None, None, None))
        loop.run(github.down())
        loop.end()
