"""Platforms that give an application its identity: Kubernetes, SPIFFE, Fly, Vercel, Modal, Render."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from spiffe._proto import workload_pb2, workload_pb2_grpc

from tests.support.platforms_make import Make, Platform
from tests.support.platforms_service import Reply, Seen

IN_A_POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}


def kubernetes(make: Make) -> Platform:
    """A pod that says where it mounted the volume."""
    path = make.file("token", make.folder / "run/token")
    env = {**make.base, **IN_A_POD, "BROKER_SUBJECT_TOKEN_FILE": str(path)}
    return Platform("file", env, fixed=make.audience, more=path)


def kubernetes_projected(make: Make) -> Platform:
    """A pod with the volume at its place by convention."""
    path = make.file("token", make.folder / "var/run/secrets/broker/token")
    return Platform("kubernetes", {**make.base, **IN_A_POD}, str(make.folder), fixed=make.audience, in_process=True, more=path)


def fly(make: Make) -> Platform:
    root = make.short()
    (root / ".fly").mkdir()

    def answer(seen: Seen) -> Reply:
        if (seen.method, seen.path) != ("POST", "/v1/tokens/oidc"):
            return Reply.json({"error": "not found"}, 404)
        return Reply.text(make.token(seen.json.get("aud") or "https://fly.io/acme"), Content_Type="text/plain")

    service = make.service(answer, root / ".fly/api")
    env = {**make.base, "FLY_APP_NAME": "payments", "FLY_MACHINE_ID": "148e"}
    return Platform("fly", env, str(root), in_process=True, service=service)


def vercel(make: Make) -> Platform:
    return make.variable("vercel", "VERCEL_OIDC_TOKEN", "https://vercel.com/acme", VERCEL="1", CI="1")


def modal(make: Make) -> Platform:
    return make.variable("modal", "MODAL_IDENTITY_TOKEN", "oidc.modal.com")


def render(make: Make) -> Platform:
    path = make.file("token", make.folder / "etc/secrets/token")
    return Platform("file", {**make.base, "RENDER": "true", "BROKER_SUBJECT_TOKEN_FILE": str(path)}, fixed=make.audience)


class WorkloadApi(workload_pb2_grpc.SpiffeWorkloadAPIServicer):
    """An agent.  `ids`: the identities of the one workload that asks; none: it is not registered."""

    def __init__(self, make: Make, socket: Path) -> None:
        self._make = make
        self.ids = [str(make.issuer.shape.fixture["sub"])]
        self.broken: grpc.StatusCode | None = None
        self.asked: list[tuple[list[str], str]] = []
        self._server = grpc.server(ThreadPoolExecutor(2))
        workload_pb2_grpc.add_SpiffeWorkloadAPIServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{socket}")
        self._server.start()
        make.stack.callback(lambda: self._server.stop(0).wait())

    def FetchJWTSVID(self, request: Any, context: Any) -> Any:
        if ("workload.spiffe.io", "true") not in context.invocation_metadata():
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request")
        if self.broken is not None:
            context.abort(self.broken, "the agent is starting")
        audience, wish = list(request.audience), str(request.spiffe_id)
        self.asked.append((audience, wish))
        ids = [each for each in self.ids if wish in {"", each}]
        if not ids:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "no identity issued")
        made = [
            workload_pb2.JWTSVID(spiffe_id=each, svid=self._make.token(audience[0], sub=each), hint=str(number))
            for number, each in enumerate(ids)
        ]
        return workload_pb2.JWTSVIDResponse(svids=made)


def spiffe(make: Make) -> Platform:
    socket = make.short() / "agent.sock"
    agent = WorkloadApi(make, socket)
    return Platform("spiffe", {**make.base, "SPIFFE_ENDPOINT_SOCKET": f"unix://{socket}"}, more=agent)


def spiffe_by_its_place(make: Make) -> Platform:
    root = make.short()
    socket = root / "run/spire/agent/public/api.sock"
    socket.parent.mkdir(parents=True)
    return Platform("spiffe", make.base, str(root), in_process=True, more=WorkloadApi(make, socket))
