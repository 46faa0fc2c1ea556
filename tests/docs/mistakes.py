"""Mistakes that people make, made on purpose: what the client's output says is what docs/mistakes.md shows.

Each case runs `broker token` (or what it names) against a real broker; `says` is the line that tells what to change, matched as
a whole.  `python -m tests.docs.mistakes` writes the page anew; test_mistakes.py runs every case and compares.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.docs.pages import DOCS
from tests.support.place import Front, Place, Reply
from tests.support.tls import Authority

PAGE = DOCS / "mistakes.md"
Done = subprocess.CompletedProcess[str]
ASK = ("token", "--audience", "payments", "--scope", "deploy:write")
RUNNER = ("ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN")
NOWHERE = ("GITHUB_ACTIONS", "CI", *RUNNER)

ACCOUNT = """service_account: {name}
owner: team-payments
tags: {{system: payments}}
expires: 2027-06-30
access: {{payments: [deploy:write]}}
trust:
  - name: {name}
    issuer: github
    where: {where}
"""
OVERLOADED = b'{"error": "temporarily_unavailable", "error_description": "too many requests; try again later"}'
TWICE = '{repository_id: "7432113", environment: production}'
EXTRA = {
    "prod/svc-by-name.yaml": ACCOUNT.format(name="svc-by-name", where='{repository_id: "acme/search"}'),
    "prod/svc-one.yaml": ACCOUNT.format(name="svc-one", where=TWICE),
    "prod/svc-two.yaml": ACCOUNT.format(name="svc-two", where=TWICE),
}


@dataclass(frozen=True, slots=True)
class Mistake:
    """What was done, how to do it, the exit code, and the line of the output that says what to change."""

    title: str
    act: Callable[[Place, Path], Done]
    code: int
    says: str


def ask(*arguments: str, without: tuple[str, ...] = (), claims: dict[str, object] | None = None, **variables: str) -> Callable[..., Done]:
    def act(place: Place, _: Path) -> Done:
        place.claims = claims or {}
        return place.run(*(arguments or ASK), without=without, **variables)

    return act


def held(**claims: object) -> Callable[..., Done]:
    """A token that somebody put into a variable."""

    def act(place: Place, _: Path) -> Done:
        return place.run(*ASK, BROKER_SUBJECT_TOKEN=place.token(**claims), without=NOWHERE)

    return act


def fork(place: Place, folder: Path) -> Done:
    event = folder / "event.json"
    event.write_text(json.dumps({"pull_request": {"head": {"repo": {"fork": True, "full_name": "mallory/payments"}}}}))
    return place.run(*ASK, without=RUNNER, GITHUB_EVENT_NAME="pull_request", GITHUB_EVENT_PATH=str(event))


def another_name(place: Place, _: Path) -> Done:
    url = place.front.url.replace("127.0.0.1", "localhost")
    return place.run(*ASK, "--url", url)


def used_twice(place: Place, _: Path) -> Done:
    token = place.token()
    place.run(*ASK, BROKER_SUBJECT_TOKEN=token, without=NOWHERE)
    return place.run(*ASK, BROKER_SUBJECT_TOKEN=token, without=NOWHERE)


def answered(*replies: Reply) -> Callable[..., Done]:
    def act(place: Place, _: Path) -> Done:
        place.front.script += replies
        return place.run(*ASK, "--patience", "1s")

    return act


def untrusted(place: Place, folder: Path) -> Done:
    front = Front(place.broker.url)
    try:
        front.server.server.socket = Authority.create(folder).server().wrap_socket(front.server.server.socket, server_side=True)
        return place.run(*ASK, BROKER_URL=front.url.replace("http://", "https://"))
    finally:
        front.server.close()


def revoked(place: Place, _: Path) -> Done:
    words = ("--service-account", "svc-one", "--env", "prod", "--reason", "leaked", "--yes", "--json")
    made = place.broker.run("revoke", *words).stdout
    try:
        return ask(*ASK, "--service-account", "svc-one", claims={"repository_id": "7432113"})(place, Path())
    finally:
        place.broker.run("revoke", "lift", json.loads(made.splitlines()[0])["id"], "--reason", "over", "--yes")


def issuer_down(place: Place, _: Path) -> Done:
    """The broker has never seen this issuer's keys, and the issuer does not answer."""
    token = place.away.token(now=time.time(), aud=f"{place.front.url}/prod")
    return place.run(*ASK, "--patience", "2s", BROKER_SUBJECT_TOKEN=token, without=NOWHERE)


MISTAKES: tuple[Mistake, ...] = (
    Mistake("The workflow lacks its permission line", ask(without=RUNNER), 3, r"hint: .*id-token: write.*"),
    Mistake("A pull request from a fork", fork, 3, r"hint: run what needs a credential after the merge.*"),
    Mistake("A GitLab job without `id_tokens:`", ask(without=NOWHERE, GITLAB_CI="true", CI="true"), 3, r"hint: .*id_tokens.*"),
    Mistake(
        "A GitLab variable that nobody expanded",
        ask(without=NOWHERE, GITLAB_CI="true", BROKER_ID_TOKEN="$BROKER_ID_TOKEN"),
        3,
        r"hint: .*id_tokens.*",
    ),
    Mistake(
        "A pod without a projected token",
        ask(without=NOWHERE, KUBERNETES_SERVICE_HOST="10.0.0.1"),
        3,
        r"hint: .*serviceAccountToken.*",
    ),
    Mistake(
        "A pod whose volume is not mounted",
        ask(without=NOWHERE, KUBERNETES_SERVICE_HOST="10.0.0.1", BROKER_SUBJECT_TOKEN_FILE="/var/run/secrets/broker/token"),
        3,
        r"hint: volumeMounts: .*",
    ),
    Mistake(
        "Half of a cloud's variables",
        ask(without=NOWHERE, AWS_ACCESS_KEY_ID="a"),
        3,
        r"hint: AWS_ACCESS_KEY_ID is set, AWS_SECRET_ACCESS_KEY is not",
    ),
    Mistake("A machine with no identity at all", ask(without=NOWHERE, CI="true"), 3, r"hint: a platform that is not known here: .*"),
    Mistake("An identity token made for somebody else", held(aud="sts.amazonaws.com"), 1, r"hint: the identity token is made for .*"),
    Mistake("The staging job's token, presented at prod", held(env="dev"), 3, r"hint: have it made for .*"),
    Mistake("An env that does not exist", ask(*ASK, "--env", "production"), 3, r"hint: .*/production/\.well-known/openid-configuration answers .*"),
    Mistake("The wrong branch", ask(claims={"ref": "refs/heads/fix-typo"}), 1, r"hint: ref is refs/heads/fix-typo"),
    Mistake("The wrong GitHub environment", ask(claims={"environment": "staging"}), 1, r"hint: environment is staging"),
    Mistake("No GitHub environment", ask(claims={"environment": None}), 1, r"hint: the job has no environment: .*"),
    Mistake(
        "A `pull_request_target` run, where a stranger's code may be at work",
        ask(claims={"event_name": "pull_request_target"}),
        1,
        r"hint: event_name is pull_request_target",
    ),
    Mistake("A workflow copied to another repository", ask(claims={"repository_id": "99"}), 1, r"hint: are env \(prod\), audience, scope right, .*"),
    Mistake(
        "The rule has the repository's name where its id belongs",
        ask(claims={"repository": "acme/search", "repository_id": "7432114"}),
        1,
        r"hint: are env \(prod\), audience, scope right, .*",
    ),
    Mistake("An identity token that has expired", held(shift_s=-7200), 1, r"hint: fetch it right before the exchange; .*"),
    Mistake("A clock that is off", held(shift_s=3600), 1, r"hint: this machine's clock or the broker's is off.*"),
    Mistake(
        "The broker's URL by another name than its own",
        another_name,
        1,
        r"hint: the broker calls itself .*: --url .*",
    ),
    Mistake("An identity token used a second time", used_twice, 1, r"hint: BROKER_SUBJECT_TOKEN holds a token that was used already.*"),
    Mistake("An issuer that the broker does not trust", held(iss="https://token.example"), 1, r"hint: its issuer is https://token\.example.*"),
    Mistake("An Api that does not exist", ask("token", "-a", "paymentz", "--scope", "deploy:write"), 1, r"hint: an audience is the name of an Api.*"),
    Mistake(
        "A scope too many",
        ask("token", "-a", "payments", "--scope", "deploy:write releases:delete"),
        1,
        r"hint: open to this workload: .*",
    ),
    Mistake(
        "Scopes with a comma between them",
        ask("token", "-a", "payments", "--scope", "deploy:write,releases:read"),
        1,
        r"hint: .* separate names by spaces, or repeat the option",
    ),
    Mistake("No scope", ask("token", "-a", "payments"), 1, r"hint: .*--scope .*"),
    Mistake("A service account that does not exist", ask(*ASK, "--service-account", "svc-payment"), 1, r"hint: .*service account \(svc-payment\) right.*"),
    Mistake(
        "Two service accounts that fit", ask(claims={"repository_id": "7432113"}), 1, r"hint: --service-account chooses: svc-one, svc-two"
    ),
    Mistake("Access that security has cut off", revoked, 1, r"hint: security cut this access off.*"),
    Mistake("The issuer's keys cannot be had", issuer_down, 3, r"hint: .*issuer's keys are away.*"),
    Mistake("The broker is down", ask(*ASK, "--patience", "1s", BROKER_URL="http://127.0.0.1:9"), 3, r"hint: is the URL right, .*"),
    Mistake("A name that is not in the DNS", ask(*ASK, "--patience", "1s", BROKER_URL="https://broker.invalid"), 3, r"hint: is the URL right\?"),
    Mistake("A certificate that this machine does not trust", untrusted, 3, r"hint: SSL_CERT_FILE=.*"),
    Mistake("The broker is overloaded", answered(Reply(503, {"Retry-After": "30"}, OVERLOADED)), 3, r"hint: .*--patience.*"),
    Mistake("A redirect to a login page", answered(Reply(302, {"Location": "https://login.acme.example/"})), 3, r"hint: name the broker's own URL"),
    Mistake("Another server at that address", answered(Reply(200, {}, b"<html>")), 3, r"hint: is this the broker's URL\?.*"),
    Mistake("`http://` in a URL", ask(BROKER_URL="http://broker.acme.example"), 2, r"hint: .*http is for loopback only"),
    Mistake("The env in the URL", ask(BROKER_URL="https://broker.acme.example/prod"), 2, r"hint: --url .* --env prod"),
    Mistake("No broker named", ask(without=("BROKER_URL",)), 2, r"hint: --url .*, or BROKER_URL"),
    Mistake("A time without a meaning", ask(*ASK, "--ttl", "10d"), 2, r"hint: write a number and a unit.*"),
)


# The page


@contextmanager
def world(folder: Path) -> Iterator[Place]:
    with Place(folder, EXTRA) as place:
        yield place


def tried(mistake: Mistake, place: Place, folder: Path) -> Done:
    place.front.script.clear()
    place.claims = {}
    return mistake.act(place, folder)


def telling_line(mistake: Mistake, done: Done) -> str:
    """The line that says what to change; empty if there is none."""
    return next((line for line in done.stderr.splitlines() if re.fullmatch(mistake.says, line)), "")


def lasting(line: str) -> str:
    """A line without what differs from run to run."""
    line = re.sub(r"http://127\.0\.0\.1:\d{4,5}", "https://broker.acme.example", line)
    line = re.sub(r"https://127\.0\.0\.1:\d{4,5}", "https://broker.acme.example", line)
    line = re.sub(r"req_[\w-]{20}", "REQUEST", re.sub(r"\b[0-9a-f]{32}\b", "TRACE", line))
    line = re.sub(r"\b\d+ s (ago|from now)\b", r"7200 s \1", line)
    return line.removeprefix("error: ").removeprefix("hint: ")


HEAD = """# Mistakes, and what the client says

<!-- Generated by `python -m tests.docs.mistakes`: each row was made on purpose, and these lines are what came out. -->

A refusal also prints the page of its reason ([errors.md](errors.md)) and the request's id, by which whoever runs the broker sees more:
`broker policy explain --request REQUEST_ID`. Last come the claims that were presented: all of them where the refusal is about who asks,
else `iss` and `sub`, and `broker whoami` shows the others. Claims with a person's address are named and not shown.

## Ask the policy

To a workload that no rule names, the broker says little, on purpose. Whoever has a checkout of the policy needs no broker to learn the
rest: `broker whoami` prints the claims and never the token, and `broker policy explain` decides by the tree of the checkout.

```sh run
broker whoami --json | jq .claims | tee claims.json      # in the job, with the --url and --env of its broker token
broker policy explain --env prod --issuer github --claims-file claims.json --audience payments --scope deploy:write
```

`explain` needs all of [the program](platforms.md#the-program):
`pip install "federation-broker[server] @ git+https://github.com/acme/broker@0123456789abcdef0123456789abcdef01234567"`. `--issuer` is the
entry in `issuers.yaml`; the tree is the folder `policies`, or what `--policies` names. The answer goes rule by rule, claim by claim:
expected, seen, and the smallest change that would let the workload in. `--exit-code` makes a refusal the exit code 1.

## The mistakes

Made on purpose with `broker token`, against a real broker.

| mistake | exit code | what it says | what it says to change |
|---|---|---|---|
"""


def row(mistake: Mistake, done: Done) -> str:
    first = next((line for line in done.stderr.splitlines() if line.startswith("error: ")), "")
    change = telling_line(mistake, done)
    cells = (mistake.title, str(done.returncode), lasting(first), "" if change == first else lasting(change))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, world(Path(folder)) as place:
        PAGE.write_text(HEAD + "".join(row(mistake, tried(mistake, place, Path(folder))) for mistake in MISTAKES), "utf-8")


if __name__ == "__main__":
    sys.exit(main())
