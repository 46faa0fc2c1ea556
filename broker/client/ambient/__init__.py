"""Where does this workload run, and how does it prove it?  Looks in the order of ranks; the first rank that answers wins.

    1 what the user says                 a file, a variable
    2 the CI job's or agent's own        GitHub Actions, GitLab, Buildkite …
    3 the application's own              a projected Kubernetes token, SPIFFE, Vercel …
    4 a cloud's, announced by variables
    5 the machine's metadata server      last; asked all at once, since an address where nobody answers costs a second

A detector is a function `look(detector, around) -> Found | Absent | Unready`; the table in signals.py says which variables,
files or programs make its module worth loading.  Signs only say where to ask: what the answer is, its `iss` says.

From within a job of a CI system ranks 4 and 5, and of rank 3 what the runner's container or machine has, are not used
unasked: on a runner of one's own they belong to every job on it.  A job is where CI says so, or where rank 2 has advice.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from broker.client.ambient.signals import CLOUD, DETECTORS, MACHINE, Detector
from broker.client.errors import IdentityMissing, Misused
from broker.client.http import WITHIN_S, Answer, printable, request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

RANKS = (1, 2, 3, 4, 5)
JOB_RANK = 2
# Of the CI systems that have no detector; TeamCity, GoCD and Bamboo do not set CI.
JOB_SIGNS = ("CI", "CONTINUOUS_INTEGRATION", "DRONE", "TEAMCITY_VERSION", "GO_PIPELINE_NAME", "bamboo_planKey")
METADATA_CONNECT_S = 1.0
ANOTHER = "a platform that is not known here: have its identity token written to a file; BROKER_SUBJECT_TOKEN_FILE names it"
WHERE = "broker whoami says where it looked"


class Found(NamedTuple):
    """A way to an identity token.  `fetch(audience)` returns one, or raises `IdentityFailed`, `Misused` for a proxy that is none.

    `where` says how it is fetched, without a secret; `fresh`: each fetch asks the platform anew; `asks`: for that audience,
    while of the others somebody else has said what they are made for; `fixed`: the vendor has, whoever it is shown to.
    """

    name: str
    title: str
    where: str
    fetch: Callable[[str], str]
    fresh: bool = True
    asks: bool = True
    fixed: bool = False

    @staticmethod
    def by(
        detector: Detector, where: str, fetch: Callable[[str], str], *, fresh: bool = True, asks: bool = True, fixed: bool = False
    ) -> Found:
        """What this detector found."""
        return Found(detector.name, detector.title, where, fetch, fresh, asks, fixed)


class Absent(NamedTuple):
    """Not here.  `looked_for`: what would have been a sign; `advice`: what to add, where this may be the platform after all."""

    looked_for: str
    advice: tuple[str, ...] = ()


class Unready(NamedTuple):
    """This is the platform, and the job has no identity on it; `advice` says what to add."""

    problem: str
    advice: tuple[str, ...] = ()


class Around(NamedTuple):
    """What a detector may look at.

    `env`: variables; `root`: of the file system; `ask`: HTTP; `addresses`: of the metadata servers of `google`, `azure`,
    `aws`, where they are not the vendor's.  `within_s` bounds one request or program, `connect_s` connecting to a metadata
    server.  `audience`: what the token shall be made for, for texts that tell what to write.
    """

    env: Mapping[str, str]
    root: str = ""
    ask: Callable[..., Answer] = request
    addresses: Mapping[str, str] = {}
    within_s: float = WITHIN_S
    connect_s: float = METADATA_CONNECT_S
    audience: str = ""

    def path(self, absolute: str) -> str:
        """Where a well-known file is."""
        return self.root + absolute

    def says(self, variable: str) -> bool:
        """Whether a variable is set, and not to what means no."""
        return self.env.get(variable, "").lower() not in {"", "false", "0"}

    def half(self, variable: str, *others: str) -> tuple[str, ...]:
        """Advice where of variables that count together the first is set, and some of the others are not."""
        missing = [name for name in others if not self.env.get(name)]
        if not self.env.get(variable) or not missing:
            return ()
        return (f"{variable} is set, {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not",)

    def intended(self) -> str:
        """The audience, as far as it is known: for a text that shows what to write."""
        base = self.env.get("BROKER_URL", "")
        if not base or "@" in base:  # what holds a password is not shown
            base = "https://broker.acme.example"
        made = f"{base.rstrip('/')}/{self.env.get('BROKER_ENV') or 'prod'}"
        return printable(self.audience or self.env.get("BROKER_IDENTITY_AUDIENCE") or made)


Outcome = Found | Absent | Unready


def here(audience: str = "", within_s: float = WITHIN_S) -> Around:
    """This process's surroundings; `audience` and `within_s` as in `Around`."""
    return Around(os.environ, audience=audience, within_s=min(within_s, WITHIN_S))


def find(around: Around, only: str = "") -> Found:
    """The identity to use; `only` names a detector.  Raises `IdentityMissing`, `Misused` for an unknown name."""
    if only:
        return _only(around, only)
    advice: list[str] = []
    job = False
    for rank in RANKS:
        outcomes = _look_all([each for each in DETECTORS if each.rank == rank and not (job and each.shared)], around)
        found = [each for each in outcomes if isinstance(each, Found)]
        for unready in outcomes:
            if isinstance(unready, Unready):
                others = (f"or --identity {one.name}: {one.title} is here too" for one in found)
                raise IdentityMissing(unready.problem, *unready.advice, *others)
        if len(found) > 1:
            names = " and ".join(one.name for one in found)
            raise IdentityMissing(f"two identities are here: {names}", f"--identity {found[0].name}, or BROKER_IDENTITY, chooses")
        if found:
            return found[0]
        advice += [line for each in outcomes if isinstance(each, Absent) for line in each.advice]
        if rank == JOB_RANK:
            job = is_job(around, outcomes)
    if job:
        advice += _shared(around)
    # What stands at two ranks may say the same at both.
    raise IdentityMissing("no identity token was found here", *dict.fromkeys(advice), ANOTHER, WHERE)


def is_job(around: Around, outcomes: Iterable[Outcome]) -> bool:
    """Whether this is a job of a CI system that nobody identified: CI says so, or one of the `outcomes` of rank 2 has advice."""
    return any(around.says(name) for name in JOB_SIGNS) or any(isinstance(each, Absent) and each.advice for each in outcomes)


def load() -> None:
    """Imports every detector."""
    for module in {each.module for each in DETECTORS}:
        __import__(f"broker.client.ambient.{module}")


def survey(around: Around) -> list[tuple[Detector, Outcome]]:
    """Every detector and what it saw, in order."""
    looked = [each for rank in RANKS for each in DETECTORS if each.rank == rank]
    near = [each for each in looked if each.rank != MACHINE]
    outcomes = [look(each, around, quick=False) for each in near] + _look_all(looked[len(near) :], around)
    return list(zip(looked, outcomes, strict=True))


def look(detector: Detector, around: Around, *, quick: bool = True) -> Outcome:
    """One detector's outcome.  `quick`: where none of its signs is there it is absent without being loaded."""
    if quick and not signed(detector, around):
        return Absent(detector.looks_for)
    module = __import__(f"broker.client.ambient.{detector.module}", fromlist=[detector.function])  # importlib is three more
    return getattr(module, detector.function)(detector, around)


def signed(detector: Detector, around: Around) -> bool:
    """Whether any sign of a detector is there; one without signs has to look."""
    return (
        not (detector.variables or detector.files or detector.program)
        or any(around.env.get(name) for name in detector.variables)
        or any(os.path.exists(around.path(path)) for path in detector.files)  # noqa: PTH110  # no pathlib in a cold start
        or bool(detector.program and program(detector.program, around))
    )


def program(name: str, around: Around) -> str:
    """The path of a program in PATH, or nothing.  Relative folders do not count: what lies in a checkout is anybody's."""
    names = (name, f"{name}.exe") if os.name == "nt" else (name,)
    folders = around.env.get("PATH", "").split(os.pathsep)
    paths = (os.path.join(folder, each) for folder in folders if os.path.isabs(folder) for each in names)  # noqa: PTH117, PTH118
    return next((path for path in paths if os.path.isfile(path) and os.access(path, os.X_OK)), "")  # noqa: PTH113


def _look_all(detectors: list[Detector], around: Around) -> list[Outcome]:
    if len(detectors) < 2 or detectors[0].rank != MACHINE:
        return [look(each, around) for each in detectors]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(len(detectors)) as pool:
        return list(pool.map(lambda each: look(each, around), detectors))


def _only(around: Around, name: str) -> Found:
    """A name may stand at two ranks: a cloud's by its variables, then its machine's."""
    detectors = [each for each in DETECTORS if each.name == name]
    if not detectors:
        from difflib import get_close_matches

        known = list(dict.fromkeys(each.name for each in DETECTORS))
        close = [each for each in known if each.startswith(name)] or get_close_matches(name, known)
        near = (f"did you mean {each}?" for each in close[:1])
        raise Misused(f"there is no identity named {name!r}", *near, "choose from: " + ", ".join(known))
    absent: list[Absent] = []
    for detector in detectors:
        match look(detector, around, quick=False):
            case Found() as found:
                return found
            case Unready(problem, more):
                raise IdentityMissing(problem, *more)
            case Absent() as each:
                absent.append(each)
    looked_for = ", ".join(each.looked_for for each in absent)
    advice = dict.fromkeys(line for each in absent for line in each.advice)
    raise IdentityMissing(f"{name} is not here: looked for {looked_for}", *advice)


def _shared(around: Around) -> list[str]:
    """What is not used in a job unless somebody insists."""
    seen = [each.name for each in DETECTORS if each.shared and each.rank <= CLOUD and signed(each, around)]
    names = seen or [each.name for each in DETECTORS if each.rank == MACHINE]
    why = "in a CI job the identity of its container, cloud or machine is not used unasked, since all jobs of a runner share it"
    return [f"{why}; --identity {' or '.join(names)} insists"]
