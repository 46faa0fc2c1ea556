"""The exchange: an identity token in, a scoped short-lived credential out.  This file is the product; read it from top to bottom.

    1  authenticate   who asks: every check of the subject token                    identity/
    2  decide         may it: policy, then revocations                              policy/, revocation/
    3  prepare        all that will be signed, and its audit record                 credentials/, audit/
    4  commit         record, single-use claim and registration, in one round trip  store/
    5  issue          sign; never before 4 has answered                             credentials/, keys/

Recorded before released (promise 1): a credential leaves only on a commit that was acknowledged on this connection, just
now.  Revoked means revoked (promise 2): a commit names the revocation log that its decision stood on; a newer one makes it
stale, the node catches up and decides again.  Refusals are recorded before they are answered.  Whatever is not known to
have been recorded is voided and answered 503.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from msgspec import Struct

from broker.audit import record
from broker.audit.refusals import RefusalBudget
from broker.config import Limits
from broker.credentials.kinds import KINDS
from broker.credentials.voids import Void, Voids
from broker.errors import (
    BrokerError,
    Refused,
    Revoked,
    RevokedUnseen,
    StoreUnavailable,
    TokenReplayed,
    Unavailable,
)
from broker.identity.issuers import IssuerKeys
from broker.identity.subject_token import authenticate
from broker.keys.rotation import KeyRings
from broker.model import Client, Draft, ExchangeRequest, Grant, Issued, Workload, WouldIssue, facts_of
from broker.policy.decide import decide
from broker.policy.tree import Tree
from broker.revocation.chain import Revocations
from broker.revocation.view import RevocationView
from broker.store.commit import Appended, Commit, Committed, Outcome, ParentRevoked, Replayed, Stale, Store, Unborn
from broker.telemetry import metrics
from broker.telemetry.trace import CURRENT, stage

KIND = "access_token"


class Story(Struct):
    """What one exchange has learned so far: the source of its record, however it ends."""

    request: ExchangeRequest
    revision: str = ""
    workload: Workload | None = None
    grant: Grant | None = None
    draft: Draft | None = None
    view: RevocationView | None = None


@dataclass(frozen=True, slots=True)
class Exchange:
    """The path, and the rooms that it walks through.  `clock` gives epoch seconds; `node` names this host and worker."""

    tree: Callable[[], Tree]
    issuer_keys: IssuerKeys
    rings: KeyRings
    revocations: Revocations
    store: Store
    voids: Voids
    refusals: RefusalBudget
    base_url: str
    limits: Limits
    node: str
    clock: Callable[[], float]

    async def run(self, story: Story) -> Issued | WouldIssue:
        """Exchanges the subject token of a story's request, or for `/check` says what would be issued.

        Raises a `BrokerError`, recorded already where it is a verdict; `Unavailable` where no verdict could be reached
        or recorded.
        """
        try:
            return await self._walk(story)
        except Unavailable:
            raise
        except BrokerError as refusal:
            await self.refuse(story, refusal)
            raise

    async def _walk(self, story: Story) -> Issued | WouldIssue:
        request, tree = story.request, self.tree()  # one tree for the whole exchange
        story.revision = tree.revision
        story.workload = workload = await self._authenticate(tree, request)
        for _ in range(self.limits.commit_tries_max):
            now = self.clock()
            story.grant = story.draft = None  # what an earlier turn found stood on an older revocation log
            story.view = view = self.revocations.view(request.env)
            if (grant := await self._granted(story, tree, workload, view, now)) is None:
                continue
            if request.check:
                answer: Outcome | Appended = await self._record_check(story, now)
            else:
                story.draft = draft = self._prepare(grant, workload, now)
                answer = await self._commit(story, draft, view, now)
            match answer:
                case Committed() as receipt if story.draft is not None and receipt.elapsed_s <= self.limits.receipt_age_s_max:
                    return await self._issue(story, story.draft)
                case Committed():
                    self._void(story, "acknowledged too late")
                    raise StoreUnavailable("the commit was acknowledged too late to be trusted")
                case Appended():
                    return WouldIssue(grant=grant, expires_in=grant.ttl_s)
                case Stale():
                    await self.revocations.catch_up(request.env, answer)
                case Replayed():
                    raise TokenReplayed
                case ParentRevoked():
                    raise Revoked((), "a parent credential is revoked")
                case Unborn():
                    await self.revocations.catch_up(request.env)
                case _:  # void already, clocks apart, or a contradiction: nothing was written, nothing is to be undone
                    raise StoreUnavailable(f"the commit was refused: {type(answer).__name__}")
        raise StoreUnavailable("revocations change faster than this node can follow")

    @stage("authenticate")
    async def _authenticate(self, tree: Tree, request: ExchangeRequest) -> Workload:
        return await authenticate(
            request, tree.issuers, self.issuer_keys, base_url=self.base_url, now=self.clock(), limits=self.limits
        )

    async def _granted(self, story: Story, tree: Tree, workload: Workload, view: RevocationView, now: float) -> Grant | None:
        """The grant; None where a revocation covers it, but in a log that has moved on meanwhile."""
        try:
            return self._decide(story, tree, workload, view, now)
        except (Revoked, RevokedUnseen):
            # A node whose callers are all cut off commits nothing: without this look it would never hear of a lift.
            await self.revocations.catch_up(view.slot)
            if self.revocations.view(view.slot).position == view.position:
                raise
            return None

    @stage("decide")
    def _decide(self, story: Story, tree: Tree, workload: Workload, view: RevocationView, now: float) -> Grant:
        story.grant = grant = decide(tree, workload, story.request, now)
        covering = view.covering(facts_of(workload, grant), now)
        if covering:
            rules = tuple(entry.id for entry in covering)
            told = Revoked if grant.own else RevokedUnseen
            raise told(rules, f"covered by {', '.join(rules)}", reasons=grant.reasons)
        return grant

    @stage("prepare")
    def _prepare(self, grant: Grant, workload: Workload, now: float) -> Draft:
        return KINDS[KIND].prepare(grant, workload, self.rings, f"{self.base_url}/{grant.env}", int(now))

    @stage("commit")
    async def _commit(self, story: Story, draft: Draft, view: RevocationView, now: float) -> Outcome:
        if self.store.held:  # nothing is sent, so nothing is to be given up
            raise StoreUnavailable(self.store.held)
        body = self.tell(story, "exchange", "issued", now)
        commit = Commit(
            slot=draft.env,
            position=view.position,
            now=int(now),
            id=story.request.request_id,
            jti=draft.jti,
            cred_until=draft.expires_at + self.limits.leeway_s,
            record=record.encode(body, self.limits.record_bytes_max),
            registration=record.encode(draft.facts.as_dict(), self.limits.record_bytes_max),
            claim=story.workload.single_use if story.workload else None,
        )
        try:
            return await self.store.commit(commit)
        except BaseException:  # a time-out, a closed connection, a cancelled task: it may have been written
            self._void(story, "the commit was not acknowledged")
            raise

    @stage("issue")
    async def _issue(self, story: Story, draft: Draft) -> Issued:
        try:
            return KINDS[draft.kind].issue(draft, self.rings, int(self.clock()))
        except BaseException:
            self._void(story, "signing failed")
            raise

    async def _record_check(self, story: Story, now: float) -> Outcome | Appended:
        body = self.tell(story, "check", "would_issue", now)
        line = record.encode(body, self.limits.record_bytes_max)
        view, workload = story.view, story.workload
        single_use = workload.single_use if workload else None
        return await self.store.append(
            story.request.env, line, position=view.position if view else None, claim=single_use, now=int(now)
        )

    def _void(self, story: Story, why: str) -> None:
        """Gives up a credential that nobody received; the caller does not wait for it (credentials/voids.py)."""
        draft, workload, env = story.draft, story.workload, story.request.env
        if draft is None:
            return
        metrics.UNISSUED.labels(env).inc()
        body = self.tell(story, "exchange", "unissued", self.clock()) | {"detail": why}
        self.voids.give_up(
            Void(
                env=env,
                jti=draft.jti,
                id=story.request.request_id,
                claim=workload.single_use if workload else None,
                tomb_until=draft.expires_at + self.limits.leeway_s + 2 * self.limits.store_clock_skew_s,
                record=record.encode(body, self.limits.record_bytes_max),
            )
        )

    async def refuse(self, story: Story, refusal: BrokerError) -> None:
        """Records a refusal, by itself or in a summary, before it is answered.  Raises `StoreUnavailable` if it cannot be."""
        request, workload, now = story.request, story.workload, self.clock()
        kind = "check" if request.check else "exchange"
        issuer, tenant = (workload.issuer, workload.tenant) if workload else ("", "")
        if not self.refusals.allows(issuer, tenant, now):
            await self.refusals.summarise(request.env, kind, refusal.reason, issuer, tenant, now)
            return
        body = self.tell(story, kind, "refused", now, reason=refusal.reason)
        if refusal.detail:
            body["detail"] = record.clean(refusal.detail)
        if isinstance(refusal, Refused):
            record.add_reasons(body, refusal.reasons)
        if isinstance(refusal, Revoked | RevokedUnseen):
            body["revocation"] = list(refusal.names)
        await self.store.append(request.env, record.encode(body, self.limits.record_bytes_max), now=int(now))

    def tell(self, story: Story, kind: str, outcome: str, now: float, *, reason: str = "") -> dict[str, Any]:
        """The record of a story, as far as it has come."""
        body = record.base(kind, outcome, env=story.request.env, now=now, node=self.node, reason=reason)
        record.add_request(body, story.request)
        if story.revision:
            body["policy_revision"] = story.revision
        if story.workload is not None:
            record.add_workload(body, story.workload)
        else:
            record.add_token(body, story.request.subject_token)
        if story.grant is not None:
            # A refusal grants nothing and names no credential, however far it came: its jti never existed.
            (record.add_account if outcome == "refused" else record.add_grant)(body, story.grant)
            record.add_reasons(body, story.grant.reasons)
        if story.draft is not None and outcome != "refused":
            record.add_draft(body, story.draft)
        if story.view is not None:
            body["tag"] = story.view.position.tag
        trace = CURRENT.get()
        if trace is not None:
            body["stages_ms"] = trace.stages_ms()
        return body


def rejected(env: str, request_id: str, trace_id: str, client: Client, *, check: bool) -> Story:
    """The story of a request whose form could not be read: who called, and nothing else."""
    empty = ExchangeRequest(
        env=env,
        request_id=request_id,
        trace_id=trace_id,
        grant_type="",
        subject_token="",  # pyright: ignore[reportArgumentType]
        client=client,
        check=check,
    )
    return Story(empty)
