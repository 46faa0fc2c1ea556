"""`broker policy explain`: a past request, a token, claims; and what to change."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import httpx2
import pytest

from broker import presets
from tests.cli.conftest import Terminal
from tests.cli.test_policy_new import token
from tests.support.tree import DEPLOY, write_tree


def test_explain_a_past_request(terminal: Terminal) -> None:
    refused, issued = terminal.exchange(environment="staging-7"), terminal.exchange()
    said = terminal.types("policy", "explain", "--request", refused.json()["request_id"])
    assert said.code == 0, said.err
    for text in ("REFUSED", "staging-7", "production", "smallest change"):
        assert text in said.out
    assert terminal.types("policy", "explain", "--exit-code", "--request", refused.json()["request_id"]).code == 1
    allowed = terminal.types("policy", "explain", "--exit-code", "--request", issued.headers["x-request-id"])
    assert (allowed.code, allowed.lines[0].split()[0]) == (0, "ALLOWED")
    body = json.loads(terminal.types("policy", "explain", "--json", "--request", refused.json()["request_id"]).out)
    assert body["allowed"] is False
    missing = terminal.types("policy", "explain", "--request", "req_none")
    assert (missing.code, "no exchange has the request id" in missing.err) == (1, True)


def test_explain_under_another_tree(terminal: Terminal, copy: Path) -> None:
    refused = terminal.exchange(environment="staging-7").json()["request_id"]
    file = copy / "prod" / "svc-payments-deploy.yaml"
    file.write_text(file.read_text().replace("environment: production", "environment: {in: [production, staging-7]}"))
    said = terminal.types("policy", "explain", "--request", refused, "--against", str(copy))
    assert "REFUSED" in said.lines[0], "what happened, happened"
    assert said.lines[-1].endswith("as it is now: allowed")
    still = terminal.types("policy", "explain", "--request", refused)
    assert still.lines[-1].endswith("still refused")


def test_explain_a_token_and_claims(terminal: Terminal, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(terminal.token(environment="x"))
    asked = ("--env", "prod", "-a", "payments", "--scope", "deploy:write")
    said = terminal.types("policy", "explain", "--token-file", str(token), *asked, "--exit-code")
    assert (said.code, "REFUSED" in said.lines[0]) == (1, True), said.err
    assert token.read_text() not in said.out
    claims = tmp_path / "claims.json"
    given = {"repository_id": "7432112", "repository_owner_id": "98123", "environment": "production", "ref": "refs/tags/v1"}
    claims.write_text(json.dumps(given | {"event_name": "push", "sub": "x"}))
    said = terminal.types("policy", "explain", "--claims-file", str(claims), "--issuer", "github", *asked)
    assert (said.code, said.lines[0].split()[0]) == (0, "ALLOWED"), said.err
    assert terminal.types("policy", "explain", "--claims-file", str(claims), *asked).code == 1, "whose claims?"
    token.write_text("not a token")
    said = terminal.types("policy", "explain", "--token-file", str(token), *asked)
    assert (said.code, "holds no token" in said.err) == (1, True)


@pytest.mark.parametrize(("content", "says"), [("{", "claims"), ("[]", "claims"), (None, "cannot be read")])
def test_explain_what_cannot_be_read_is_said_in_one_line(
    terminal: Terminal, tmp_path: Path, content: str | None, says: str
) -> None:
    claims = tmp_path / "claims.json"
    if content is not None:
        claims.write_text(content)
    said = terminal.types("policy", "explain", "--claims-file", str(claims), "--issuer", "github", "--env", "prod")
    assert said.code in {1, 2}
    assert says in said.err
    assert "defect" not in said.err


def test_explain_wants_exactly_one_thing_to_explain(terminal: Terminal) -> None:
    for arguments in ((), ("--request", "x", "--token-file", "y")):
        assert terminal.types("policy", "explain", *arguments).code == 2


def test_what_whoami_prints_is_explained_as_the_token_is(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(terminal.token(environment="x"))
    shown = terminal.types("whoami", "--json", "--subject-token-file", str(tmp_path / "token")).out
    asked = ("--env", "prod", "-a", "payments", "--scope", "deploy:write")
    by_token = terminal.types("policy", "explain", "--token-file", str(tmp_path / "token"), *asked).out
    for option in ("--token-file", "--claims-file"):
        assert terminal.types("policy", "explain", option, "-", *asked, typed=shown).out == by_token
    assert "environment            expected production   seen x" in by_token


@pytest.mark.parametrize("option", ["--token-file", "--claims-file"])
def test_a_file_without_an_end_is_not_read_to_the_end(option: str, terminal: Terminal) -> None:
    said = terminal.types("policy", "explain", option, "/dev/zero", "-e", "prod")
    assert said.code == 1
    assert "too large" in said.err or "larger than 65536 bytes" in said.err


def test_claims_are_found_where_their_issuer_puts_them(terminal: Terminal, tmp_path: Path) -> None:
    """Kubernetes nests them; a JWT-SVID has no `iss`, and its trust domain says whose it is."""
    mesh = {"preset": "spiffe", "trust_domain": "prod.acme.example", "jwks_url": "https://spire.acme.example:8443/"}
    issuers = {"cluster": {"preset": "kubernetes", "url": presets.load("kubernetes").fixture.claims["iss"]}, "mesh": mesh}
    account = DEPLOY.replace("svc-payments-deploy", "svc-mesh").replace("issuer: github", "issuer: mesh")
    account = re.sub(r"    where:\n(?:      .*\n)+    condition.*\n", "    where: {path: /ns/payments/sa/deployer}\n", account)
    policies = write_tree(tmp_path / "tree", issuers, accounts={"prod/svc-mesh.yaml": account})
    asked = ("-e", "prod", "-a", "payments", "--scope", "deploy:write", "--policies", str(policies))
    for preset, account in (("kubernetes", "svc-cluster-deploy"), ("spiffe", "svc-mesh")):
        made = token(preset, aud=terminal.broker.issuer("prod"))
        said = terminal.types("policy", "explain", "--token-file", "-", *asked, typed=made)
        assert (said.code, said.lines[0].split()[0]) == (0, "ALLOWED"), said.out + said.err
        assert account in said.out


def test_without_an_env_the_known_ones_are_said(terminal: Terminal) -> None:
    said = terminal.types("policy", "explain", "--claims-file", "-", "--issuer", "github", typed="{}")
    assert (said.code, "--env is missing; known: prod, dev" in said.err) == (2, True)


# A change that takes nothing away


def test_a_branch_beside_a_tag_pattern_gets_a_rule_to_paste_and_the_tags_stay_in(terminal: Terminal, copy: Path) -> None:
    said = explained(terminal, *ASKED, ref="refs/heads/fix-typo")
    assert "smallest change   no change is needed if it should run from refs/tags/v*\n" in said
    assert "this opens deploy:write (high) to whoever can push that branch" in said
    (block,) = re.findall(r"\n\n((?:  .*\n)+)\ndecided under", said)
    file = copy / "prod" / "svc-payments-deploy.yaml"
    file.write_text(file.read_text() + block)
    for ref in ("refs/heads/fix-typo", "refs/tags/v1"):
        assert explained(terminal, *ASKED, "--policies", str(copy), ref=ref).startswith("ALLOWED")
    assert explained(terminal, *ASKED, "--policies", str(copy), ref="refs/heads/another").startswith("REFUSED")


# A workload that no rule is about


@pytest.mark.parametrize("source", ["--request", "--token-file", "--claims-file"])
def test_a_workload_that_no_rule_is_about_hears_its_ids_and_the_nearest_rules(source: str, terminal: Terminal) -> None:
    other = {"repository_id": "999", "repository": "acme/other"}
    typed = ""
    if source == "--request":
        refused = terminal.exchange(**other).json()
        assert refused["reason"] == "no_rule_matched"
        arguments = (source, refused["request_id"])
    else:
        owner = {"repository_owner_id": "98123", "repository_owner": "acme", "environment": "production"}
        typed = terminal.token(**other) if source == "--token-file" else json.dumps(other | owner)
        arguments = (source, "-", *ASKED, "--issuer", "github")
    said = terminal.types("policy", "explain", *arguments, typed=typed)
    assert said.code == 0, said.err
    assert "presented repository_id 999 (acme/other), repository_owner_id 98123 (acme)" in said.out
    assert "nearest rules of prod for github\n\nsvc-payments-deploy  prod/svc-payments-deploy.yaml " in said.out
    assert '"release workflow" :11' in said.out
    assert "- repository_id          expected 7432112   seen 999   :14:22" in said.out
    assert "broker policy new --env prod --issuer github --access payments=deploy:write" in said.out
    body = json.loads(terminal.types("policy", "explain", *arguments, "--json", typed=typed).out)
    (near,) = body["nearest"]
    assert (near["account"], near["findings"][0]["seen"]) == ("svc-payments-deploy", "999")


def test_a_rule_with_a_name_in_place_of_the_id_is_told_for_a_past_request(terminal: Terminal, copy: Path) -> None:
    refused = terminal.exchange(repository_id="999", repository="acme/other").json()["request_id"]
    file = copy / "prod" / "svc-payments-deploy.yaml"
    file.write_text(file.read_text().replace('repository_id: "7432112"', "repository_id: acme/other"))
    said = terminal.types("policy", "explain", "--request", refused, "--against", str(copy))
    assert "   - the rule has a name where GitHub's id belongs: acme/other is 999\n" in said.out
    assert 'smallest change   repository_id: write "999" where acme/other stands, in "release workflow"' in said.out
    assert said.lines[-1].endswith("still refused")


# What a refusal leaves unsaid


def explained(terminal: Terminal, *arguments: str, **claims: str) -> str:
    """The story of a good token of the release job for prod, but for these claims."""
    said = terminal.types("policy", "explain", "--token-file", "-", *arguments, typed=terminal.token(**claims))
    assert said.code == 0, said.err
    return said.out


ASKED = ("-e", "prod", "-a", "payments", "--scope", "deploy:write")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        pytest.param(
            ("-e", "prdo", "-a", "payments"), "there is no env `prdo` (did you mean `prod`?); known: dev, prod", id="env"
        ),
        pytest.param(
            ("-e", "prod", "-a", "paymnts", "--scope", "deploy:write"),
            "there is no Api `paymnts` in prod (did you mean `payments`?); known: ledger, payments",
            id="Api",
        ),
        pytest.param(
            ("-e", "prod", "-a", "https://payment.acme.example", "--scope", "deploy:write"),
            "did you mean `https://payments.acme.example`?",
            id="audience",
        ),
        pytest.param(
            ("-e", "prod", "-a", "payments", "--scope", "deploy:wirte"),
            "there is no scope `deploy:wirte` at payments (did you mean `deploy:write`?)",
            id="scope",
        ),
        pytest.param(
            ("-e", "prod", "-a", "payments", "--scope", "deploy:write,releases:read"),
            "is one name: scopes are separated by spaces",
            id="commas",
        ),
        pytest.param(
            (*ASKED, "--service-account", "svc-payment-deploy"),
            "there is no service account `svc-payment-deploy` in prod (did you mean `svc-payments-deploy`?)",
            id="service account",
        ),
    ],
)
def test_a_name_that_does_not_exist_is_said_with_the_one_that_may_be_meant(
    asked: tuple[str, ...], says: str, terminal: Terminal
) -> None:
    said = explained(terminal, *asked)
    assert said.startswith("REFUSED")
    assert says in said


def test_a_token_for_somebody_else_is_refused_with_both_audiences(terminal: Terminal) -> None:
    said = explained(terminal, *ASKED, aud=terminal.broker.issuer("dev"))
    assert said.startswith("REFUSED")
    assert f"token_audience  expected {terminal.broker.issuer('prod')}; seen {terminal.broker.issuer('dev')}" in said
    assert "with the right audience the policy would allow it" in said
    assert "smallest change   request the token for the audience that is expected" in said
    assert explained(terminal, *ASKED).startswith("ALLOWED")


def test_where_nobody_said_the_url_only_the_end_of_an_audience_is_compared(terminal: Terminal) -> None:
    far = {"BROKER_PORT": "", "BROKER_URL": ""}
    for audience, verdict in (("https://far.example/prod", "ALLOWED"), ("https://far.example/dev", "REFUSED")):
        token = terminal.token(aud=audience)
        said = terminal.types("policy", "explain", "--token-file", "-", *ASKED, typed=token, **far)
        assert said.lines[0].split()[0] == verdict, said.out
    assert "expected BASE/prod (BASE is the broker's --url); seen https://far.example/dev" in said.out
    given = terminal.types("policy", "explain", "--token-file", "-", *ASKED, "--url", "https://far.example/x", typed=token, **far)
    assert "expected https://far.example/x/prod; seen https://far.example/dev" in given.out


def test_a_past_refusal_for_its_audience_names_the_one_that_is_expected(terminal: Terminal) -> None:
    refused = terminal.exchange(aud="https://somebody.else")
    assert refused.json()["reason"] == "token_audience"
    said = terminal.types("policy", "explain", "--request", refused.json()["request_id"])
    assert f"prod expects tokens of github for {terminal.broker.issuer('prod')}" in said.out
    assert "--token-file" in said.out


def test_a_token_that_nobody_vouches_for_is_explained_with_what_to_do_about_it(terminal: Terminal) -> None:
    def said(refused: httpx2.Response) -> list[str]:
        assert refused.json()["reason"] == "token_untrusted"
        return terminal.types("policy", "explain", "--request", refused.json()["request_id"]).lines

    head, reason, *rest = said(terminal.exchange(iss="https://ci.example"))
    assert head == "REFUSED  prod  (not identified) -> payments deploy:write"
    assert reason.startswith("reason    issuer_unknown  ")
    assert f"issuers.yaml has {terminal.issuer.url}; " in rest[0]
    assert "smallest change   an entry of issuers.yaml whose url is the token's `iss`, byte for byte" in "\n".join(rest)
    forged = terminal.token().rpartition(".")[0] + "." + terminal.token().rpartition(".")[2]
    head, reason, *rest = said(terminal.broker.exchange(forged, audience="payments", scope="deploy:write"))
    assert head == "REFUSED  prod  (not identified) -> payments deploy:write"
    assert reason.startswith("reason    signature_invalid  ")
    assert "smallest change   the issuer's keys as they are now: it signs with another key under the same kid" in rest
    assert any("bring its `jwks_file` up to date" in line for line in rest)


def test_a_revoked_request_names_the_revocation_who_made_it_and_what_lifts_it(terminal: Terminal) -> None:
    def request_id() -> str:
        refused = terminal.exchange()
        assert refused.json()["reason"] == "revoked"
        return refused.json()["request_id"]

    cut = ("--service-account", "svc-payments-deploy", "-e", "prod", "--reason", "INC-417", "--yes", "--json")
    by = f"ada@{socket.gethostname()}"
    made = json.loads(terminal.types("revoke", *cut, SUDO_USER="ada").lines[0])["id"]
    asked = request_id()
    said = terminal.types("policy", "explain", "--request", asked).out
    assert f"revocation {made} (service_account svc-payments-deploy) by {by}, 20" in said
    assert ": INC-417" in said
    lift = f"broker revoke lift {made} --reason TEXT"
    assert f"in force until it is lifted: {lift}" in said
    words = lift.removeprefix("broker ").replace("TEXT", "closed").split()
    assert terminal.types(*words, "--yes", SUDO_USER="ada").code == 0, "the command that is named works"
    assert f"lifted by {by}" in terminal.types("policy", "explain", "--request", asked).out
    assert terminal.exchange().status_code == 200


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        pytest.param("expires: 2027-06-30", "expires: 2020-01-31", "the account", id="account"),
        pytest.param("    max_ttl: 10m", "    max_ttl: 10m\n    expires: 2020-01-31", "the rule", id="rule"),
    ],
)
def test_an_expiry_says_when_and_where_to_change_it(old: str, new: str, what: str, terminal: Terminal, copy: Path) -> None:
    file = copy / "prod" / "svc-payments-deploy.yaml"
    file.write_text(file.read_text().replace(old, new))
    said = explained(terminal, *ASKED, "--policies", str(copy))
    when = f"{what} expired 2020-02-01T00:00:00Z (`expires` in prod/svc-payments-deploy.yaml)"
    assert said.startswith("REFUSED")
    assert f"   - {when}" in said
    assert f"smallest change   a later date: {when}" in said
