"""States of an episode: history of the right length, and no change afterwards."""

from __future__ import annotations

import pytest

from verl_ee.prompts.state import EpisodeHistory, State, Turn, recent


@pytest.mark.parametrize(("length", "expected"), [(0, ""), (1, "d"), (3, "bcd"), (4, "abcd"), (9, "abcd")])
def test_history_is_cut_at_its_old_end(length: int, expected: str) -> None:
    history = [Turn("", action) for action in "abcd"]
    assert "".join(turn.action for turn in recent(history, length)) == expected
    assert recent([], length) == ()


def test_a_state_does_not_change_when_the_episode_goes_on() -> None:
    episode = EpisodeHistory("t", 2)
    first = episode.state("o", None)
    episode.act(first, "a")
    second = episode.state("p", ["b"])
    episode.act(second, "b", "t")
    assert first == State("t", (), "o", None)
    assert second == State("t", (Turn("o", "a"),), "p", ("b",), 1)
    assert episode.state("q", None) == State("t", (Turn("o", "a"), Turn("p", "b", "t", ("b",))), "q", None, 2)
