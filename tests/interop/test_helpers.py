"""git, kubectl and docker's SDK, none of them changed, get in by `broker helper`, as docs/helpers.md has it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import docker.auth
import docker.errors
import pytest
import yaml
from docker.credentials import Store
from docker.credentials.errors import CredentialsNotFound, StoreError

from tests.interop import helpers_job
from tests.interop.helpers_job import GIT, HAS_WHEEL, PAGE, Change, Git, Job, Kubectl, asked_of_us, block
from tests.interop.helpers_servers import ApiServer, GitServer, Verifier
from tests.support import tree
from tests.support.place import Place
from tests.support.tls import Authority

ACCOUNT = "svc-payments-deploy"
ACCESS = "  git: [repo:read, repo:write]\n  registry: [images:read, images:write]\n  cluster: [workloads:write]\n"
REGISTRY = "registry.acme.example"
WRONG = {"ref": "refs/heads/main"}
REFUSAL = "prod refused this workload: claims_not_satisfied"
ENDS_WITHIN_S = 6.0

needs_git = pytest.mark.needs("git")
needs_kubectl = pytest.mark.needs(*([] if HAS_WHEEL else ["kubectl"]))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """What the jobs of this file share."""
    folder = tmp_path_factory.mktemp("helpers")
    authority = Authority.create(folder)
    context = authority.server()
    git_server, api_server = GitServer(folder / "repositories", context), ApiServer(context)
    apis = block("yaml workflow apis").replace(GIT, git_server.url).removeprefix("apis:\n")
    account = tree.DEPLOY.replace("access:\n", f"access:\n{ACCESS}")
    accounts = {"apis.yaml": tree.APIS + apis, **{f"{env}/{ACCOUNT}.yaml": account for env in ("prod", "dev")}}
    with Place(folder, accounts) as place:
        git_server.verifier.issuer = f"{place.front.url}/prod"
        yield Job(place, git_server, api_server, authority.ca_file, folder)
    git_server.close()
    api_server.server.close()


@pytest.fixture
def job(here: Job, tmp_path: Path) -> Job:
    here.place.front.requests.clear()
    here.place.claims = {}
    return Job(here.place, here.git_server, here.api_server, here.ca_file, tmp_path)


# git


@pytest.fixture(scope="module")
def repository(here: Job) -> None:
    """A repository with one commit at the git server."""
    folder = here.git_server.folder
    committer = ("-c", "user.name=a", "-c", "user.email=a@acme.example")
    for words in (
        ("init", "-q", folder / "seed"),
        ("-C", folder / "seed", *committer, "commit", "-q", "--allow-empty", "-m", "A beginning"),
        ("clone", "-q", "--bare", folder / "seed", folder / "payments.git"),
    ):
        assert here.run("git", *words).returncode == 0


@pytest.fixture
def git(job: Job, repository: None) -> Git:
    job.git_server.verifier.uses_max = None
    job.git_server.verifier.shown.clear()
    job.git_server.users.clear()
    return Git(job)


@needs_git
def test_git_clones_and_pushes_with_an_exchange_each_and_keeps_nothing(git: Git) -> None:
    job, server = git.job, git.job.git_server
    git.paste()
    git.paste()  # whoever pastes it twice has the same
    cloned = git("clone", "-q", job.repository, "work", GIT_TRACE="1")
    assert (cloned.returncode, job.exchanges, asked_of_us(cloned)) == (0, 1, ["get", "store"]), cloned.stderr
    git("-C", "work", "commit", "-q", "--allow-empty", "-m", "A release")
    pushed = git("-C", "work", "push", "-q", "origin", "HEAD:refs/heads/release", GIT_TRACE="1")
    assert (pushed.returncode, job.exchanges, asked_of_us(pushed)) == (0, 2, ["get", "store"]), pushed.stderr
    head = git("-C", "work", "rev-parse", "HEAD").stdout
    assert git("ls-remote", job.repository, "release").stdout.startswith(head.strip())
    assert set(server.users) == {ACCOUNT}
    assert [form["audience"] for form in job.place.front.exchanges()] == [[server.url]] * 3
    assert job.kept(server.verifier.shown) == []
    assert git.others == []


@needs_git
def test_without_the_pages_first_line_git_hands_the_credential_to_every_helper(git: Git) -> None:
    git.paste((block("sh git").splitlines()[0], ""))
    assert git("ls-remote", git.job.repository).returncode == 0
    assert git.job.kept(git.job.git_server.verifier.shown) == [git.job.home / ".git-credentials"]


@needs_git
@pytest.mark.parametrize("askpass", [True, False], ids=["with a prompt of its own", "without a terminal"])
def test_a_refused_exchange_stops_git_with_our_reason_and_nobody_else_is_asked(git: Git, askpass: bool) -> None:
    git.job.place.claims = WRONG
    git.paste()
    prompt = str(git.askpass) if askpass else ""
    done = git("-c", f"credential.helper={git.other}", "ls-remote", git.job.repository, GIT_ASKPASS=prompt)
    assert done.returncode == 128
    assert f"error: {REFUSAL}" in done.stderr
    assert "told us to quit" in done.stderr
    assert "could not read" not in done.stderr
    assert (git.others, git.job.exchanges) == ([], 1)


@needs_git
def test_where_there_is_no_answer_git_goes_on_to_others_and_its_prompt(git: Git) -> None:
    """What a refusal prevents, and what a misspelt option does not."""
    git.paste(("--scope repo:read", "--skope repo:read"))
    done = git("-c", f"credential.helper={git.other}", "ls-remote", git.job.repository)
    assert done.returncode == 128
    assert "--skope" in done.stderr
    assert git.others == ["get", f"Username for '{git.job.git_server.url}': "]


@needs_git
def test_a_credential_that_the_server_refuses_is_erased_and_no_other_is_asked_for(git: Git) -> None:
    git.job.git_server.verifier.uses_max = 0
    git.paste()
    done = git("ls-remote", git.job.repository, GIT_TRACE="1")
    assert (done.returncode, asked_of_us(done)) == (128, ["get", "erase"])
    assert "Authentication failed" in done.stderr
    assert git.job.kept(git.job.git_server.verifier.shown) == []


@needs_git
def test_a_credential_that_ends_within_a_command_fails_it_and_the_next_one_gets_another(git: Git) -> None:
    git.job.git_server.verifier.uses_max = 1
    git.paste()
    done = git("clone", "-q", git.job.repository, "work", GIT_TRACE="1")
    assert (done.returncode, asked_of_us(done)) == (128, ["get", "store", "erase"])
    assert "HTTP 401" in done.stderr
    git.job.git_server.verifier.uses_max = None
    assert git("clone", "-q", git.job.repository, "work").returncode == 0


@needs_git
def test_an_expired_credential_is_never_used_again(git: Git) -> None:
    verifier = git.job.git_server.verifier
    git.paste()
    assert git("ls-remote", git.job.repository, BROKER_TTL="2s").returncode == 0
    first, deadline = verifier.shown[-1], time.monotonic() + ENDS_WITHIN_S
    while not verifier.refuses(first):
        assert time.monotonic() < deadline, "it does not expire"
        time.sleep(0.02)
    verifier.shown.clear()
    assert git("ls-remote", git.job.repository).returncode == 0
    assert (first in verifier.shown, git.job.exchanges) == (False, 2)


@needs_git
def test_a_path_makes_no_difference(git: Git) -> None:
    git.paste()
    done = git("-c", "credential.useHttpPath=true", "ls-remote", git.job.repository)
    assert done.returncode == 0, done.stderr
    assert git.job.place.front.exchanges()[0]["audience"] == [git.job.git_server.url]


@needs_git
def test_nothing_travels_in_the_clear(git: Git) -> None:
    """A server that asks for a password over plain http, here through a proxy, gets none, whatever Api is named."""
    helper = "credential.helper=!broker helper --audience git --scope repo:read git"
    proxy = f"http.proxy={git.job.git_server.plain.url}"
    done = git("-c", proxy, "-c", "credential.helper=", "-c", helper, "ls-remote", "http://git.acme.example/payments.git")
    assert done.returncode == 128
    assert "error: http://git.acme.example is not https" in done.stderr
    assert (git.job.exchanges, git.others) == (0, [])


@needs_git
def test_what_may_only_read_does_not_push(git: Git) -> None:
    git.paste((" --scope repo:write", ""))
    assert git("clone", "-q", git.job.repository, "work").returncode == 0
    done = git("-C", "work", "push", "-q", "origin", "HEAD:refs/heads/other")
    assert (done.returncode, "403" in done.stderr) == (128, True)


# kubectl


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return helpers_job.kubectl_program(tmp_path_factory.mktemp("kubectl"))


@pytest.fixture
def kubectl(job: Job, program: Path) -> Kubectl:
    job.api_server.trust(yaml.safe_load(job.shown("yaml workflow authentication"))["jwt"][0])
    return Kubectl(job, program)


@needs_kubectl
@pytest.mark.parametrize("version", ["v1", "v1beta1"])
@pytest.mark.parametrize("told", ["false", "true"], ids=["", "provideClusterInfo"])
def test_kubectl_gets_pods_with_one_exchange_a_command_and_keeps_nothing(kubectl: Kubectl, version: str, told: str) -> None:
    job, server = kubectl.job, kubectl.job.api_server
    changes = (("k8s.io/v1\n", f"k8s.io/{version}\n"), ("provideClusterInfo: false", f"provideClusterInfo: {told}"))
    done = kubectl(*changes)
    assert (done.returncode, done.stderr, "payments-7d4b" in done.stdout) == (0, "", True)
    assert (len(server.paths) > 1, job.exchanges) == (True, 1)
    assert kubectl(*changes).returncode == 0
    assert (len(set(server.verifier.shown)), job.exchanges) == (2, 2)
    assert set(server.users) == {f"broker:{ACCOUNT}"}
    assert job.kept(server.verifier.shown) == []


@needs_kubectl
def test_kubectl_shows_why_an_exchange_was_refused(kubectl: Kubectl) -> None:
    kubectl.job.place.claims = WRONG
    done = kubectl()
    assert done.returncode == 1
    assert f"error: {REFUSAL}" in done.stderr
    assert done.stderr.endswith("getting credentials: exec: executable broker failed with exit code 1\n")
    assert kubectl.job.api_server.paths == []
    assert kubectl.job.exchanges == done.stderr.count(REFUSAL) == 5


@needs_kubectl
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param([("=cluster", "=registry"), ("=workloads:write", "=images:read")], id="for another Api"),
        pytest.param([("--env=prod", "--env=dev")], id="of another env"),
    ],
)
def test_the_api_server_believes_no_other_credential(kubectl: Kubectl, changes: list[Change]) -> None:
    done = kubectl(*changes)
    assert (done.returncode, kubectl.job.api_server.users) == (1, [])
    assert "You must be logged in to the server" in done.stderr, done.stderr
    assert kubectl.job.exchanges > 1  # each one that is refused makes kubectl ask for another


# docker's SDK


@pytest.fixture
def sdk(job: Job, monkeypatch: pytest.MonkeyPatch) -> Job:
    """The page's variables around docker's SDK, in this process."""
    done = job.run("sh", "-euc", f"{job.shown('sh docker')}\nenv -0")
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for line in done.stdout.rstrip("\0").split("\0"):
        monkeypatch.setenv(*line.split("=", 1))
    monkeypatch.setenv("PATH", f"{job.home}:{job.environment['PATH']}")
    return job


def resolved(job: Job, info: str) -> dict[str, str]:
    """What docker would log in with, by a `config.json` of the page."""
    config = job.home / "config.json"
    config.write_text(job.shown(info))
    return docker.auth.load_config(str(config)).resolve_authconfig(REGISTRY)


def scope(job: Job, credential: str) -> str:
    """What the registry reads in a credential.  Raises `jwt.PyJWTError`."""
    return Verifier(f"https://{REGISTRY}", f"{job.place.front.url}/prod").claims(credential)["scope"]


def test_docker_logs_in_at_the_registry_that_its_configuration_names(sdk: Job) -> None:
    found = resolved(sdk, "json docker")
    assert (found["ServerAddress"], found["Username"]) == (REGISTRY, ACCOUNT)
    assert scope(sdk, found["Password"]) == "images:read images:write"
    assert resolved(sdk, "json docker")["Password"] != found["Password"]
    assert sdk.kept([found["Password"]]) == []


def test_docker_logs_in_by_a_script_that_has_options(sdk: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    sdk.script("docker-credential-acme", sdk.shown("sh script"))
    for name in ("BROKER_URL", "BROKER_ENV", "BROKER_SCOPE"):
        monkeypatch.delenv(name)
    assert scope(sdk, resolved(sdk, "json script")["Password"]) == "images:read"


def test_docker_lists_stores_and_erases_nothing(sdk: Job) -> None:
    store = Store("broker")
    with pytest.raises(StoreError, match="just pull or push"):
        store.store(REGISTRY, "mona", "a password")
    assert store.list() == {}
    store.erase(REGISTRY)
    assert sdk.exchanges == 0
    assert sdk.kept(["a password"]) == []


@pytest.mark.parametrize("registry", [REGISTRY, "elsewhere.example"])
def test_a_refused_exchange_is_an_error_of_dockers_with_our_reason(
    sdk: Job, registry: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """`CredentialsNotFound` would be none: docker then goes on without a name."""
    sdk.place.claims = WRONG if registry == REGISTRY else {}
    with pytest.raises(StoreError, match="prod refused this workload") as caught:
        Store("broker").get(registry)
    assert not isinstance(caught.value, CredentialsNotFound)
    assert capfd.readouterr().err.startswith("error: prod refused this workload")


def test_a_refused_exchange_stops_the_sdk(sdk: Job) -> None:
    sdk.place.claims = WRONG
    with pytest.raises(docker.errors.DockerException, match=REFUSAL):
        resolved(sdk, "json docker")


def test_every_block_of_the_page_is_run() -> None:
    run = ["yaml workflow apis", "sh git", "sh docker", "json docker", "sh script", "json script"]
    assert [each.info for each in PAGE] == [*run, "yaml workflow kubeconfig", "yaml workflow authentication"]
