"""A small policy tree for tests, written as files: one issuer of each shape that a test asks for, two Apis, two envs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

ENVIRONMENTS = """environments:
  prod: {max_ttl: 15m, default_ttl: 10m, issuers: [ISSUERS]}
  dev: {max_ttl: 1h, issuers: [ISSUERS]}
"""

APIS = """apis:
  payments:
    audience: https://payments.acme.example
    scopes:
      deploy:write: {sensitivity: high, description: Roll out a release}
      releases:read: {}
  ledger:
    audience: {prod: https://ledger.acme.example, dev: https://ledger.dev.acme.example}
    algorithm: RS256
    scopes: {entries:read: {}}
"""

DEPLOY = """service_account: svc-payments-deploy
owner: team-payments
contact: payments-oncall@acme.example
description: Rolls payments releases out to prod
tags: {system: payments}
expires: 2027-06-30
access:
  payments: [deploy:write, releases:read]
  ledger: [entries:read]
trust:
  - name: release workflow
    issuer: github
    where:
      repository_id: "7432112"
      repository_owner_id: "98123"
      environment: production
      ref: {glob: "refs/tags/v*"}
    condition: claims.event_name != "pull_request"
    max_ttl: 10m
"""

CLUSTER = """service_account: svc-cluster-deploy
owner: team-payments
contact: payments-oncall@acme.example
description: Deploys from the cluster
tags: {system: payments}
expires: 2027-06-30
access:
  payments: [deploy:write]
default_scopes: {payments: [deploy:write]}
trust:
  - name: deployer pod
    issuer: cluster
    where: {namespace: payments, service_account: deployer}
"""


def write_tree(
    folder: Path, issuers: Mapping[str, Mapping[str, str]], *, replay: str = "reject", accounts: Mapping[str, str] | None = None
) -> Path:
    """Writes the tree; `issuers` maps an entry's name to its lines (preset, url, ca_file …).  Returns the folder."""
    lines = ["issuers:"]
    for name, entry in issuers.items():
        lines.append(f"  {name}:")
        lines += [f"    {key}: {value}" for key, value in ({"replay": replay} | dict(entry)).items()]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "issuers.yaml").write_text("\n".join(lines) + "\n")
    (folder / "apis.yaml").write_text(APIS)
    (folder / "environments.yaml").write_text(ENVIRONMENTS.replace("ISSUERS", ", ".join(issuers)))
    for env in ("prod", "dev"):
        (folder / env).mkdir(exist_ok=True)
        if "github" in issuers:
            (folder / env / "svc-payments-deploy.yaml").write_text(DEPLOY)
        if "cluster" in issuers:
            (folder / env / "svc-cluster-deploy.yaml").write_text(CLUSTER)
    for place, text in (accounts or {}).items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(text)
    return folder
