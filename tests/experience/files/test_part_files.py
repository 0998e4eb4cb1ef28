"""Part files: readers see every row while several processes write and put their files together."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from support.game_transitions import BATCHES, WRITERS, transition, write_parts, written

from verl_ee.experience.collecting.transition_cache import TransitionCache


def test_many_write_while_others_read_and_put_together(tmp_path: Path) -> None:
    expected = {item.key for writer in range(WRITERS) for batch in written(writer) for item in batch}
    read_before: frozenset[str] = frozenset()
    with ProcessPoolExecutor(WRITERS, mp_context=get_context("spawn")) as pool:
        writers = [pool.submit(write_parts, tmp_path, writer) for writer in range(WRITERS)]
        while not all(writer.done() for writer in writers):
            now = TransitionCache(tmp_path, str.strip).known_at_start
            assert read_before <= now <= expected
            read_before = now
        for writer in writers:
            writer.result()
    assert TransitionCache(tmp_path, str.strip).known_at_start == expected
    files = [path.name for path in tmp_path.iterdir()]
    assert all(name.endswith(".parquet") and not name.startswith(".") for name in files)
    assert len(files) < WRITERS * BATCHES


def test_putting_together_again_loses_nothing(tmp_path: Path) -> None:
    cache, expected = TransitionCache(tmp_path, str.strip), set[str]()
    for number in range(9):
        cache.add([transition("game 3", [], f"press {number}")])
        cache.flush()
        expected.add(transition("game 3", [], f"press {number}").key)
        if number % 3 == 2:
            cache.parts.join()
        assert TransitionCache(tmp_path, str.strip).known_at_start == expected
