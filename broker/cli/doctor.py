"""`broker doctor`: what is found, what is wanted, how to mend it.

A finding is `ok`, `advice` (works, could be better; the exit code stays 0) or `bad` (exit code 1).
Reads only; the one thing it sends is an exchange that must be refused.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import click
import httpx2

from broker.analysis.advice import counted
from broker.cli.cautions import ENDED, ONCE, env_twice, in_the_clear
from broker.cli.settings import options, settings_from
from broker.cli.state import store_url
from broker.cli.tree import tree_of
from broker.config import SETTINGS, Settings, is_loopback
from broker.errors import BrokerError, OperatorError, StoreUnavailable
from broker.identity.issuers import IssuerKeys
from broker.keys.sealed import key_encryption_key, key_file
from broker.node import WITNESS
from broker.policy.tree import Tree
from broker.protocol import oauth
from broker.store.commit import Extension, Position, Store, StoreHealth
from broker.store.folder import check_ours
from broker.store.witness import Seen, Witness, ring_of, ring_seen
from broker.telemetry import log
from broker.web.supervisor import check_tls

Verdict = Literal["ok", "advice", "bad"]
SKEW_S_MAX = 2.0
COLOURS = {"ok": "green", "advice": "yellow", "bad": "red"}


@dataclass(frozen=True, slots=True)
class FindingOf:
    """One thing that was looked at."""

    what: str
    verdict: Verdict
    found: str
    fix: str = ""


@click.command(epilog="Examples: broker doctor · broker doctor --policies policies --json")
@click.option("--json", "as_json", is_flag=True, help="JSON lines.")
@options(*SETTINGS)
def doctor(as_json: bool, **given: Any) -> None:
    """Look a set-up over: policy, issuers, store, clock, files, keys, public URL."""
    settings = settings_from(given)
    log.configure("critical")  # what the rooms would log is found below, with its remedy
    findings = asyncio.run(_collect(settings))
    for finding in findings:
        if as_json:
            click.echo(json.dumps(asdict(finding), ensure_ascii=False))
            continue
        click.echo(f"{click.style(f'{finding.verdict:<6}', fg=COLOURS[finding.verdict])}  {finding.what:<16} {finding.found}")
        if finding.fix and finding.verdict != "ok":
            click.echo(f"{'':<8}{'':<16} -> {finding.fix}")
    sys.exit(1 if any(finding.verdict == "bad" for finding in findings) else 0)


def _tls(settings: Settings) -> Iterator[FindingOf]:
    if settings.tls_cert is None:
        return
    try:
        check_tls(settings)
    except OperatorError as error:
        yield FindingOf("TLS", "bad", error.detail, "; ".join(error.hints) or "correct the path")
    else:
        yield FindingOf("TLS", "ok", f"{settings.tls_cert} and its key")


async def _collect(settings: Settings) -> list[FindingOf]:
    findings = [*_url(settings), *_tls(settings)]
    tree = _tree(settings, findings)
    if tree is not None:
        findings += [finding async for finding in _issuers(settings, tree)]
    findings += list(_files(settings))
    findings += [finding async for finding in _store(settings)]
    findings += [finding async for finding in _running(settings, tree)]
    return findings


def _url(settings: Settings) -> Iterator[FindingOf]:
    parts = urlsplit(settings.base_url)
    if is_loopback(parts.hostname or ""):
        yield FindingOf("public URL", "advice", settings.base_url, "loopback only: set --url before others use it")
    else:
        yield FindingOf("public URL", "ok", settings.base_url)
    if in_the_clear(settings):
        yield FindingOf("TLS", "advice", f"others reach {settings.host}:{settings.port} without it", ENDED)
    if parts.path:
        place = f"{parts.scheme}://{parts.netloc}/.well-known/oauth-authorization-server{parts.path}/ENV"
        yield FindingOf("public URL path", "advice", parts.path, f"the proxy must also pass {place} on")


def _tree(settings: Settings, findings: list[FindingOf]) -> Tree | None:
    try:
        tree = tree_of(settings)
    except OperatorError as error:
        fix = "; ".join(error.hints) or "broker policy check shows every error with its place"
        findings.append(FindingOf("policy", "bad", error.detail, fix))
        return None
    accounts = counted(len(tree.accounts), "service account")
    if issuer := env_twice(settings, tree.envs):
        findings.append(FindingOf("public URL's end", "advice", f"it is the name of an env: the issuer is {issuer}", ONCE))
    findings.append(FindingOf("policy", "ok", f"{settings.policies}: revision {tree.revision[:7]}, {accounts}"))
    if tree.warnings:
        findings.append(FindingOf("policy warnings", "advice", f"{len(tree.warnings)}", "broker policy check shows them"))
    return tree


async def _issuers(settings: Settings, tree: Tree) -> AsyncIterator[FindingOf]:
    keys = IssuerKeys(settings.limits)
    try:
        await keys.warm(tree.issuers.by_name.values())
        for name, health in keys.health().items():
            if health.last_error:
                fix = "is it reachable from here, with a certificate that this machine trusts? jwks_file works offline"
                yield FindingOf(f"issuer {name}", "bad", health.last_error, fix)
            else:
                yield FindingOf(f"issuer {name}", "ok", "keys fetched")
    finally:
        await keys.close()


def _files(settings: Settings) -> Iterator[FindingOf]:
    try:
        check_ours(settings.data)
        check_ours(key_file(settings))
    except OperatorError as error:
        yield FindingOf("files", "bad", error.detail, "; ".join(error.hints))
        return
    if settings.data.is_dir():
        yield _mode(settings.data, 0o077, "chmod 700")
    place = key_file(settings)
    if not place.exists():
        external = settings.store or settings.store_url_file
        verdict: Verdict = "bad" if external else "advice"
        yield FindingOf(
            "key-encryption key", verdict, f"{place} does not exist", "the embedded store makes it at its first start"
        )
        return
    yield _mode(place, 0o077, "chmod 600")
    try:
        key_encryption_key(settings, create=False)
    except BrokerError as error:
        yield FindingOf("key-encryption key", "bad", error.detail, "restore the file from its backup")
        return
    if place.parent.resolve() == settings.data.resolve():
        fix = "a backup of this folder holds keys and lock together: keep the key elsewhere with --key-file"
        yield FindingOf("key's place", "advice", f"{place} lies beside the store", fix)
    else:
        yield FindingOf("key's place", "ok", str(place))


def _mode(path: Path, forbidden: int, command: str) -> FindingOf:
    mode = path.stat().st_mode & 0o777
    if mode & forbidden or path.stat().st_uid != os.geteuid():
        return FindingOf(f"mode of {path.name}", "bad", f"{mode:03o}", f"{command} {path}, owned by the broker's user")
    return FindingOf(f"mode of {path.name}", "ok", f"{mode:03o}")


async def _store(settings: Settings) -> AsyncIterator[FindingOf]:
    try:
        async with store_url(settings) as url:
            store = Store(url, settings.limits)
            try:
                health, before = await store.check(), time.time()
                server_now = await store.now() if health.reachable else before
                for finding in _store_findings(health, abs(server_now - before)):
                    yield finding
                if health.reachable:
                    yield await _witness(settings, store)
            finally:
                await store.close()
    except OperatorError as error:
        yield FindingOf("store", "advice" if _is_new(settings.data) else "bad", error.detail, "; ".join(error.hints))


def _is_new(data: Path) -> bool:
    """Whether no broker has run there yet."""
    try:
        return not data.exists()
    except PermissionError:
        return False


def _store_findings(health: StoreHealth, skew_s: float) -> Iterator[FindingOf]:
    if not health.reachable:
        yield FindingOf("store", "bad", health.detail, "start it, or correct --store")
        return
    yield FindingOf("store", "ok", f"{health.software} {health.version}, role {health.role}, durability {health.durability}")
    for problem in health.problems:
        yield FindingOf("store", "bad", problem, "set it in the store's configuration; docs/operations/store.md")
    if skew_s > SKEW_S_MAX:
        yield FindingOf("clock", "bad", f"{skew_s:.1f} s from the store's", "run an NTP client on both machines")
    else:
        yield FindingOf("clock", "ok", f"{skew_s:.2f} s from the store's")


async def _witness(settings: Settings, store: Store) -> FindingOf:
    """Whether the store still shows all that this machine has seen in it."""
    fix = "put the newer copy back; if there is none: docs/operations/running.md, Backup"
    try:
        seen = Witness(settings.data / WITNESS).read()
    except ValueError as error:
        return FindingOf("witness", "bad", str(error), fix)
    behind: list[str] = []
    try:
        for name, furthest in sorted(seen.items()):
            slot, _, _ = name.partition("/")
            is_ring = name == ring_of(slot)
            shown = ring_seen(*(await store.keys_get(slot) or (0, b""))) if is_ring else await _shown(store, slot, furthest.n)
            what = f"key ring of {slot}" if is_ring else f"revocation log of {slot}"
            if shown.n < furthest.n:
                behind.append(f"{what} ends at {shown.n}, and {furthest.n} was seen")
            elif shown.n == furthest.n and shown.tag != furthest.tag:
                behind.append(f"{what} has another {furthest.n} than was seen")
    except StoreUnavailable as error:
        return FindingOf("witness", "bad", error.detail, "start the store, or correct --store")
    if behind:
        return FindingOf("witness", "bad", f"an older copy of the store, or another: {'; '.join(behind)}", fix)
    return FindingOf("witness", "ok", "the store shows all that was seen on this machine")


async def _shown(store: Store, slot: str, n: int) -> Seen:
    """Entry `n` of a slot's revocation log, or the last one before it; number -1 where there is none."""
    shown, position = Seen(-1, ""), None
    while isinstance(page := await store.read(slot, position), Extension) and page.entries:
        for entry in page.entries:
            if entry.n <= n:
                shown = Seen(entry.n, entry.tag)
        last, before = page.entries[-1], position.index if position else -1
        position = Position(before + len(page.entries), last.n, last.tag)
    return shown


async def _running(settings: Settings, tree: Tree | None) -> AsyncIterator[FindingOf]:
    """Asks a broker that runs at the URL for its metadata, and for an exchange that must be refused."""
    if tree is None or not tree.envs:
        return
    async with httpx2.AsyncClient(timeout=5, trust_env=False) as client:
        for env in sorted(tree.envs):
            issuer = f"{settings.base_url}/{env}"
            try:
                document = (await client.get(f"{issuer}/.well-known/openid-configuration")).json()
                forged = {"grant_type": oauth.GRANT_JWT_BEARER, "assertion": "e30.e30.AAAA"}
                refused = await client.post(f"{issuer}/token", data=forged)
            except (httpx2.HTTPError, ValueError):
                yield FindingOf(f"{env} endpoint", "advice", f"no broker answers at {issuer}", "broker serve, if it should run")
                return
            if document.get("issuer") != issuer:
                yield FindingOf(
                    f"{env} endpoint",
                    "bad",
                    f"it calls itself {document.get('issuer')}",
                    f"start it with --url {settings.base_url}",
                )
            elif refused.status_code == 200:
                yield FindingOf(f"{env} endpoint", "bad", "it took a forged token", "stop it; this is a defect")
            else:
                yield FindingOf(f"{env} endpoint", "ok", f"{issuer} answers, and refuses a forged token")
