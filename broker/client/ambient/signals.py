"""The detectors, in the order in which they are asked.  Data only: what is loaded is what a sign points to."""

from __future__ import annotations

from typing import NamedTuple


class Detector(NamedTuple):
    """One way to an identity.

    `variables`, `files`, `program`: signs, of which one must be there for `module` to be worth loading; without any it always
    looks.  `way`: how a token is got; `audience`: what it is made for.  Both are words for docs/identity.md.
    """

    name: str
    title: str
    rank: int
    module: str
    way: str
    audience: str
    variables: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    program: str = ""
    function: str = "look"

    @property
    def shared(self) -> bool:
        """Whether to a job it is its runner's, and so every job's on it."""
        return self.rank >= CLOUD or self.name in {"kubernetes", "spiffe", "fly"}

    @property
    def looks_for(self) -> str:
        """Its signs, in words."""
        signs = (*self.variables, *self.files, *((f"{self.program} in PATH",) if self.program else ()))
        return " or ".join(signs) or "an answer at 169.254.169.254"


CLOUD, MACHINE = 4, 5  # the ranks of what several workloads have in common
ASKED = "as asked"
JOB_FILE = "what the job says"
REQUEST_URL = "ACTIONS_ID_TOKEN_REQUEST_URL"

DETECTORS: tuple[Detector, ...] = (
    Detector(
        "file", "a file", 1, "given", "reads the file, for each exchange anew", "what it was made for",
        variables=("BROKER_SUBJECT_TOKEN_FILE",), function="look_file",
    ),
    Detector(
        "variable", "a variable", 1, "given", "reads the variable", "what it was made for",
        variables=("BROKER_SUBJECT_TOKEN",), function="look_variable",
    ),
    Detector(
        "github-actions", "GitHub Actions", 2, "actions", "asks the job's request URL", ASKED,
        variables=("GITHUB_ACTIONS", REQUEST_URL),
    ),
    Detector(
        "forgejo-actions", "Forgejo Actions", 2, "actions", "asks the job's request URL", ASKED,
        variables=("FORGEJO_ACTIONS", "GITEA_ACTIONS", REQUEST_URL),
    ),
    Detector(
        "depot", "Depot CI", 2, "actions", "asks the job's request URL", ASKED,
        variables=("DEPOT_JOB_URL", REQUEST_URL),
    ),
    Detector(
        "gitlab", "GitLab CI/CD", 2, "variables", "reads `BROKER_ID_TOKEN`", JOB_FILE,
        variables=("BROKER_ID_TOKEN", "GITLAB_CI"),
    ),
    Detector(
        "buildkite", "Buildkite", 2, "programs", "runs `buildkite-agent oidc request-token`", ASKED,
        variables=("BUILDKITE",),
    ),
    Detector(
        "circleci", "CircleCI", 2, "programs", "runs `circleci run oidc get`; else reads `CIRCLE_OIDC_TOKEN_V2`",
        "as asked; the variable: the organisation's id",
        variables=("CIRCLECI",),
    ),
    Detector(
        "bitbucket", "Bitbucket Pipelines", 2, "variables", "reads `BITBUCKET_STEP_OIDC_TOKEN`", JOB_FILE,
        variables=("BITBUCKET_STEP_OIDC_TOKEN", "BITBUCKET_BUILD_NUMBER"),
    ),
    Detector(
        "azure-devops", "Azure DevOps Pipelines", 2, "azure_devops", "asks `SYSTEM_OIDCREQUESTURI`",
        "fixed: `api://AzureADTokenExchange`",
        variables=("TF_BUILD", "SYSTEM_OIDCREQUESTURI"),
    ),
    Detector(
        "terraform-cloud", "HCP Terraform", 2, "variables", "reads `TFC_WORKLOAD_IDENTITY_TOKEN`, or `…_TOKEN_BROKER`",
        "what the workspace says",
        variables=("TFC_RUN_ID", "TFC_WORKLOAD_IDENTITY_TOKEN", "TFC_WORKLOAD_IDENTITY_TOKEN_BROKER"),
    ),
    Detector(
        "spacelift", "Spacelift", 2, "variables", "reads `SPACELIFT_OIDC_TOKEN`, or its file", "fixed: the account's host name",
        variables=("SPACELIFT_OIDC_TOKEN",), files=("/mnt/workspace/spacelift.oidc",),
    ),
    Detector(
        "jenkins", "Jenkins", 2, "variables", "takes what `withCredentials` binds to `BROKER_SUBJECT_TOKEN`",
        "what the credential says",
        variables=("JENKINS_URL",),
    ),
    Detector(
        "semaphore", "Semaphore", 2, "variables", "reads `SEMAPHORE_OIDC_TOKEN`", "fixed: the organisation's URL",
        variables=("SEMAPHORE", "SEMAPHORE_OIDC_TOKEN"),
    ),
    Detector(
        "codefresh", "Codefresh", 2, "variables", "reads `ID_TOKEN`", "what the step says",
        variables=("CF_BUILD_ID",),
    ),
    Detector(
        "env0", "env0", 2, "variables", "reads `ENV0_OIDC_TOKEN`", "fixed: env0's own",
        variables=("ENV0_OIDC_TOKEN",),
    ),
    Detector(
        "pulumi", "Pulumi", 2, "variables", "takes what `fn::open::oidc` puts into `BROKER_SUBJECT_TOKEN`",
        "what the environment says",
        variables=("PULUMI_CI",),
    ),
    Detector(
        "harness", "Harness", 2, "variables", "takes what the step puts into `BROKER_SUBJECT_TOKEN`",
        "what the identity in the pipeline says",
        variables=("HARNESS_PIPELINE_ID",),
    ),
    Detector(
        "buddy", "Buddy", 2, "variables", "takes what the action puts into `BROKER_SUBJECT_TOKEN`", "what the action says",
        variables=("BUDDY",),
    ),
    Detector(
        "cursor-cloud-agents", "Cursor Cloud Agents", 2, "sockets", "asks the agent's socket", ASKED,
        variables=("CURSOR_AGENT_SOCKET",), files=("/run/cursor/api.sock",), function="look_cursor",
    ),
    Detector(
        "devin", "Devin", 2, "programs", "runs `devin-oidc token`", ASKED,
        program="devin-oidc",
    ),
    Detector(
        "vercel", "Vercel", 3, "variables", "reads `VERCEL_OIDC_TOKEN`", "the team's default: its URL at vercel.com",
        variables=("VERCEL", "VERCEL_OIDC_TOKEN"),
    ),
    Detector(
        "fly", "Fly.io", 3, "sockets", "asks the machine's socket", ASKED,
        variables=("FLY_MACHINE_ID",), files=("/.fly/api",), function="look_fly",
    ),
    Detector(
        "modal", "Modal", 3, "variables", "reads `MODAL_IDENTITY_TOKEN`", "fixed: `oidc.modal.com`",
        variables=("MODAL_IDENTITY_TOKEN",),
    ),
    Detector(
        "render", "Render", 3, "variables", "takes what you put into `BROKER_SUBJECT_TOKEN_FILE`", "fixed: AWS's",
        variables=("RENDER",),
    ),
    Detector(
        "deno-deploy", "Deno Deploy", 3, "variables", "takes what `getIdToken` gave, in `BROKER_SUBJECT_TOKEN`",
        "what the call says",
        variables=("DENO_DEPLOYMENT_ID",),
    ),
    Detector(
        "kubernetes", "Kubernetes", 3, "kubernetes", "reads the projected token, for each exchange anew", "what the volume says",
        variables=("KUBERNETES_SERVICE_HOST",),
        files=("/var/run/secrets/broker/token", "/var/run/secrets/tokens/broker"),
    ),
    Detector(
        "spiffe", "SPIFFE", 3, "spiffe", "asks the Workload API", ASKED,
        variables=("SPIFFE_ENDPOINT_SOCKET",),
        files=("/run/spire/agent/public/api.sock", "/run/spire/sockets/agent.sock"),
    ),
    Detector(
        "google", "Google Cloud", 4, "google", "asks the metadata server", ASKED,
        variables=("GCE_METADATA_HOST", "K_SERVICE", "CLOUD_RUN_JOB"), function="look_announced",
    ),
    Detector(
        "azure", "Microsoft Azure", 4, "azure", "asks the identity endpoint, or exchanges the workload's token at Entra",
        "an app registration",
        variables=("IDENTITY_ENDPOINT", "MSI_ENDPOINT", "AZURE_FEDERATED_TOKEN_FILE"), function="look_announced",
    ),
    Detector(
        "aws-sts", "AWS", 4, "aws", "asks STS with the credentials that are here", ASKED,
        variables=(
            "AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_LAMBDA_FUNCTION_NAME",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        ),
        function="look_announced",
    ),
    Detector("google", "Google Cloud", 5, "google", "asks the metadata server", ASKED, function="look_machine"),
    Detector("azure", "Microsoft Azure", 5, "azure", "asks the metadata server (IMDS)", "an app registration",
             function="look_machine"),
    Detector("aws-sts", "AWS", 5, "aws", "asks STS with the instance's credentials (IMDSv2)", ASKED, function="look_machine"),
)  # fmt: skip
