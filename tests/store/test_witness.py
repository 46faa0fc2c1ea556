"""The witness only ever moves up, whoever writes, and a damaged one is no proof of anything."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from broker.store.witness import Seen, Witness


def test_it_only_moves_up(tmp_path: Path) -> None:
    witness = Witness(tmp_path / "deep" / "witness")
    for n in (0, 3, 1, 2):
        witness.note("prod", Seen(n, f"t{n}"))
    assert witness.read() == {"prod": Seen(3, "t3")}


def test_slots_do_not_touch_and_writers_do_not_lose_each_other(tmp_path: Path) -> None:
    path = tmp_path / "witness"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: Witness(path).note(f"slot{n % 4}", Seen(n, f"t{n}")), range(64)))
    assert {slot: seen.n for slot, seen in Witness(path).read().items()} == {f"slot{n}": 60 + n for n in range(4)}


def test_it_is_private(tmp_path: Path) -> None:
    Witness(tmp_path / "witness").note("prod", Seen(0, "t"))
    assert (tmp_path / "witness").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"prod": 1}', '{"prod": {"n": 1}}'])
def test_a_damaged_file_is_an_error_not_an_empty_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "witness").write_text(text)
    with pytest.raises(ValueError):
        Witness(tmp_path / "witness").read()
