"""Settings: flags > BROKER_* > broker.toml > defaults, read once into frozen values.  Limits: every bound of the broker.

Nothing else reads the environment for a setting, and no bound stands anywhere else as a bare number.
Unknown BROKER_* variables and unknown keys of broker.toml are warnings: a typing error must not pass in silence, and a
newer file must not stop an older broker.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
PREFIX: Final = "BROKER_"
CLIENT_VARIABLES: Final = frozenset(  # what callers set (docs/cli.md): none of them is a misspelt setting
    {
        *("BROKER_URL", "BROKER_ENV", "BROKER_AUDIENCE", "BROKER_SCOPE", "BROKER_SERVICE_ACCOUNT", "BROKER_TTL"),
        *("BROKER_IDENTITY", "BROKER_IDENTITY_AUDIENCE", "BROKER_SUBJECT_TOKEN", "BROKER_SUBJECT_TOKEN_FILE", "BROKER_ID_TOKEN"),
        *("BROKER_SPIFFE_ID", "BROKER_PATIENCE", "BROKER_TOKEN", "BROKER_TOKEN_FILE", "BROKER_TOKEN_EXPIRES_AT", "BROKER_CONFIG"),
    }
)


class SettingError(ValueError):
    """One setting is wrong; the text names it, says what was found and what would be right."""


def duration_s(value: object) -> int:
    """Whole seconds of `90s`, `15m`, `8h`, `400d`, or of a plain number of seconds.  Raises ValueError."""
    if type(value) is int and value > 0:
        return value
    match = re.fullmatch(r"([1-9][0-9]{0,8})([smhd]?)", str(value).strip())
    if match is None:
        raise ValueError(f"`{value}` is no duration; write a number and a unit, like 90s, 15m, 8h or 400d")
    return int(match[1]) * UNITS_S.get(match[2], 1)


@dataclass(frozen=True, slots=True)
class Limits:
    """Every bound, in one frozen object; the text behind each says what it protects."""

    body_bytes_max: int = 65_536  # a form with one 16 KiB token and room to spare
    linger_bytes_max: int = 1_048_576  # thrown away behind a last answer: closing on unread bytes would take the answer along
    linger_s_max: int = 1
    token_bytes_max: int = 16_384  # ATTACK class: work before trust; the largest real token seen is 4 KiB
    json_depth_max: int = 8  # Kubernetes nests three deep
    headers_bytes_max: int = 32_768
    headers_max: int = 100
    url_bytes_max: int = 8_192
    request_s_max: int = 10  # from the first byte of a request to the last byte of its body
    keep_alive_s: int = 65
    connections_max: int = 2_000  # for each worker; beyond it new requests hear 503 at once
    form_fields_max: int = 64
    scopes_max: int = 50
    targets_max: int = 10
    record_bytes_max: int = 4_096
    fetch_bytes_max: int = 524_288  # discovery and JWKS
    fetch_s_max: int = 5  # whole fetch, not each read
    lookups_max: int = 16  # threads that ask for issuers' addresses
    jwks_keys_max: int = 100
    jwks_file_poll_s: int = 2  # a local key file is looked at so often
    kid_characters_max: int = 256
    rsa_bits_max: int = 8_192  # the cost of one verification grows with the square
    jwks_refresh_s: int = 300
    jwks_stale_s_max: int = 3_600  # known keys stay usable so long after the last good fetch; at most 24 h
    jwks_wait_s_max: int = 2  # a caller waits so long for a fetch under way
    unknown_kid_burst: int = 3
    unknown_kid_refill_s: int = 10
    leeway_s: int = 30
    store_clock_skew_s: int = 5
    commit_tries_max: int = 4
    receipt_age_s_max: int = 2  # an acknowledgement older than this is not signed on
    store_timeout_s: int = 2
    voids_pending_max: int = 10_000  # credentials that never left, waiting for the store to hear of it
    store_reconnect_s_max: int = 1  # between two tries of the hot connection
    store_start_s_max: int = 60  # the embedded server reads its whole log back: 1 s for each 75,000 records
    store_stop_s_max: int = 10  # then SIGKILL; what was answered is on disk already
    store_restart_s_max: int = 2  # between two tries to start the embedded server again
    stale_entries_max: int = 16  # revocations that a stale commit is told of at once
    log_page_max: int = 256
    scan_keys: int = 1_000
    refusals_per_s: int = 10  # recorded one by one, for each issuer and tenant
    refusals_unverified_per_s: int = 50
    refusal_summary_ms: int = 200  # how long a refusal beyond the budget waits for the summary that counts it
    refusal_keys_max: int = 10_000
    credential_s_max: int = 86_400  # no credential lives longer, whatever a policy says
    key_publish_s_min: int = 360  # the key set's max-age and a minute: every honest cache has a key before it signs
    key_retire_s: int = 86_400 + 30 + 360  # the longest credential, leeway, the key set's max-age
    shutdown_s_max: int = 10
    export_queue_max: int = 8_192  # traces kept while the collector is away
    condition_characters_max: int = 2_000
    policy_file_bytes_max: int = 1_048_576
    policy_depth_max: int = 32
    policy_nodes_max: int = 20_000  # keys, members and values of one file: 1 MiB of `- a` is half a million of them
    policy_problems_max: int = 1_000  # a tree of nonsense must not fill memory with what is wrong about it
    findings_max: int = 40  # reasons of one decision: they go into a record of record_bytes_max
    finding_characters_max: int = 256
    pin_keys_max: int = 1_024  # index entries of one rule: two `in` lists multiply
    policy_debounce_ms: int = 50  # changes so close together are one reload
    policy_relink_ms: int = 500  # a policy folder that is a link may lead elsewhere; no event tells


@dataclass(frozen=True, slots=True)
class Settings:
    """What one broker runs with.  `sources` names where each value came from (flag, variable, file, default)."""

    policies: Path = Path("policies")
    data: Path = Path("broker-data")
    url: str = ""
    host: str = "127.0.0.1"
    port: int = 8700
    workers: int = 1
    envs: tuple[str, ...] = ()
    store: str = ""
    store_url_file: Path | None = None
    durability: str = ""
    key_file: Path | None = None
    admin_bind: str = ""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    trusted_proxies: tuple[str, ...] = ()
    log_level: str = "info"
    trace_context: str = "link"
    key_rotate_every_s: int = 30 * 86_400
    key_publish_before_s: int = 86_400
    policy_poll_s: int = 0
    limits: Limits = Limits()
    sources: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def base_url(self) -> str:
        """BASE of every issuer URL: from configuration only, never from a request."""
        if self.url:
            return self.url
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls_cert else 'http'}://{host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _text(value: object) -> str:
    return str(value)


def _path(value: object) -> Path:
    return Path(str(value)).expanduser()


def _port(value: object) -> int:
    number = _whole(value)
    if not 0 <= number <= 65_535:
        raise ValueError(f"`{value}` is no port; use 0 to 65535")
    return number


def _whole(value: object) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", str(value)):
        raise ValueError(f"`{value}` is no whole number")
    return int(str(value))


def _workers(value: object) -> int:
    number = _whole(value)
    if not 1 <= number <= 64:
        raise ValueError(f"`{value}` workers; use 1 to 64")
    return number


def _list(value: object) -> tuple[str, ...]:
    parts = value if isinstance(value, list | tuple) else str(value).split(",")
    return tuple(part for part in (str(part).strip() for part in parts) if part)


def _networks(value: object) -> tuple[str, ...]:
    return tuple(str(ipaddress.ip_network(part, strict=False)) for part in _list(value))


def _base_url(value: object) -> str:
    text = str(value).rstrip("/")
    parts = urlsplit(text)
    if parts.scheme not in {"https", "http"} or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise ValueError(f"`{value}` is no base URL; write https://host or https://host/path, without query or user")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise ValueError(f"`{value}` is plain http; only loopback may go without TLS: use https://{parts.netloc}")
    return text


def _one_of(*words: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if str(value) not in words:
            raise ValueError(f"`{value}` is none of {', '.join(words)}")
        return str(value)

    return parse


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: how its text is read, and what it is for.  Flag `--a-b`, variable BROKER_A_B, key a_b of broker.toml."""

    parse: Callable[[object], Any]
    help: str


def _choice(text: str, *words: str) -> Setting:
    return Setting(_one_of(*words), f"{text}: {', '.join(words)}")


SETTINGS: Final[Mapping[str, Setting]] = {
    "policies": Setting(_path, "folder of the policy tree"),
    "data": Setting(_path, "folder for state: embedded store, key-encryption key, witness"),
    "url": Setting(_base_url, "public base URL; each env's issuer is URL/ENV (default: from host and port, on loopback only)"),
    "host": Setting(_text, "address to listen on"),
    "port": Setting(_port, "port to listen on; 0 takes a free one"),
    "workers": Setting(_workers, "worker processes"),
    "envs": Setting(_list, "envs that this process serves, by comma (default: all of the policy)"),
    "store": Setting(_text, "external store: redis://, rediss://, unix:// or redis+sentinel:// (default: embedded)"),
    "store_url_file": Setting(_path, "file that holds the store's URL with its password"),
    "durability": _choice("what the store must promise, else the start is refused", "disk"),
    "key_file": Setting(_path, "key-encryption key: 32 bytes as 64 hex digits or base64, mode 0600 or 0400"),
    "admin_bind": Setting(_text, "HOST:PORT that /healthz, /readyz, /metrics move to"),
    "tls_cert": Setting(_path, "certificate chain, PEM"),
    "tls_key": Setting(_path, "its private key, PEM"),
    "trusted_proxies": Setting(_networks, "addresses or networks whose X-Forwarded-For is believed, by comma"),
    "log_level": _choice("what the log shows", "debug", "info", "warning", "error"),
    "trace_context": _choice("what an incoming traceparent becomes", "link", "parent", "ignore"),
    "key_rotate_every_s": Setting(duration_s, "age at which a signing key is replaced"),
    "key_publish_before_s": Setting(duration_s, "how long a key is published before it signs"),
    "policy_poll_s": Setting(_whole, "look at the policy folder every so many seconds (network disks); 0 waits for events"),
}


def load(
    flags: Mapping[str, object],
    environment: Mapping[str, str],
    file: Path | None = None,
) -> Settings:
    """Settings from all sources.  A flag whose value is None was not given.

    Raises `SettingError`, which names the setting, its source, and what would be right.
    """
    warnings: list[str] = []
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    limits, table = _file_values(file, warnings)
    from_environment = {name: environment[_variable(name)] for name in SETTINGS if environment.get(_variable(name))}
    for source, given in (("broker.toml", table), ("environment", from_environment), ("flag", flags)):
        for name, raw in given.items():
            if raw is None or raw == ():
                continue
            values[name] = _parse(name, raw, source)
            sources[name] = source
    limits |= _limits_from_environment(environment)
    known = {_variable(name) for name in (*SETTINGS, *(f.name for f in fields(Limits)))} | CLIENT_VARIABLES
    ours = sorted(name for name in environment if name.startswith(PREFIX))
    bare = {name.removeprefix(PREFIX): name for name in known}
    for name in (name for name in ours if name not in known):
        warnings.append(f"{name} is no setting of this version{_meant(name.removeprefix(PREFIX), bare)}")
    settings = Settings(limits=Limits(**limits), sources=sources, warnings=tuple(warnings), **values)
    _check_together(settings)
    return settings


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def _meant(name: str, written: Mapping[str, str]) -> str:
    """Which name may be meant; `written` maps each known name, without what all have in common, to how it is written."""
    from difflib import get_close_matches  # only who misspells pays for it

    return "".join(f"; did you mean {written[near]}?" for near in get_close_matches(name, written, n=1))


def _parse(name: str, raw: object, source: str) -> Any:
    try:
        return SETTINGS[name].parse(raw)
    except ValueError as error:
        label = {"flag": "--" + name.replace("_", "-"), "environment": _variable(name)}.get(source, f"{name} in {source}")
        raise SettingError(f"{label}: {error}") from error


def _file_values(file: Path | None, warnings: list[str]) -> tuple[dict[str, int], dict[str, object]]:
    if file is None or not file.exists():
        return {}, {}
    try:
        table = tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingError(f"{file}: {error}") from error
    limits_table = table.pop("limits", {})
    known = {f.name for f in fields(Limits)}
    limits_written = {name: f"limits.{name}" for name in known}
    written = limits_written | {name: name for name in SETTINGS}
    for name in sorted(set(table) - set(SETTINGS)):
        warnings.append(f"{file}: `{name}` is no setting of this version{_meant(name, written)}")
    for name in sorted(set(limits_table) - known):
        warnings.append(f"{file}: `limits.{name}` is no limit of this version{_meant(name, limits_written)}")
    limits = {name: _limit(name, value, str(file)) for name, value in limits_table.items() if name in known}
    return limits, {name: value for name, value in table.items() if name in SETTINGS}


def _limits_from_environment(environment: Mapping[str, str]) -> dict[str, int]:
    return {
        f.name: _limit(f.name, environment[_variable(f.name)], _variable(f.name))
        for f in fields(Limits)
        if environment.get(_variable(f.name))
    }


def _limit(name: str, value: object, source: str) -> int:
    try:
        number = _whole(value)
    except ValueError as error:
        raise SettingError(f"{name} in {source}: {error}") from error
    if number < 1:
        raise SettingError(f"{name} in {source}: a limit is at least 1")
    if name == "jwks_stale_s_max" and number > 86_400:
        raise SettingError(f"{name} in {source}: at most 86400; a key that was withdrawn a day ago must be dead")
    return number


def _check_together(settings: Settings) -> None:
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise SettingError("--tls-cert and --tls-key go together")
    if settings.store and settings.store_url_file:
        raise SettingError("--store and --store-url-file: give one")
    if "@" in settings.store and settings.sources.get("store") == "flag" and urlsplit(settings.store).password:
        raise SettingError("--store: arguments can be read by everyone here; use --store-url-file or BROKER_STORE")
    if not settings.url and not is_loopback(settings.host):
        raise SettingError("--url is needed when --host is not loopback: issuer URLs come from configuration, not from requests")
    if settings.key_publish_before_s >= settings.key_rotate_every_s:
        raise SettingError("key_publish_before_s must be less than key_rotate_every_s")
