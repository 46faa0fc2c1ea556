"""The ten minutes of a newcomer, on every platform: what its page has people paste gets the credential that its rule opens."""

from __future__ import annotations

import json
import re
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement

from broker import presets
from broker.cli.caller import calling
from broker.client.ambient import Around
from broker.client.ambient.kubernetes import volume
from broker.client.ambient.signals import DETECTORS
from broker.client.ambient.variables import ROWS
from tests.docs.pages import DOCS, PAGES, ROOT, blocks
from tests.docs.start_pages import COMMAND, COMMIT, TOKEN, URL, Page, Start
from tests.docs.test_examples import write
from tests.support.broker import Broker
from tests.support.issuer import OidcIssuer
from tests.support.signing import Shape
from tools.preset_pages import START

APIS = yaml.safe_load((ROOT / "policies" / "apis.yaml").read_text("utf-8"))["apis"]
NAMES = presets.names()
SCRIPTS = [
    pytest.param(Page(name), number, id=f"{name} {number + 1}" if number else name)
    for name in NAMES
    for number in range(len(Page(name).scripts))
]
HERE = [name for name in NAMES if not any("elsewhere" in block.words for block, _ in Page(name).scripts)]
EXTRAS = {"aws-sts": "aws", "spiffe": "spiffe"}
OWN = {"github-actions", "gitlab"}  # their pages show a refusal of their own: test_ci_pages.py


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    with Start(tmp_path_factory.mktemp("start")) as start:
        yield start


# What people paste


@pytest.mark.needs("curl")
@pytest.mark.parametrize(("page", "number"), SCRIPTS)
def test_what_a_page_has_people_paste_gets_a_credential(page: Page, number: int, start: Start) -> None:
    done = start.run(page, page.allowed, *page.scripts[number])
    assert done.code == 0, done.stderr
    (token,) = done.credentials
    asked = page.allowed["request"]
    claims = start.verified(token, page.env, APIS[asked["audience"]]["audience"][page.env])
    assert (claims["sub"], claims["scope"]) == (f"svc-{page.name}", asked["scope"])


@pytest.mark.needs("curl")
@pytest.mark.parametrize(("page", "number"), SCRIPTS)
def test_whom_a_pages_rule_keeps_out_is_told_what_to_change(page: Page, number: int, start: Start) -> None:
    block, script = page.scripts[number]
    done = start.run(page, page.denied, block, script)
    code = calling.COMMANDS["exec"].failed if "broker exec" in script else 1
    assert (done.code, done.credentials, done.sent) == (code, set(), 0), done.stderr
    seen, wanted = page.denied["claims"], page.allowed["claims"]
    changed = [name for name in {**seen, **wanted} if seen.get(name) != wanted.get(name)]
    says = "|".join(re.escape(name) for name in changed)
    nobody = f"no_rule_matched.*hint: are env \\({page.env}\\), audience, scope right, and does a rule have this workload's id"
    # In the client's words, or in the broker's own where a page has only those.
    told = rf"claims_not_satisfied.*(hint: ({says}) is |; claims: .*({says}))|{nobody}"
    assert re.search(told, done.stderr, re.DOTALL), done.stderr


@pytest.mark.parametrize("name", HERE)
def test_whoami_in_place_of_the_command_shows_the_claims_that_the_rule_pins(name: str, start: Start) -> None:
    page = Page(name)
    block, script, found = next((block, text, found) for block, text in page.scripts if (found := COMMAND.search(text)))
    command = re.sub("broker (token|exec)", "broker whoami --json", found[0].partition(" -- ")[0])
    lines_before = script[: found.start()].rpartition("\n")[0]
    done = start.run(page, page.allowed, block, f"{lines_before}\n{command}")
    assert done.code == 0, done.stderr
    assert not done.credentials
    said = json.loads(done.stdout)
    pinned = {value for value in page.account["trust"][0]["where"].values() if not isinstance(value, dict)}
    assert pinned <= set(leaves(said["claims"]))
    with start.job(page, page.allowed) as job:
        assert said["identity"] == job.name


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from leaves(each)
    else:
        yield value


def test_jenkins_writes_the_credential_to_no_log_though_it_traces_each_command(start: Start) -> None:
    page = Page("jenkins")
    ((block, script),) = page.scripts
    done = start.run(page, page.allowed, block, f"set -x  # as the step `sh` does\n{script}")
    assert (done.code, len(done.credentials)) == (0, 1)
    assert "+ set +x" in done.stderr
    assert TOKEN.findall(done.stderr) == []


# What stands around it


def test_every_preset_has_a_page_with_a_command_and_no_other_page_has() -> None:
    have = {page.stem for page in START.glob("*.md") if any(COMMAND.search(block.text) for block in blocks(page))}
    assert have == set(NAMES)
    assert all(Page(name).scripts for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_runs_every_command_that_it_shows(name: str) -> None:
    page = Page(name)
    shown = [found for block in page.blocks for found in COMMAND.findall(block.text) if "refusal" not in block.words]
    assert len(shown) == sum(len(COMMAND.findall(text)) for _, text in page.scripts)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_says_how_the_program_gets_there_and_where_to_look_when_it_fails(name: str) -> None:
    text = Page(name).path.read_text("utf-8")
    assert re.search(r"pip(_| )install", text)
    if name in EXTRAS:
        assert f'pip install "federation-broker[{EXTRAS[name]}] @ git+https://' in text
    assert "`broker whoami`" in text
    links = ("(../identity.md)", "(../mistakes.md)", "(first-exchange.md#your-own-broker)")
    for link in links if name in OWN else (*links, "(../mistakes.md#ask-the-policy)", "(../platforms.md#the-program)"):
        assert text.count(link) == 1, link
    order = [text.index(part) for part in ("\n```", "\n## When it is refused\n", "\n## A safe rule\n", "\n## Dangers\n")]
    assert order == sorted(order)


@pytest.mark.parametrize("name", NAMES)
def test_a_rule_begins_with_what_the_rest_of_the_tree_must_have(name: str) -> None:
    page = Page(name)
    entries = yaml.safe_load(page.files["issuers.yaml"])["issuers"]
    (issuer,) = [each for each, entry in entries.items() if entry == page.entry]
    needed = {"apis.yaml", "environments.yaml", page.env, issuer, "issuers"}
    needed |= {word for api, scopes in page.account["access"].items() for word in (api, *scopes)}
    first = page.path.read_text("utf-8").partition("\n## A safe rule\n\n")[2].partition("`.")[0] + "`"
    assert set(re.findall(r"`([^`]+)`", first)) == needed


def test_nothing_is_installed_by_a_name_that_is_not_ours() -> None:
    """On an index anybody may take a name that we have not: what is installed so would run with the job's identity."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    found = re.compile(r"""pip[_ ]install[\s(]+("[^"]+"|'[^']+'|[^\s`'")]+)""")
    written = [each.strip("\"'") for page in PAGES for each in found.findall(page.read_text("utf-8"))]
    assert len(written) >= len(NAMES)
    ours = re.compile(rf"git\+https://[\w./-]+/broker@{COMMIT}")
    for each in written:
        if each != "." and not each.startswith("-") and not ours.fullmatch(each):
            wanted = Requirement(each)
            assert (wanted.name == project["name"]) is bool(wanted.url and ours.fullmatch(wanted.url)), each
            assert wanted.url is None or wanted.extras <= set(project["optional-dependencies"]), each


@pytest.mark.parametrize("name", ["kubernetes", "aws-eks"])
def test_a_pods_token_lies_where_the_client_looks_and_is_made_for_the_env(name: str) -> None:
    pod = yaml.safe_load(next(block.text for block in blocks(DOCS / "start" / f"{name}.md") if "workflow" in block.words))
    kubernetes_validate.validate(pod, "1.33", strict=True)
    (container,) = pod["spec"]["containers"]
    (mount,), (variable,), (source,) = container["volumeMounts"], container["env"], pod["spec"]["volumes"]
    token = source["projected"]["sources"][0]["serviceAccountToken"]
    assert variable == {"name": "BROKER_SUBJECT_TOKEN_FILE", "value": f"{mount['mountPath']}/{token['path']}"}
    assert mount["name"] == source["name"]
    assert token["audience"] == f"{URL}/{Page(name).env}"
    (detector,) = [each for each in DETECTORS if each.name == "kubernetes"]
    assert variable["value"] == detector.files[0]
    assert f"mountPath: {mount['mountPath']}, " in volume(Around({}))[1]


def test_the_workspaces_variable_is_the_one_that_the_client_names() -> None:
    row, text = ROWS["terraform-cloud"], Page("terraform-cloud").path.read_text("utf-8")
    (key,) = re.findall(r'key += "(\w+)"', text)
    assert row.advice[0].startswith(f"{key}=<audience>")
    assert f"`{row.token[0]}`" in text


def test_a_cluster_that_nobody_outside_can_reach_is_known_by_its_keys_in_a_file(tmp_path: Path) -> None:
    page, ours, other = Page("kubernetes"), OidcIssuer("kubernetes"), OidcIssuer("kubernetes", number=2)
    (shown,) = [block.text for block in page.blocks if "by-file" in block.words]
    (entry,) = yaml.safe_load(shown)["issuers"].values()
    files = page.files | {"issuers.yaml": shown, entry["jwks_file"]: json.dumps({"keys": ours.published})}
    with Broker(tmp_path / "data", write(tmp_path / "policies", files), "--workers", "1") as broker:
        tokens = [each.token(now=time.time(), aud=broker.issuer(page.env), iss=entry["url"]) for each in (ours, other)]
        asked = page.allowed["request"]
        answers = [broker.exchange(token, page.env, audience=asked["audience"], scope=asked["scope"]) for token in tokens]
    assert [answer.status_code for answer in answers] == [200, 400], answers[0].text


@pytest.mark.parametrize(
    ("entry", "use", "code"),
    [
        pytest.param("as shown", "jwt-svid", 200, id="the bundle"),
        pytest.param("as shown", None, 400, id="the discovery provider's keys, taken for the bundle"),
        pytest.param("an issuer", None, 200, id="the discovery provider, an ordinary issuer"),
        pytest.param("an issuer", "sig", 200, id="the discovery provider that says what its keys are for"),
    ],
)
def test_spires_discovery_provider_is_an_issuer_and_no_bundle(entry: str, use: str | None, code: int, tmp_path: Path) -> None:
    page, spire, url = Page("spiffe"), OidcIssuer("spiffe"), "https://oidc.prod.acme.example"
    said = {"use": use} if use else {}
    keys = [{name: value for name, value in jwk.items() if name != "use"} | said for jwk in spire.published]
    shown = {name: value for name, value in page.entry.items() if name != "jwks_url"}
    plain = {"url": url, "algorithms": page.entry["algorithms"], "identity": ["sub"]}
    issuers = {"mesh": (shown if entry == "as shown" else plain) | {"jwks_file": "keys/spire.json"}}
    files = page.files | {"issuers.yaml": yaml.safe_dump({"issuers": issuers}), "keys/spire.json": json.dumps({"keys": keys})}
    with Broker(tmp_path / "data", write(tmp_path / "policies", files), "--workers", "1") as broker:
        token = spire.token(now=time.time(), aud=broker.issuer(page.env), iss=url, **page.allowed["claims"])
        answer = broker.exchange(token, page.env, **page.allowed["request"])
    assert answer.status_code == code, answer.text


def test_a_function_at_vercel_brings_a_token_for_the_env_alone(tmp_path: Path) -> None:
    page, issuer = Page("vercel"), OidcIssuer("vercel")
    issuer.shape = Shape.of("vercel", "exchanged")
    (audience,) = re.findall("^    audience: (.+)$", page.path.read_text("utf-8"), re.MULTILINE)
    broker = Broker(tmp_path / "data", tmp_path / "policies", "--workers", "1")
    entry = page.entry | {"audience": yaml.safe_load(audience.replace(URL, broker.url)), "jwks_file": "keys/vercel.json"}
    shown = {"issuers.yaml": yaml.safe_dump({"issuers": {"vercel": entry, "github": {"preset": "github-actions"}}})}
    write(tmp_path / "policies", page.files | shown | {"keys/vercel.json": json.dumps({"keys": issuer.published})})
    with broker:
        made_for = [broker.issuer(page.env), "https://vercel.com/acme"]
        tokens = [issuer.token(now=time.time(), aud=each, iss=entry["url"], **page.allowed["claims"]) for each in made_for]
        answers = [broker.exchange(token, page.env, **page.allowed["request"]) for token in tokens]
    assert [each.status_code for each in answers] == [200, 400], answers[0].text
    assert answers[1].json()["reason"] == "token_audience"


# With a checkout of the policy


@pytest.mark.needs("jq")
@pytest.mark.parametrize("allowed", [True, False], ids=["whom it admits", "whom it keeps out"])
@pytest.mark.parametrize("name", ["buildkite", "circleci", "google", "kubernetes", "terraform-cloud"])
def test_the_policy_says_what_the_broker_says_when_it_is_asked_as_the_page_of_mistakes_does(
    name: str, allowed: bool, start: Start
) -> None:
    page = Page(name)
    case, (block, _) = page.allowed if allowed else page.denied, page.scripts[0]
    (asking,) = [each.text for each in blocks(DOCS / "mistakes.md") if "run" in each.words]
    whoami, explain = asking.splitlines()
    for option, value in {"env": page.env, "issuer": name, **case["request"]}.items():
        explain, found = re.subn(rf"--{option} \S+", f"--{option} {value}", explain)
        assert found == 1
    variables = f"export BROKER_URL={URL} BROKER_ENV={page.env} BROKER_POLICIES={start.broker.policies}"
    done = start.run(page, case, block, f"{variables}\n{whoami}\n{explain}")
    assert done.code == 0, done.stderr
    assert not done.credentials
    assert re.search("^ALLOWED" if allowed else "^REFUSED", done.stdout, re.MULTILINE)
    assert allowed or re.search(r"^reason +no_rule_matched|^ +- \w.* expected .* seen ", done.stdout, re.MULTILINE)


# In a service


def test_a_service_gets_a_credential_or_is_told_why_not_as_the_clients_page_has_it(start: Start) -> None:
    page = Page("buildkite")
    (program,) = [each.text for each in blocks(DOCS / "client.md") if "except Refused" in each.text]
    script = f"python - <<'END'\n{program}\nprint(token)\nEND"
    done = start.run(page, page.allowed, page.scripts[0][0], script)
    assert (done.code, len(done.credentials)) == (0, 1), done.stderr
    done = start.run(page, page.denied, page.scripts[0][0], script)
    assert (done.code, done.credentials) == (1, set())
    assert re.match(r"claims_not_satisfied\n.*\nbuild_branch is mallory:main\n.*request req_", done.stderr, re.DOTALL), done.stderr
